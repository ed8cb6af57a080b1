// What the matrix products of product.h take: packed weights and encoded rows.
//
// A "word" is four bytes of one row: as many inputs as fit into it. One instruction multiplies words of rows with the
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
#elif defined(__ARM_FEATURE_MATMUL_INT8) && !defined(TDMPC2_SCALAR)
constexpr int panel_vectors = 4;
constexpr Element elements[] = {FLOAT, PAIR_OF_BF16, BYTES, INTEGER};
#elif defined(__ARM_FEATURE_DOTPROD) && !defined(TDMPC2_SCALAR)
constexpr int panel_vectors = 4;
constexpr Element elements[] = {FLOAT, FLOAT, BYTES, INTEGER};
#else
constexpr int panel_vectors = 4;
constexpr Element elements[] = {FLOAT, FLOAT, INTEGER, INTEGER};
#endif
constexpr int panel = panel_vectors * native_lanes;

// Which instruction multiplies: by default one word of one row with words of a vector of outputs. AMX multiplies tiles, 16
// words of 16 rows with those of 16 outputs; i8mm and bf16 of ARM two words of two rows with those of two outputs.
enum Shape { VECTORS, TILES, PAIRS };
constexpr Shape shape_of(Element e) {
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
    if (e == BYTES || e == PAIR_OF_BF16) return TILES;
#elif defined(__ARM_FEATURE_MATMUL_INT8) && !defined(TDMPC2_SCALAR)
    if (e == BYTES || e == PAIR_OF_BF16) return PAIRS;
#endif
    return VECTORS;
}
constexpr int tile_height = shape_of(BYTES) == TILES ? 16 : 1;  // rows that are read, whether they count or not

// Signed products of bytes take codes that are this much smaller, and sums begin with as many times the weights.
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int less = 128;
#else
constexpr int less = 0;
#endif
constexpr bool starts_with_sums(Element e) { return e == BYTES && less; }

// -- packing ----------------------------------------------------------------------------------------------------------

INLINE int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
// Words of a row, as many as whole instructions take; weights beyond the row are zero.
INLINE int words_of(Element e, int in) {
    const int together = shape_of(e) == TILES ? 16 : shape_of(e) == PAIRS ? 2 : 1;
    return round_up((in + per_word(e) - 1) / per_word(e), together);
}
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

// Where a word of an output of a panel stands: two words of two outputs are together for products of pairs.
template <Element E>
INLINE int place(int word, int output) {
    if constexpr (shape_of(E) == PAIRS) return word / 2 * 2 * panel + output / 2 * 4 + output % 2 * 2 + word % 2;
    return word * panel + output;
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
        const int whole = column + panel <= out ? in / count : 0, words = words_of(E, in);
        for (int k = 0; k < whole; k++)  // words that are full, of all outputs
            for (int j = 0; j < panel; j++)
                packed[place<E>(k, j)] = word_of<E>(first + size_t(j) * in + k * count, count, format);
        for (int k = whole; k < words; k++)
            for (int j = 0; j < panel; j++) {
                const int left = column + j < out ? std::max(0, std::min(count, in - k * count)) : 0;
                packed[place<E>(k, j)] = word_of<E>(first + size_t(j) * in + k * count, left, format);
            }
        packed += size_t(words) * panel;
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
          codes(arena.take<int32_t>(size_t(round_up(rows, tile_height)) * stride)), step(arena.take<float>(rows)),
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

// Encode the first `width` values of a row; the rest of the last word that is multiplied becomes zero.
template <Element E>
INLINE void encode_floats(const float* x, int width, char* code) {
    for (int i = 0; i < words_of(E, width) * per_word(E); i += lanes) {
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

}  // namespace tdmpc2::TDMPC2_VARIANT
