// Matrix products of a tile of rows with packed weights: one way for each shape of the instructions of matmul.h.
#pragma once

#include "matmul.h"
#include "tiles.h"

namespace tdmpc2::TDMPC2_VARIANT {

// Outputs from j on of a row: scale * sum + offset * sums + bias, in float32.
template <Element E>
INLINE void store_outputs(const Layer& layer, const Rows& x, int r, int j, Integers sum, const float* bias,
                          const Rows& out) {
    const bool floats = E == FLOAT || E == PAIR_OF_BF16;
    const Vector total = floats ? (Vector)sum : __builtin_convertvector(sum, Vector);
    const Vector scale = native(x.step[r]) * load_as<Vector>(layer.scale + j);
    const Vector fixed = fma(native(x.offset[r]), load_as<Vector>(layer.sums + j), load_as<Vector>(bias + j));
    store_as(out.row(r) + j, fma(total, scale, fixed));
}

template <Element E>
INLINE const int32_t* weights_of(const Layer& layer, int column) {
    return static_cast<const int32_t*>(layer.weight) + size_t(column) * words_of_column(E, layer.in);
}

// -- vectors ----------------------------------------------------------------------------------------------------------

// Rows of a block: the sums, the weights and one input (g++ for ARM: all inputs) fill the registers.
#if defined(__ARM_NEON)
constexpr int block_height = 5;
#else
constexpr int block_height = 6;
#endif
constexpr int pairs_height = 4;

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

// R rows from `row` on times one panel of outputs.
template <Element E, int R>
__attribute__((noinline)) void block(const Layer& layer, const Rows& x, int row, int column, const float* bias,
                                     const Rows& out) {
    constexpr int V = panel_vectors;
    const int words = words_of(E, layer.in);
    const int32_t *weight = weights_of<E>(layer, column), *codes = x.code(row);
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
    for (int i = 0; i < V * R; i++)
        store_outputs<E>(layer, x, row + i / V, column + i % V * native_lanes, sum[i], bias, out);
}

// -- pairs ------------------------------------------------------------------------------------------------------------

typedef double Doubles __attribute__((vector_size(4 * native_lanes)));  // two words each, as the compilers move them best

// sum [2, 2] += x [2 rows, 2 words] * weight [2 outputs, 2 words]^T
template <Element E>
INLINE void multiply_pairs(Integers& sum, Integers x, Integers weight) {
    if constexpr (E == BYTES) asm("usmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(x), "w"(weight));
    if constexpr (E == PAIR_OF_BF16) asm("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(x), "w"(weight));
}

// R rows from `row` on times one panel of outputs; an odd last row is its own partner.
template <Element E, int R>
__attribute__((noinline)) void block_of_pairs(const Layer& layer, const Rows& x, int row, int column,
                                              const float* bias, const Rows& out) {
    constexpr int P = (R + 1) / 2, V = panel / 2;
    const int words = words_of(E, layer.in);
    const int32_t *weight = weights_of<E>(layer, column), *codes = x.code(row);
    Integers sum[V * P] = {};
    for (int k = 0; k < words; k += 2, weight += 2 * panel) {
        Integers two[P];
#pragma GCC unroll 3
        for (int p = 0; p < P; p++) {
            const int32_t *upper = codes + size_t(2 * p) * x.stride + k, *lower = 2 * p + 1 < R ? upper + x.stride : upper;
            two[p] = (Integers)Doubles{load_as<double>(upper), load_as<double>(lower)};
        }
#pragma GCC unroll 24
        for (int i = 0; i < V * P; i++) multiply_pairs<E>(sum[i], two[i / V], load_as<Integers>(weight + i % V * 4));
    }
#pragma GCC unroll 12
    for (int i = 0; i < V * P; i += 2) {
        const auto left = (Doubles)sum[i], right = (Doubles)sum[i + 1];
        const int r = i / V * 2, j = column + i % V * 2;
        store_outputs<E>(layer, x, row + r, j, (Integers)Doubles{left[0], right[0]}, bias, out);
        if (r + 1 < R) store_outputs<E>(layer, x, row + r + 1, j, (Integers)Doubles{left[1], right[1]}, bias, out);
    }
}

// -- tiles ------------------------------------------------------------------------------------------------------------

template <Element E, int Sum, int X, int W>
INLINE void multiply_tiles() {
    if constexpr (E == BYTES) multiply_bytes<Sum, X, W>();
    if constexpr (E == PAIR_OF_BF16) multiply_bf16<Sum, X, W>();
}

// Up to 16 R rows from `row` on times 32 outputs. Sums are the tiles 0 to 3, rows 4 and 5, weights 6 and 7.
template <Element E, int R>
__attribute__((noinline)) void block_of_tiles(const Layer& layer, const Rows& x, int row, int count, int column,
                                              const float* bias, const Rows& out) {
    constexpr int side = 16, words_of_tile = 16;
    constexpr int64_t weight_bytes = panel * sizeof(int32_t);
    const int64_t code_bytes = x.stride * int64_t(sizeof(int32_t));
    const int words = words_of(E, layer.in);
    const int32_t *weight = weights_of<E>(layer, column / panel * panel) + column % panel, *codes = x.code(row);
    clear_tile<0>(), clear_tile<1>();
    if constexpr (R == 2) clear_tile<2>(), clear_tile<3>();
    for (int k = 0; k < words; k += words_of_tile, codes += words_of_tile, weight += words_of_tile * panel) {
        load_tile<4>(codes, code_bytes);
        load_tile<6>(weight, weight_bytes);
        load_tile<7>(weight + side, weight_bytes);
        multiply_tiles<E, 0, 4, 6>(), multiply_tiles<E, 1, 4, 7>();
        if constexpr (R == 2) {
            load_tile<5>(codes + size_t(side) * x.stride, code_bytes);
            multiply_tiles<E, 2, 5, 6>(), multiply_tiles<E, 3, 5, 7>();
        }
    }
    alignas(64) int32_t sums[R * side][2 * side];
    store_tile<0>(sums[0], sizeof sums[0]), store_tile<1>(sums[0] + side, sizeof sums[0]);
    if constexpr (R == 2) store_tile<2>(sums[side], sizeof sums[0]), store_tile<3>(sums[side] + side, sizeof sums[0]);
    for (int r = 0; r < count; r++)
        for (int j = 0; j < 2 * side; j += native_lanes)
            store_outputs<E>(layer, x, row + r, column + j, load_as<Integers>(sums[r] + j), bias, out);
}

// -- all of them ------------------------------------------------------------------------------------------------------

// A block of this many rows, at most R.
template <Element E, int R>
void some_rows(int rows, const Layer& layer, const Rows& x, int row, int column, const float* bias, const Rows& out) {
    if (rows == R) {
        if constexpr (shape_of(E) == PAIRS) return block_of_pairs<E, R>(layer, x, row, column, bias, out);
        else return block<E, R>(layer, x, row, column, bias, out);
    }
    if constexpr (R > 1) some_rows<E, R - 1>(rows, layer, x, row, column, bias, out);
}

template <Element E>
void product_of(const Layer& layer, const Rows& x, int count, const float* bias, const Rows& out) {
    if constexpr (shape_of(E) == TILES) {
        for (int column = 0; column < round_up(layer.out, panel); column += 32)
            for (int row = 0, rows; row < count; row += rows) {
                rows = std::min(32, count - row);
                if (rows > 16) block_of_tiles<E, 2>(layer, x, row, rows, column, bias, out);
                else block_of_tiles<E, 1>(layer, x, row, rows, column, bias, out);
            }
        return;
    }
    constexpr int height = shape_of(E) == PAIRS ? pairs_height : shape_of(E) == TILES ? 1 : block_height;
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
