// AMX: eight registers that hold tiles of 16 rows of 64 bytes, and the instructions that multiply them.
//
// Intel's manual, volume 1, chapter 18. Every thread configures the tiles before it uses them, and gives them up when it
// is done: as long as they are in use each switch of context saves 8 kB. Tests name a header with the same functions in
// plain C++, since few machines have AMX.
#pragma once

#include <cstddef>

#include "simd.h"

#ifdef TDMPC2_TILES
#include TDMPC2_TILES
#else

namespace tdmpc2::TDMPC2_VARIANT {

INLINE void configure_tiles() {
    struct alignas(64) Config {  // what LDTILECFG reads
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    static_assert(sizeof config == 64 && offsetof(Config, row_bytes) == 16 && offsetof(Config, rows) == 48);
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
INLINE void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int Tile>
INLINE void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
INLINE void load_tile(const void* from, int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Tile>
INLINE void store_tile(void* to, int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(Tile) : "memory");
}

// Sum += X * W, where a row of X has 16 words, and a row of W one word of each of 16 outputs.
template <int Sum, int X, int W>
INLINE void multiply_bytes() {  // unsigned X, signed W
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}
template <int Sum, int X, int W>
INLINE void multiply_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}

}  // namespace tdmpc2::TDMPC2_VARIANT

#endif
