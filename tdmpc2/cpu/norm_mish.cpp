// Mish of LayerNorm in one pass over each row, and its gradient in one more: what a training update does between its
// matrix products. Rows of x are [network, row, width] with any strides but that of the width; all else is contiguous.
#include <immintrin.h>
#include <omp.h>

#include <cmath>
#include <cstdint>
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

inline __m512 exp(__m512 x) {  // Cephes' expf up to 20, where Mish is the identity; within two units of the last place
    x = _mm512_max_ps(splat(-88), _mm512_min_ps(x, splat(20)));
    const __m512 n = _mm512_roundscale_ps(x * splat(1.44269504f), 0);
    __m512 r = _mm512_fnmadd_ps(n, splat(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, splat(-2.12194440e-4f), r);
    __m512 p = splat(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = _mm512_fmadd_ps(p, r, splat(c));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, r * r, r) + splat(1), n);
}

// What the networks have: all [network, width], and the factors of dropout [network, row, width], or null.
struct Weights {
    const float *bias, *gain, *shift, *factors;
};

struct Shape {
    int64_t networks, rows, width, network_stride, row_stride, threads;  // strides of x, in elements
};

template <class T>
inline __m512 input(const T* x, const float* bias, const float* factors, int64_t i) {
    const __m512 sum = load(x + i) + load(bias + i);
    return factors ? sum * load(factors + i) : sum;
}

template <class T>
void forward(const T* x, Weights w, T* out, float* mean, float* inverse_std, Shape s) {
#pragma omp parallel num_threads(s.threads)
    {
        std::vector<float> row(s.width);
#pragma omp for collapse(2)
        for (int64_t n = 0; n < s.networks; n++)
            for (int64_t r = 0; r < s.rows; r++) {
                const int64_t index = n * s.rows + r, own = n * s.width;
                const T* xr = x + n * s.network_stride + r * s.row_stride;
                const float* factors = w.factors ? w.factors + index * s.width : nullptr;
                __m512 sum = splat(0), squares = splat(0);
                for (int64_t i = 0; i < s.width; i += lanes) {
                    const __m512 v = input(xr, w.bias + own, factors, i);
                    store(row.data() + i, v);
                    sum = sum + v;
                }
                const float m = _mm512_reduce_add_ps(sum) / s.width;
                for (int64_t i = 0; i < s.width; i += lanes) {
                    const __m512 v = load(row.data() + i) - splat(m);
                    squares = _mm512_fmadd_ps(v, v, squares);
                }
                const float f = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / s.width + 1e-5f);
                mean[index] = m, inverse_std[index] = f;
                for (int64_t i = 0; i < s.width; i += lanes) {
                    const __m512 normed = (load(row.data() + i) - splat(m)) * splat(f);
                    const __m512 y = _mm512_fmadd_ps(normed, load(w.gain + own + i), load(w.shift + own + i));
                    const __m512 e = exp(y), a = e * (e + splat(2));
                    store(out + index * s.width + i, y * (a / (a + splat(2))));
                }
            }
    }
}

// dx has the strides of x; sums [3, network, width] are the gradients of bias, gain and shift.
template <class T>
void backward(const T* dout, const T* x, Weights w, const float* mean, const float* inverse_std, T* dx, float* sums,
              Shape s) {
    const int threads = s.threads;
    const int64_t all = s.networks * s.width;
    std::vector<float> partial(size_t(threads) * 3 * all, 0.f);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> normed_row(s.width), row(s.width);
        float* mine = partial.data() + size_t(omp_get_thread_num()) * 3 * all;
#pragma omp for collapse(2) schedule(static)
        for (int64_t n = 0; n < s.networks; n++)
            for (int64_t r = 0; r < s.rows; r++) {
                const int64_t index = n * s.rows + r, own = n * s.width;
                const int64_t at = n * s.network_stride + r * s.row_stride;
                const float* factors = w.factors ? w.factors + index * s.width : nullptr;
                float *dbias = mine + own, *dgain = dbias + all, *dshift = dgain + all;
                const __m512 m = splat(mean[index]), f = splat(inverse_std[index]);
                __m512 sum = splat(0), products = splat(0);
                for (int64_t i = 0; i < s.width; i += lanes) {
                    const __m512 normed = (input(x + at, w.bias + own, factors, i) - m) * f;
                    const __m512 gain = load(w.gain + own + i);
                    const __m512 y = _mm512_fmadd_ps(normed, gain, load(w.shift + own + i));
                    // mish = y a / (a + 2) with a = e (e + 2), so its slope is a / (a + 2) + 4 y e (e + 1) / (a + 2)^2
                    const __m512 e = exp(y), a = e * (e + splat(2));
                    const __m512 q = splat(1) / (a + splat(2));
                    const __m512 slope = _mm512_fmadd_ps(splat(4) * y * e * q, (e + splat(1)) * q, a * q);
                    const __m512 dy = load(dout + index * s.width + i) * slope, d = dy * gain;
                    store(dgain + i, _mm512_fmadd_ps(dy, normed, load(dgain + i)));
                    store(dshift + i, load(dshift + i) + dy);
                    sum = sum + d;
                    products = _mm512_fmadd_ps(d, normed, products);
                    store(normed_row.data() + i, normed);
                    store(row.data() + i, d);
                }
                const __m512 a = splat(_mm512_reduce_add_ps(sum) / s.width);
                const __m512 b = splat(_mm512_reduce_add_ps(products) / s.width);
                for (int64_t i = 0; i < s.width; i += lanes) {
                    __m512 d = f * (load(row.data() + i) - a - load(normed_row.data() + i) * b);
                    if (factors) d = d * load(factors + i);
                    store(dbias + i, load(dbias + i) + d);
                    store(dx + at + i, d);
                }
            }
    }
    for (int64_t i = 0; i < 3 * all; i++) {
        sums[i] = 0;
        for (int t = 0; t < threads; t++) sums[i] += partial[size_t(t) * 3 * all + i];
    }
}

}  // namespace

extern "C" {

void norm_mish(int bf16, const void* x, Weights w, void* out, float* mean, float* inverse_std, Shape s) {
    if (bf16)
        forward(static_cast<const BFloat16*>(x), w, static_cast<BFloat16*>(out), mean, inverse_std, s);
    else
        forward(static_cast<const float*>(x), w, static_cast<float*>(out), mean, inverse_std, s);
}

void norm_mish_backward(int bf16, const void* dout, const void* x, Weights w, const float* mean,
                        const float* inverse_std, void* dx, float* sums, Shape s) {
    if (bf16)
        backward(static_cast<const BFloat16*>(dout), static_cast<const BFloat16*>(x), w, mean, inverse_std,
                 static_cast<BFloat16*>(dx), sums, s);
    else
        backward(static_cast<const float*>(dout), static_cast<const float*>(x), w, mean, inverse_std,
                 static_cast<float*>(dx), sums, s);
}
}
