// Matrix products of a tile of rows with packed weights.
//
// A "word" is four bytes of one row: as many inputs as fit into it. One instruction multiplies a word of a row with the
// words of several outputs and adds up, so the formats share everything but that instruction, and the instruction sets
// everything but what they have for it: float32 sums inputs in order, integer sums are exact, so that but for products of
// bf16 all give the same bits. Weights are packed as [out / panel, words, panel words].
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

namespace tdmpc2::TDMPC2_VARIANT {

// -- what the instruction set has -------------------------------------------------------------------------------------

// Elements of words. A product of bytes is of unsigned inputs with signed weights.
enum Element { FLOAT, PAIR_OF_BF16, BYTES, PAIR_OF_SHORTS, INTEGER };

constexpr int per_word(Element e) { return e == BYTES ? 4 : e == PAIR_OF_BF16 || e == PAIR_OF_SHORTS ? 2 : 1; }

#if defined(__AVX512F__)
constexpr int panel_vectors = 4;
#if defined(__AVX512BF16__)
constexpr Element elements[] = {FLOAT, PAIR_OF_BF16, BYTES, PAIR_OF_SHORTS};  // by format
#else
constexpr Element elements[] = {FLOAT, FLOAT, BYTES, PAIR_OF_SHORTS};
#endif
#elif defined(__AVX2__)
constexpr int panel_vectors = 2;
#if defined(__AVXVNNI__)
constexpr Element elements[] = {FLOAT, FLOAT, BYTES, PAIR_OF_SHORTS};
#else
constexpr Element elements[] = {FLOAT, FLOAT, PAIR_OF_SHORTS, PAIR_OF_SHORTS};
#endif
#elif defined(__ARM_FEATURE_DOTPROD) && !defined(TDMPC2_SCALAR)
constexpr int panel_vectors = 4;
constexpr Element elements[] = {FLOAT, FLOAT, BYTES, INTEGER};
#else
constexpr int panel_vectors = 4;
constexpr Element elements[] = {FLOAT, FLOAT, INTEGER, INTEGER};
#endif
// Rows of a block: the sums, the weights and one input (g++ for ARM: all inputs) fill the registers.
#if defined(__ARM_NEON)
constexpr int height = 5;
#else
constexpr int height = 6;
#endif
constexpr int panel = panel_vectors * native_lanes;

// sum += weight * x. Written out where one instruction does it, because g++ copies and spills the sums when it is given
// the intrinsics.
template <Element E>
INLINE void multiply_add(Integers& sum, Integers weight, Integers x) {
#if defined(__AVX512F__)
    if constexpr (E == FLOAT) asm("vfmadd231ps %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
    if constexpr (E == PAIR_OF_BF16) asm("vdpbf16ps %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
    if constexpr (E == BYTES) asm("vpdpbusd %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
    if constexpr (E == PAIR_OF_SHORTS) asm("vpdpwssd %1, %2, %0" : "+v"(sum) : "v"(weight), "v"(x));
#elif defined(__AVX2__)
    if constexpr (E == FLOAT) asm("vfmadd231ps %1, %2, %0" : "+x"(sum) : "x"(weight), "x"(x));
#if defined(__AVXVNNI__)
    if constexpr (E == BYTES) asm("%{vex%} vpdpbusd %1, %2, %0" : "+x"(sum) : "x"(weight), "x"(x));
    if constexpr (E == PAIR_OF_SHORTS) asm("%{vex%} vpdpwssd %1, %2, %0" : "+x"(sum) : "x"(weight), "x"(x));
#else
    if constexpr (E == PAIR_OF_SHORTS) sum += (Integers)_mm256_madd_epi16((__m256i)weight, (__m256i)x);
#endif
#else
    if constexpr (E == INTEGER) sum += weight * x;
#if defined(TDMPC2_SCALAR) || !defined(__ARM_NEON)
    if constexpr (E == FLOAT) sum = (Integers)fma((Vector)weight, (Vector)x, (Vector)sum);
#else
    if constexpr (E == FLOAT) asm("fmla %0.4s, %1.4s, %2.4s" : "+w"(sum) : "w"(weight), "w"(x));
#if defined(__ARM_FEATURE_DOTPROD)
    if constexpr (E == BYTES) asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(weight), "w"(x));
#endif
#endif
#endif
}

// Signed products of bytes take codes that are this much smaller, and sums begin with as many times the weights.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int less = 128;
#else
constexpr int less = 0;
#endif
constexpr bool starts_with_sums(Element e) { return e == BYTES && less; }

// -- packing ----------------------------------------------------------------------------------------------------------

INLINE int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE int words_of(Element e, int in) { return (in + per_word(e) - 1) / per_word(e); }
INLINE int words_of_column(Element e, int in) { return words_of(e, in) + starts_with_sums(e); }

INLINE int64_t packed_bytes(int format, int in, int out) {
    return int64_t(round_up(out, panel)) * words_of_column(elements[format], in) * 4;
}

INLINE uint32_t bf16_of(float x) { return uint32_t(bf16_bits(native(x))[0]); }

// One weight as it stands in a word; beyond the matrix zero.
template <Element E, class From>
INLINE uint32_t element_of(From x, int format) {
    if constexpr (E == FLOAT) {
        const uint32_t rounded = bf16_of(float(x)) << 16;
        return format == BF16 ? rounded : load_as<uint32_t>(&x);
    }
    if constexpr (E == PAIR_OF_BF16) return bf16_of(float(x));
    if constexpr (E == BYTES) return uint8_t(int(x));
    if constexpr (E == PAIR_OF_SHORTS) return uint16_t(int(x));
    return uint32_t(int(x));
}

// A word of `count` weights of one output.
template <Element E, class From>
INLINE uint32_t word_of(const From* weight, int count, int format) {
    uint32_t word = 0;
    for (int k = 0; k < count; k++) word |= element_of<E>(weight[k], format) << (k * 32 / per_word(E));
    return word;
}

template <Element E, class From>
void pack_as(int format, int in, int out, const From* weight, uint32_t* packed) {
    constexpr int count = per_word(E);
    for (int column = 0; column < out; column += panel) {
        for (int j = column; starts_with_sums(E) && j < column + panel; j++) {
            int sum = 0;
            for (int i = 0; j < out && i < in; i++) sum += int(weight[size_t(j) * in + i]);
            *packed++ = uint32_t(less * sum);
        }
        const From* first = weight + size_t(column) * in;
        const int whole = column + panel <= out ? in - in % count : 0;  // inputs that fill words of all outputs
        for (int i = 0; i < whole; i += count)
            for (int j = 0; j < panel; j++) *packed++ = word_of<E>(first + size_t(j) * in + i, count, format);
        for (int i = whole; i < in; i += count)
            for (int j = 0; j < panel; j++) {
                const int left = column + j < out ? std::min(count, in - i) : 0;
                *packed++ = word_of<E>(first + size_t(j) * in + i, left, format);
            }
    }
}

inline void pack(int format, int in, int out, const void* weight, void* packed) {
    auto* to = static_cast<uint32_t*>(packed);
    if (format == FP32) pack_as<elements[FP32]>(format, in, out, static_cast<const float*>(weight), to);
    if (format == BF16) pack_as<elements[BF16]>(format, in, out, static_cast<const float*>(weight), to);
    if (format == INT8) pack_as<elements[INT8]>(format, in, out, static_cast<const int8_t*>(weight), to);
    if (format == INT12) pack_as<elements[INT12]>(format, in, out, static_cast<const int8_t*>(weight), to);
}

// -- rows -------------------------------------------------------------------------------------------------------------

// Hands out parts of one block of memory; without one it only counts the bytes.
struct Arena {
    template <class T>
    T* take(size_t count) {
        T* const start = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += (count * sizeof(T) + 63) / 64 * 64;
        return start;
    }
    char* base;
    size_t used = 0;
};

// A tile of rows: float32 values, and the same values encoded as inputs of a product.
struct Rows {
    // The rows are a few bytes longer than needed, so that wide ones do not all start in the same set of the cache.
    Rows(Arena& arena, int rows, int width)
        : stride(round_up(width, padding) + lanes), values(arena.take<float>(size_t(rows) * stride)),
          codes(arena.take<int32_t>(size_t(rows) * stride)), step(arena.take<float>(rows)),
          offset(arena.take<float>(rows)) {}

    float* row(int r) const { return values + size_t(r) * stride; }
    int32_t* code(int r) const { return codes + size_t(r) * stride; }

    const int stride;  // in floats and in words
    float* const values;
    int32_t* const codes;
    float *const step, *const offset;  // value = offset + step * code; 1 and 0 but for integers
};

// The largest code: 12 bits, or as many as keep a sum of `in` products within 31.
INLINE int largest_code(int format, int in) {
    int largest = format == INT8 ? 255 : 4095;
    while (largest > 255 && int64_t(largest) * in * 127 > 0x7fffffff) largest /= 2;
    return largest;
}

// Write one vector of codes; of integers the low bits count.
template <Element E>
INLINE void store_codes(char* to, Ints x) {
#pragma GCC unroll 4
    for (int i = 0; i < parts; i++) {
        const Unsigned part = (Unsigned)x.part[i];
        if constexpr (E == FLOAT) store_as(to + 4 * i * native_lanes, part);
        if constexpr (E == INTEGER) store_as(to + 4 * i * native_lanes, part & 0xffff);
        if constexpr (E == PAIR_OF_SHORTS)
            store_as(to + 2 * i * native_lanes, __builtin_convertvector(part & 0xffff, Shorts));
        if constexpr (E == BYTES)
            store_as(to + i * native_lanes, __builtin_convertvector((part - uint32_t(less)) & 0xff, Bytes));
    }
}

// Encode the first `width` values of a row; the rest of the last vector becomes zero.
template <Element E>
INLINE void encode_floats(const float* x, int width, char* code) {
    for (int i = 0; i < width; i += lanes) {
        const Floats v = select(first(width - i), load(x + i), splat(0));
        if constexpr (E == PAIR_OF_BF16) store(reinterpret_cast<BFloat16*>(code) + i, v);
        else store(reinterpret_cast<float*>(code) + i, v);
    }
}
inline void round_to_bf16(float* x, int width) {
    for (int i = 0; i < width; i += lanes)
        store(x + i, each_part<Floats>([&](int k) __attribute__((always_inline)) {
                  return (Vector)(bf16_bits(load(x + i).part[k]) << 16);
              }));
}
template <Element E>
INLINE void encode_integers(const float* x, int width, int largest, char* code, float& step, float& offset) {
    Floats low = splat(x[0]), high = low;
    Ints nan = unordered(low);
    const auto look = [&](Floats v) __attribute__((always_inline)) {
        nan = nan | unordered(v), low = minimum(v, low), high = maximum(v, high);
    };
    int i = 0;
    for (; i + lanes <= width; i += lanes) look(load(x + i));
    if (i < width) look(select(first(width - i), load(x + i), splat(x[0])));
    // Codes know no NaN: the offset makes all products NaN.
    offset = any(nan) ? NAN : reduce_min(low);
    const float range = reduce_max(high) - offset;
    const Floats inverse = splat(range > 1e-30f ? float(largest) / range : 0);
    step = range / float(largest);
    for (i = 0; i < width; i += lanes)  // codes beyond the width meet weights that are zero
        store_codes<E>(code + i * 4 / per_word(E), bits((load(x + i) - splat(offset)) * inverse + splat(rounding)));
}

// Encode the first `width` values of each row.
inline void encode(const Rows& rows, int count, int width, Format format) {
    for (int r = 0; r < count; r++) {
        const float* x = rows.row(r);
        auto* code = reinterpret_cast<char*>(rows.code(r));
        rows.step[r] = 1, rows.offset[r] = 0;
        if (format == FP32) encode_floats<FLOAT>(x, width, code);
        if (format == BF16) {
            encode_floats<elements[BF16]>(x, width, code);
            if (elements[BF16] == FLOAT) round_to_bf16(reinterpret_cast<float*>(code), width);
        }
        const int largest = largest_code(format, width);
        if (format == INT8) encode_integers<elements[INT8]>(x, width, largest, code, rows.step[r], rows.offset[r]);
        if (format == INT12) encode_integers<elements[INT12]>(x, width, largest, code, rows.step[r], rows.offset[r]);
    }
}

// -- products ---------------------------------------------------------------------------------------------------------

// R rows from `row` on times one panel of outputs: out = scale * sum + offset * sums + bias, in float32.
template <Element E, int R>
__attribute__((noinline)) void block(const Layer& layer, const Rows& x, int row, int column, const float* bias,
                                     const Rows& out) {
    constexpr int V = panel_vectors;
    const int words = words_of(E, layer.in);
    const auto* weight = static_cast<const int32_t*>(layer.weight) + size_t(column) * words_of_column(E, layer.in);
    const int32_t* codes = x.code(row);
    Integers sum[V * R];  // loops over all of them at once, or g++ leaves them in memory
#pragma GCC unroll 24
    for (int i = 0; i < V * R; i++)
        sum[i] = starts_with_sums(E) ? load_as<Integers>(weight + i % V * native_lanes) : Integers{};
    if (starts_with_sums(E)) weight += panel;
    for (int k = 0; k < words; k++, weight += panel) {
        Integers w[V];
#pragma GCC unroll 4
        for (int i = 0; i < V; i++) w[i] = load_as<Integers>(weight + i * native_lanes);
#pragma GCC unroll 24
        for (int i = 0; i < V * R; i++)
            multiply_add<E>(sum[i], w[i % V], native(codes[size_t(i / V) * x.stride + k]));
    }
#pragma GCC unroll 24
    for (int i = 0; i < V * R; i++) {
        const int r = row + i / V, j = column + i % V * native_lanes;
        const bool floats = E == FLOAT || E == PAIR_OF_BF16;
        const Vector total = floats ? (Vector)sum[i] : __builtin_convertvector(sum[i], Vector);
        const Vector scale = native(x.step[r]) * load_as<Vector>(layer.scale + j);
        const Vector fixed = fma(native(x.offset[r]), load_as<Vector>(layer.sums + j), load_as<Vector>(bias + j));
        store_as(out.row(r) + j, fma(total, scale, fixed));
    }
}

// A block of this many rows, at most R.
template <Element E, int R>
void some_rows(int rows, const Layer& layer, const Rows& x, int row, int column, const float* bias, const Rows& out) {
    if (rows == R) return block<E, R>(layer, x, row, column, bias, out);
    if constexpr (R > 1) some_rows<E, R - 1>(rows, layer, x, row, column, bias, out);
}

template <Element E>
void product_of(const Layer& layer, const Rows& x, int count, const float* bias, const Rows& out) {
    for (int column = 0; column < layer.out; column += panel)  // a panel of weights stays in the nearest caches
        for (int row = 0, blocks = (count + height - 1) / height, rows; blocks > 0; blocks--, row += rows) {
            rows = (count - row + blocks - 1) / blocks;  // blocks of a single row would waste the time of several
            some_rows<E, height>(rows, layer, x, row, column, bias, out);
        }
}

// Values of `out` = codes of `x` times weight^T plus bias; both may be the same rows.
inline void product(const Layer& layer, const Rows& x, int count, const float* bias, const Rows& out) {
    if (layer.format == FP32) product_of<elements[FP32]>(layer, x, count, bias, out);
    if (layer.format == BF16) product_of<elements[BF16]>(layer, x, count, bias, out);
    if (layer.format == INT8) product_of<elements[INT8]>(layer, x, count, bias, out);
    if (layer.format == INT12) product_of<elements[INT12]>(layer, x, count, bias, out);
}

}  // namespace tdmpc2::TDMPC2_VARIANT
