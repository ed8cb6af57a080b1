// Matrix products of a tile of rows with packed weights, in float32, bf16 or int8.
//
// A "word" is four bytes of one row: one float32, two bf16 or four uint8 inputs. One instruction multiplies a word of a
// row with the words of 16 outputs and adds up, so the three formats share everything but that instruction.
// Weights are packed as [out / 64, words, 64 words]; all per-output vectors are zero-padded to a multiple of 64.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

#ifdef __clang__
#error "needs g++: clang would bring a second OpenMP runtime beside torch's"
#endif

namespace tdmpc2 {

enum Format : int32_t { FP32, BF16, INT8 };

constexpr int lanes = 16, panel = 64;

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int inputs_per_word(Format format) { return format == INT8 ? 4 : format == BF16 ? 2 : 1; }
inline __mmask16 first(int count) { return count >= lanes ? 0xffff : (1u << count) - 1; }

// One affine map and what follows it; tdmpc2/acceleration/cpu/networks.py holds the same structure.
struct Layer {
    int32_t format, in, out, activation;
    const void* weight;
    const float* scale;   // of the weights, [out]
    const float* sums;    // of the scaled weights of each output, [out]
    const float* bias;    // [out]
    const float* gain;    // of the LayerNorm, [out]; null: none
    const float* shift;   // [out]
    const float* latent;  // first layers: the weights of each part of the input in float32, [part, out padded to 64]
    const float* task;
    const float* action;
};

// Uninitialised memory aligned to cache lines.
template <class T>
struct Buffer {
    explicit Buffer(size_t count) : data(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    T* const data;
};

// A tile of rows: float32 values, and the same values encoded as input of a product.
struct Rows {
    // The rows are a few bytes longer than needed, so that wide ones do not all start in the same set of the cache.
    Rows(int rows, int width, int bytes)
        : stride(round_up(width, panel) + lanes), code_stride(stride * bytes / 4), values(size_t(rows) * stride),
          codes(size_t(rows) * code_stride), step(rows), offset(rows) {}

    float* row(int r) const { return values.data + size_t(r) * stride; }
    int32_t* code(int r) const { return codes.data + size_t(r) * code_stride; }

