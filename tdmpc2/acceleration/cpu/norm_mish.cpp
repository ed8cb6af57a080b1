// Mish of LayerNorm in one pass over each row, and its gradient in one more: what a training update does between its
// matrix products. Rows of x are [network, row, width] with any strides but that of the width; all else is contiguous.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#ifdef __clang__
#error "needs g++: clang would bring a second OpenMP runtime beside torch's"
#endif

namespace {

constexpr int lanes = 16;

struct BFloat16 {
    uint16_t bits;
};

inline __m512 splat(float x) { return _mm512_set1_ps(x); }
inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
inline void store(BFloat16* p, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
}

// Polynomials of e^r for |r| <= ln 2 / 2: that of Cephes' expf, and one with an error of 3e-6 for what becomes bf16.
inline __m512 exp_polynomial(__m512 r, float) {
    __m512 p = splat(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, r, splat(c));
    return _mm512_fmadd_ps(p, r * r, r) + splat(1);
}
inline __m512 exp_polynomial(__m512 r, BFloat16) {
    __m512 p = splat(4.145861e-2f);
    for (const float c : {1.6790907e-1f, 5.0004359e-1f, 9.999634e-1f, 9.9999926e-1f})
        p = _mm512_fmadd_ps(p, r, splat(c));
    return p;
}

template <class T>
inline __m512 exp(__m512 x) {  // up to 20, where Mish is the identity
    x = _mm512_max_ps(splat(-88), _mm512_min_ps(x, splat(20)));
    const __m512 n = _mm512_roundscale_ps(x * splat(1.44269504f), 0);
    __m512 r = _mm512_fnmadd_ps(n, splat(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, splat(-2.12194440e-4f), r);
    return _mm512_scalef_ps(exp_polynomial(r, T()), n);
}

inline __m512 reciprocal(__m512 x, BFloat16) { return _mm512_rcp14_ps(x); }
inline __m512 reciprocal(__m512 x, float) {
    const __m512 guess = _mm512_rcp14_ps(x);
    return guess * _mm512_fnmadd_ps(x, guess, splat(2));
}

// What the networks have: all [network, width], and the factors of dropout [network, row, width], or null.
struct Weights {
    const float *bias, *gain, *shift, *factors;
};

struct Shape {
    int64_t networks, rows, width, network_stride, row_stride, threads;  // strides of x, in elements
};

// Calls `of` with the network and the first of every two rows, or with a last one alone, shared among the threads: while
// one row waits for a sum or a root there is work in the other.
template <class Function>
void for_rows(Shape s, Function of) {
#pragma omp for collapse(2) schedule(static)
    for (int64_t n = 0; n < s.networks; n++)
        for (int64_t r = 0; r < s.rows; r += 2) {
            if (r + 1 < s.rows)
                of(std::integral_constant<int, 2>(), n, r);
            else
                of(std::integral_constant<int, 1>(), n, r);
        }
}

template <class T>
inline __m512 input(const T* x, __m512 bias, const float* factors, int64_t i) {
    const __m512 sum = load(x + i) + bias;
    return factors ? sum * load(factors + i) : sum;
}

template <class T, int R>
void forward_rows(const T* x, Weights w, T* out, float* mean, float* inverse_std, Shape s, int64_t n, int64_t r,
                  float* row) {
    const int64_t index = n * s.rows + r, own = n * s.width;
    const T* xr = x + n * s.network_stride + r * s.row_stride;
    const float* factors = w.factors ? w.factors + index * s.width : nullptr;
    __m512 sum[R] = {}, squares[R] = {}, m[R], f[R];
    for (int64_t i = 0; i < s.width; i += lanes) {
        const __m512 bias = load(w.bias + own + i);
        for (int k = 0; k < R; k++) {
            const __m512 v = input(xr + k * s.row_stride, bias, factors ? factors + k * s.width : nullptr, i);
            store(row + k * s.width + i, v);
            sum[k] = sum[k] + v;
        }
    }
    for (int k = 0; k < R; k++) m[k] = splat(mean[index + k] = _mm512_reduce_add_ps(sum[k]) / s.width);
    for (int64_t i = 0; i < s.width; i += lanes)
        for (int k = 0; k < R; k++) {
            const __m512 v = load(row + k * s.width + i) - m[k];
            squares[k] = _mm512_fmadd_ps(v, v, squares[k]);
        }
    for (int k = 0; k < R; k++)
        f[k] = splat(inverse_std[index + k] = 1 / std::sqrt(_mm512_reduce_add_ps(squares[k]) / s.width + 1e-5f));
    for (int64_t i = 0; i < s.width; i += lanes) {
        const __m512 gain = load(w.gain + own + i), shift = load(w.shift + own + i);
        for (int k = 0; k < R; k++) {
            const __m512 y = _mm512_fmadd_ps((load(row + k * s.width + i) - m[k]) * f[k], gain, shift);
            const __m512 e = exp<T>(y), a = e * (e + splat(2));
            store(out + (index + k) * s.width + i, y * (a * reciprocal(a + splat(2), T())));
        }
    }
}

template <class T>
void forward(const T* x, Weights w, T* out, float* mean, float* inverse_std, Shape s) {
#pragma omp parallel num_threads(s.threads)
    {
        std::vector<float> row(2 * s.width);
        for_rows(s, [&](auto count, int64_t n, int64_t r) {
            forward_rows<T, count>(x, w, out, mean, inverse_std, s, n, r, row.data());
        });
    }
}

// Adds to dbias, dgain and dshift, which follow one another with `all` numbers each.
template <class T, int R>
void backward_rows(const T* dout, const T* x, Weights w, const float* mean, const float* inverse_std, T* dx,
                   float* dbias, Shape s, int64_t n, int64_t r, float* normed_row, float* row) {
    const int64_t index = n * s.rows + r, own = n * s.width, all = s.networks * s.width;
    const int64_t at = n * s.network_stride + r * s.row_stride;
    const float* factors = w.factors ? w.factors + index * s.width : nullptr;
    float *dgain = dbias + all, *dshift = dgain + all;
    __m512 sum[R] = {}, products[R] = {}, m[R], f[R];
    for (int k = 0; k < R; k++) m[k] = splat(mean[index + k]), f[k] = splat(inverse_std[index + k]);
    for (int64_t i = 0; i < s.width; i += lanes) {
        const __m512 bias = load(w.bias + own + i), gain = load(w.gain + own + i), shift = load(w.shift + own + i);
        __m512 gains = load(dgain + own + i), shifts = load(dshift + own + i);
        for (int k = 0; k < R; k++) {
            const float* own_factors = factors ? factors + k * s.width : nullptr;
            const __m512 normed = (input(x + at + k * s.row_stride, bias, own_factors, i) - m[k]) * f[k];
            const __m512 y = _mm512_fmadd_ps(normed, gain, shift);
            // mish = y a / (a + 2) with a = e (e + 2), so its slope is a / (a + 2) + 4 y e (e + 1) / (a + 2)^2
            const __m512 e = exp<T>(y), a = e * (e + splat(2));
            const __m512 q = reciprocal(a + splat(2), T());
            const __m512 slope = _mm512_fmadd_ps(splat(4) * y * e * q, (e + splat(1)) * q, a * q);
            const __m512 dy = load(dout + (index + k) * s.width + i) * slope, d = dy * gain;
            gains = _mm512_fmadd_ps(dy, normed, gains);
            shifts = shifts + dy;
            sum[k] = sum[k] + d;
            products[k] = _mm512_fmadd_ps(d, normed, products[k]);
            store(normed_row + k * s.width + i, normed);
            store(row + k * s.width + i, d);
        }
        store(dgain + own + i, gains);
        store(dshift + own + i, shifts);
    }
    for (int k = 0; k < R; k++) {
        sum[k] = splat(_mm512_reduce_add_ps(sum[k]) / s.width);
        products[k] = splat(_mm512_reduce_add_ps(products[k]) / s.width);
    }
    for (int64_t i = 0; i < s.width; i += lanes) {
        __m512 biases = load(dbias + own + i);
        for (int k = 0; k < R; k++) {
            const __m512 normed = load(normed_row + k * s.width + i);
            __m512 d = f[k] * (load(row + k * s.width + i) - sum[k] - normed * products[k]);
            if (factors) d = d * load(factors + k * s.width + i);
            biases = biases + d;
            store(dx + at + k * s.row_stride + i, d);
        }
        store(dbias + own + i, biases);
    }
}

// dx has the strides of x; sums [3, network, width] are the gradients of bias, gain and shift.
template <class T>
void backward(const T* dout, const T* x, Weights w, const float* mean, const float* inverse_std, T* dx, float* sums,
              Shape s) {
    const int64_t all = 3 * s.networks * s.width;
    std::vector<float> partial(s.threads * all, 0.f);
#pragma omp parallel num_threads(s.threads)
    {
        std::vector<float> normed_row(2 * s.width), row(2 * s.width);
        float* mine = partial.data() + omp_get_thread_num() * all;
        for_rows(s, [&](auto count, int64_t n, int64_t r) {
            backward_rows<T, count>(dout, x, w, mean, inverse_std, dx, mine, s, n, r, normed_row.data(), row.data());
        });
    }
    for (int64_t i = 0; i < all; i++) {
        sums[i] = 0;
        for (int64_t t = 0; t < s.threads; t++) sums[i] += partial[t * all + i];
    }
}

}  // namespace

extern "C" {

void norm_mish(int bf16, const void* x, const float* bias, const float* gain, const float* shift, const float* factors,
               void* out, float* stats, int64_t networks, int64_t rows, int64_t width, int64_t network_stride,
               int64_t row_stride, int64_t threads) {
    const Weights w{bias, gain, shift, factors};
    const Shape s{networks, rows, width, network_stride, row_stride, threads};
    float* inverse_std = stats + networks * rows;
    if (bf16)
        forward(static_cast<const BFloat16*>(x), w, static_cast<BFloat16*>(out), stats, inverse_std, s);
    else
        forward(static_cast<const float*>(x), w, static_cast<float*>(out), stats, inverse_std, s);
}

void norm_mish_backward(int bf16, const void* dout, const void* x, const float* bias, const float* gain,
                        const float* shift, const float* factors, const float* stats, void* dx, float* sums,
                        int64_t networks, int64_t rows, int64_t width, int64_t network_stride, int64_t row_stride,
                        int64_t threads) {
    const Weights w{bias, gain, shift, factors};
    const Shape s{networks, rows, width, network_stride, row_stride, threads};
    const float* inverse_std = stats + networks * rows;
    if (bf16)
        backward(static_cast<const BFloat16*>(dout), static_cast<const BFloat16*>(x), w, stats, inverse_std,
                 static_cast<BFloat16*>(dx), sums, s);
    else
        backward(static_cast<const float*>(dout), static_cast<const float*>(x), w, stats, inverse_std,
                 static_cast<float*>(dx), sums, s);
}
}
