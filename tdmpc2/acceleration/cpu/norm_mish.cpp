// Mish of LayerNorm in one pass over each row, and its gradient in one more: what a training update does between its
// matrix products. Rows of x are [network, row, width] with any strides but that of the width, which is a multiple of 16;
// all else is contiguous. Results do not depend on the number of threads.
#include "simd.h"
#include "variant.h"

namespace tdmpc2::TDMPC2_VARIANT {
namespace {

// e^x up to 20, where Mish is the identity.
INLINE Floats exp_for(Floats x, float) { return exp(maximum(splat(lowest_exponent), minimum(x, splat(20)))); }

// The same with an error of 3e-6, for what becomes bf16.
INLINE Floats exp_for(Floats x, BFloat16) {
    x = maximum(splat(lowest_exponent), minimum(x, splat(20)));
    const Floats rounded = fma(x, splat(1.44269504f), splat(rounding));
    const Floats r = fma(rounded - splat(rounding), splat(-0.693147181f), x);
    Floats p = splat(4.145861e-2f);  // of e^r for |r| <= ln 2 / 2
    constexpr float coefficients[] = {1.6790907e-1f, 5.0004359e-1f, 9.999634e-1f, 9.9999926e-1f};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) p = fma(p, r, splat(coefficients[i]));
    return p * power_of_two(bits(rounded), 0);
}

// What the networks have: all [network, width], and the factors of dropout [network, row, width], or null.
struct Weights {
    const float *bias, *gain, *shift, *factors;
};

struct Shape {
    int64_t networks, rows, width, network_stride, row_stride;  // strides of x, in elements
    int64_t threads;
    Parallel parallel;  // whose threads these are
};

template <int N>
struct Count {
    static constexpr int value = N;
};

// The loop over rows in pieces, which threads share: as many whatever their number, for the sums over a piece's rows.
constexpr int pieces = 16;

template <class Work>
void for_pieces(const Shape& s, Work work) {
    for_each_item(int(s.threads), pieces, [](void* context, int i) { (*static_cast<Work*>(context))(i); }, &work,
                  s.parallel);
}

// Calls `of` with the network and the first of every two rows of a piece, or with a last one alone: while one row waits
// for a sum or a root there is work in the other.
template <class Of>
INLINE void for_rows(const Shape& s, int piece, Of of) {
    const int64_t pairs = (s.rows + 1) / 2, all = s.networks * pairs;
    for (int64_t i = all * piece / pieces; i < all * (piece + 1) / pieces; i++) {
        const int64_t n = i / pairs, r = i % pairs * 2;
        if (r + 1 < s.rows) of(Count<2>(), n, r);
        else of(Count<1>(), n, r);
    }
}

template <class T>
INLINE Floats input(const T* x, Floats bias, const float* factors, int64_t i) {
    const Floats sum = load(x + i) + bias;
    return factors ? sum * load(factors + i) : sum;
}

template <class T, int R>
void forward_rows(const T* x, const Weights& w, T* out, float* mean, float* inverse_std, const Shape& s, int64_t n,
                  int64_t r, float* row) {
    const int64_t index = n * s.rows + r, own = n * s.width;
    const T* xr = x + n * s.network_stride + r * s.row_stride;
    const float* factors = w.factors ? w.factors + index * s.width : nullptr;
    Floats sum[R], squares[R], m[R], f[R];
    for (int k = 0; k < R; k++) sum[k] = squares[k] = splat(0);
    for (int64_t i = 0; i < s.width; i += lanes) {
        const Floats bias = load(w.bias + own + i);
        for (int k = 0; k < R; k++) {
            const Floats v = input(xr + k * s.row_stride, bias, factors ? factors + k * s.width : nullptr, i);
            store(row + k * s.width + i, v);
            sum[k] = sum[k] + v;
        }
    }
    for (int k = 0; k < R; k++) m[k] = splat(mean[index + k] = reduce_add(sum[k]) / float(s.width));
    for (int64_t i = 0; i < s.width; i += lanes)
        for (int k = 0; k < R; k++) {
            const Floats v = load(row + k * s.width + i) - m[k];
            squares[k] = fma(v, v, squares[k]);
        }
    for (int k = 0; k < R; k++) {
        const float variance = reduce_add(squares[k]) / float(s.width);
        f[k] = splat(inverse_std[index + k] = 1 / __builtin_sqrtf(variance + 1e-5f));
    }
    for (int64_t i = 0; i < s.width; i += lanes) {
        const Floats gain = load(w.gain + own + i), shift = load(w.shift + own + i);
        for (int k = 0; k < R; k++) {
            const Floats y = fma((load(row + k * s.width + i) - m[k]) * f[k], gain, shift);
            const Floats e = exp_for(y, T()), a = e * (e + splat(2));
            store(out + (index + k) * s.width + i, y * a / (a + splat(2)));
        }
    }
}

template <class T>
void forward(const T* x, const Weights& w, T* out, float* mean, float* inverse_std, const Shape& s) {
    for_pieces(s, [&](int piece) {
        auto* const row = static_cast<float*>(scratch(ITEM, 2 * s.width * sizeof(float)));
        for_rows(s, piece, [&](auto count, int64_t n, int64_t r) {
            forward_rows<T, count.value>(x, w, out, mean, inverse_std, s, n, r, row);
        });
    });
}

// Adds to dbias, dgain and dshift, which follow one another with `all` numbers each.
template <class T, int R>
void backward_rows(const T* dout, const T* x, const Weights& w, const float* mean, const float* inverse_std, T* dx,
                   float* dbias, const Shape& s, int64_t n, int64_t r, float* normed_row, float* row) {
    const int64_t index = n * s.rows + r, own = n * s.width, all = s.networks * s.width;
    const int64_t at = n * s.network_stride + r * s.row_stride;
    const float* factors = w.factors ? w.factors + index * s.width : nullptr;
    float *dgain = dbias + all, *dshift = dgain + all;
    Floats sum[R], products[R], m[R], f[R];
    for (int k = 0; k < R; k++) {
        sum[k] = products[k] = splat(0);
        m[k] = splat(mean[index + k]), f[k] = splat(inverse_std[index + k]);
    }
    for (int64_t i = 0; i < s.width; i += lanes) {
        const Floats bias = load(w.bias + own + i), gain = load(w.gain + own + i), shift = load(w.shift + own + i);
        Floats gains = load(dgain + own + i), shifts = load(dshift + own + i);
        for (int k = 0; k < R; k++) {
            const float* own_factors = factors ? factors + k * s.width : nullptr;
            const Floats normed = (input(x + at + k * s.row_stride, bias, own_factors, i) - m[k]) * f[k];
            const Floats y = fma(normed, gain, shift);
            // mish = y a / (a + 2) with a = e (e + 2), so its slope is a / (a + 2) + 4 y e (e + 1) / (a + 2)^2
            const Floats e = exp_for(y, T()), a = e * (e + splat(2));
            const Floats q = splat(1) / (a + splat(2));
            const Floats slope = fma(splat(4) * y * e * q, (e + splat(1)) * q, a * q);
            const Floats dy = load(dout + (index + k) * s.width + i) * slope, d = dy * gain;
            gains = fma(dy, normed, gains);
            shifts = shifts + dy;
            sum[k] = sum[k] + d;
            products[k] = fma(d, normed, products[k]);
            store(normed_row + k * s.width + i, normed);
            store(row + k * s.width + i, d);
        }
        store(dgain + own + i, gains);
        store(dshift + own + i, shifts);
    }
    for (int k = 0; k < R; k++) {
        sum[k] = splat(reduce_add(sum[k]) / float(s.width));
        products[k] = splat(reduce_add(products[k]) / float(s.width));
    }
    for (int64_t i = 0; i < s.width; i += lanes) {
        Floats biases = load(dbias + own + i);
        for (int k = 0; k < R; k++) {
            const Floats normed = load(normed_row + k * s.width + i);
            Floats d = f[k] * (load(row + k * s.width + i) - sum[k] - normed * products[k]);
            if (factors) d = d * load(factors + k * s.width + i);
            biases = biases + d;
            store(dx + at + k * s.row_stride + i, d);
        }
        store(dbias + own + i, biases);
    }
}

// dx has the strides of x; sums [3, network, width] are the gradients of bias, gain and shift.
template <class T>
void backward(const T* dout, const T* x, const Weights& w, const float* mean, const float* inverse_std, T* dx,
              float* sums, const Shape& s) {
    const int64_t all = 3 * s.networks * s.width;
    auto* const partial = static_cast<float*>(scratch(CALL, pieces * all * sizeof(float)));
    for_pieces(s, [&](int piece) {
        auto* const row = static_cast<float*>(scratch(ITEM, 4 * s.width * sizeof(float)));
        float* mine = partial + piece * all;
        std::memset(mine, 0, all * sizeof(float));
        for_rows(s, piece, [&](auto count, int64_t n, int64_t r) {
            backward_rows<T, count.value>(dout, x, w, mean, inverse_std, dx, mine, s, n, r, row, row + 2 * s.width);
        });
    });
    for (int64_t i = 0; i < all; i += lanes) {
        Floats total = load(partial + i);
        for (int piece = 1; piece < pieces; piece++) total = total + load(partial + piece * all + i);
        store(sums + i, total);
    }
}

}  // namespace