    const int stride, code_stride;  // in floats and in words
    Buffer<float> values;
    Buffer<int32_t> codes;
    Buffer<float> step, offset;  // value = offset + step * code; 0 and 1 but for int8
};

// Encode the first `width` values of each row; the rest of the last vector becomes zero.
inline void encode(const Rows& rows, int count, int width, Format format) {
    for (int r = 0; r < count; r++) {
        const float* x = rows.row(r);
        auto* code = reinterpret_cast<char*>(rows.code(r));
        rows.step.data[r] = 1, rows.offset.data[r] = 0;
        if (format == FP32) {
            for (int i = 0; i < width; i += lanes)
                _mm512_store_ps(code + 4 * i, _mm512_maskz_load_ps(first(width - i), x + i));
        } else if (format == BF16) {
            for (int i = 0; i < width; i += lanes)
                _mm256_store_si256(reinterpret_cast<__m256i*>(code + 2 * i),
                                   (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_load_ps(first(width - i), x + i)));
        } else {
            __m512 low = _mm512_set1_ps(x[0]), high = low;
            __mmask16 nan = 0;
            for (int i = 0; i < width; i += lanes) {
                const __m512 v = _mm512_mask_load_ps(low, first(width - i), x + i);
                nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
                low = _mm512_min_ps(low, v), high = _mm512_max_ps(high, v);
            }
            // The minimum of a number and NaN may be either, and codes know no NaN: the offset makes all products NaN.
            const float offset = nan ? NAN : _mm512_reduce_min_ps(low), range = _mm512_reduce_max_ps(high) - offset;
            const __m512 inverse = _mm512_set1_ps(range > 1e-30f ? 255 / range : 0);
            for (int i = 0; i < width; i += lanes) {
                const __m512 v = (_mm512_load_ps(x + i) - _mm512_set1_ps(offset)) * inverse;
                const __m512i q = _mm512_maskz_cvtps_epi32(first(width - i), v);  // to nearest, half to even
                _mm_store_si128(reinterpret_cast<__m128i*>(code + i), _mm512_cvtusepi32_epi8(q));
            }
            rows.step.data[r] = range / 255, rows.offset.data[r] = offset;
        }
    }
}

// sum += weight * x. Written out because g++ copies and spills the sums when it is given the intrinsics.
template <Format F>
inline void multiply_add(__m512i& sum, __m512i weight, __m512i x) {
    if constexpr (F == INT8) asm("vpdpbusd %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
    if constexpr (F == BF16) asm("vdpbf16ps %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
    if constexpr (F == FP32) asm("vfmadd231ps %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
}

// R rows from `row` on times one panel of 64 outputs: out = scale * sum + offset * sums + bias, in float32.
template <Format F, int R>
__attribute__((noinline)) void block(const Layer& layer, const Rows& x, int row, int column, const float* bias,
                                     const Rows& out) {
    const int words = (layer.in + inputs_per_word(F) - 1) / inputs_per_word(F);
    const auto* weight = static_cast<const __m512i*>(layer.weight) + size_t(column) / lanes * words;
    const int32_t* codes = x.code(row);
    __m512i sum[4 * R];  // loops over all of them at once, or g++ leaves them in memory
#pragma GCC unroll 24
    for (int i = 0; i < 4 * R; i++) sum[i] = _mm512_setzero_si512();
    for (int k = 0; k < words; k++, weight += 4) {
        const __m512i w[4] = {weight[0], weight[1], weight[2], weight[3]};
#pragma GCC unroll 24
        for (int i = 0; i < 4 * R; i++)
            multiply_add<F>(sum[i], w[i % 4], _mm512_set1_epi32(codes[size_t(i / 4) * x.code_stride + k]));
    }
#pragma GCC unroll 24
    for (int i = 0; i < 4 * R; i++) {
        const int r = row + i / 4, j = column + i % 4 * lanes;
        const __m512 total = F == INT8 ? _mm512_cvtepi32_ps(sum[i]) : (__m512)sum[i];
        const __m512 scale = _mm512_set1_ps(x.step.data[r]) * _mm512_load_ps(layer.scale + j);
        const __m512 offset = _mm512_set1_ps(x.offset.data[r]);
        const __m512 fixed = _mm512_fmadd_ps(offset, _mm512_load_ps(layer.sums + j), _mm512_load_ps(bias + j));
        _mm512_store_ps(out.row(r) + j, _mm512_fmadd_ps(total, scale, fixed));
    }
}

// The largest block of at most R rows.
template <Format F, int R>
void some_rows(int rows, const Layer& layer, const Rows& x, int row, int column, const float* bias, const Rows& out) {
    if (rows >= R) return block<F, R>(layer, x, row, column, bias, out);
    if constexpr (R > 1) some_rows<F, R - 1>(rows, layer, x, row, column, bias, out);
}

template <Format F>
void product(const Layer& layer, const Rows& x, int count, const float* bias, const Rows& out) {
    constexpr int height = 6;  // 6 x 4 sums, 4 weights and one input fill the 32 registers
    for (int column = 0; column < layer.out; column += panel)  // a panel of weights stays in the nearest caches
        for (int row = 0; row < count; row += height)
            some_rows<F, height>(count - row, layer, x, row, column, bias, out);
}

// Values of `out` = codes of `x` times weight^T plus bias; both may be the same rows.
inline void product(const Layer& layer, const Rows& x, int count, const float* bias, const Rows& out) {
    if (layer.format == INT8) return product<INT8>(layer, x, count, bias, out);
    if (layer.format == BF16) return product<BF16>(layer, x, count, bias, out);
    product<FP32>(layer, x, count, bias, out);
}

}  // namespace tdmpc2
