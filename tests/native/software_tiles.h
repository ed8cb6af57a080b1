// The functions of tiles.h in plain C++, by the pseudocode of Intel's manual (volume 2: LDTILECFG, TDPBUSD, TDPBF16PS), for
// processors without AMX. Each thread has its tiles between configure_tiles and release_tiles, and none besides.
#include <cstdlib>
#include <cstring>

namespace tdmpc2::TDMPC2_VARIANT {

struct SoftwareTiles {
    uint32_t word[8][16][16];
    bool configured;
};
inline thread_local SoftwareTiles software_tiles;

inline SoftwareTiles& configured_tiles() {
    if (!software_tiles.configured) std::abort();  // the processor would raise an exception
    return software_tiles;
}

inline void configure_tiles() {
    std::memset(&software_tiles, 0, sizeof software_tiles);
    software_tiles.configured = true;
}
inline void release_tiles() { std::memset(&software_tiles, 0, sizeof software_tiles); }

template <int Tile>
void clear_tile() {
    std::memset(configured_tiles().word[Tile], 0, sizeof software_tiles.word[Tile]);
}
template <int Tile>
void load_tile(const void* from, int64_t row_bytes) {
    for (int r = 0; r < 16; r++)
        std::memcpy(configured_tiles().word[Tile][r], static_cast<const char*>(from) + r * row_bytes, 64);
}
template <int Tile>
void store_tile(void* to, int64_t row_bytes) {
    for (int r = 0; r < 16; r++)
        std::memcpy(static_cast<char*>(to) + r * row_bytes, configured_tiles().word[Tile][r], 64);
}

template <int Sum, int X, int W>
void multiply_bytes() {
    SoftwareTiles& t = configured_tiles();
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++)
                for (int byte = 0; byte < 32; byte += 8)
                    t.word[Sum][m][n] += uint32_t(int(uint8_t(t.word[X][m][k] >> byte)) *
                                                  int(int8_t(t.word[W][k][n] >> byte)));
}

// Of a pair of bf16 numbers, the one at this bit; numbers below 2^-126 are zero.
inline float software_bf16(uint32_t word, int bit) {
    uint32_t bits = word >> bit << 16;
    if (!(bits & 0x7f800000)) bits &= 0x80000000;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

template <int Sum, int X, int W>
void multiply_bf16() {
    SoftwareTiles& t = configured_tiles();
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float total[2] = {}, sum;
            for (int k = 0; k < 16; k++)
                for (int i = 0; i < 2; i++)
                    total[i] = __builtin_fmaf(software_bf16(t.word[X][m][k], 16 * i),
                                              software_bf16(t.word[W][k][n], 16 * i), total[i]);
            std::memcpy(&sum, &t.word[Sum][m][n], sizeof sum);
            sum += total[0] + total[1];
            std::memcpy(&t.word[Sum][m][n], &sum, sizeof sum);
        }
}

}  // namespace tdmpc2::TDMPC2_VARIANT