void norm_mish(int bf16, const void* x, const float* bias, const float* gain, const float* shift, const float* factors,
               void* out, float* stats, int64_t networks, int64_t rows, int64_t width, int64_t network_stride,
               int64_t row_stride, int64_t threads, Parallel parallel) {
    const Weights w{bias, gain, shift, factors};
    const Shape s{networks, rows, width, network_stride, row_stride, threads, parallel};
    float* inverse_std = stats + networks * rows;
    if (bf16)
        forward(static_cast<const BFloat16*>(x), w, static_cast<BFloat16*>(out), stats, inverse_std, s);
    else
        forward(static_cast<const float*>(x), w, static_cast<float*>(out), stats, inverse_std, s);
}

void norm_mish_backward(int bf16, const void* dout, const void* x, const float* bias, const float* gain,
                        const float* shift, const float* factors, const float* stats, void* dx, float* sums,
                        int64_t networks, int64_t rows, int64_t width, int64_t network_stride, int64_t row_stride,
                        int64_t threads, Parallel parallel) {
    const Weights w{bias, gain, shift, factors};
    const Shape s{networks, rows, width, network_stride, row_stride, threads, parallel};
    const float* inverse_std = stats + networks * rows;
    if (bf16)
        backward(static_cast<const BFloat16*>(dout), static_cast<const BFloat16*>(x), w, stats, inverse_std,
                 static_cast<BFloat16*>(dx), sums, s);
    else
        backward(static_cast<const float*>(dout), static_cast<const float*>(x), w, stats, inverse_std,
                 static_cast<float*>(dx), sums, s);
}

}  // namespace tdmpc2::TDMPC2_VARIANT
