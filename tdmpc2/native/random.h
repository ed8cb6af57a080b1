// Random numbers that follow from a place and not from what was drawn before: the generator is Philox 4x32-10 (Salmon et
// al., "Parallel random numbers: as easy as 1, 2, 3", 2011), its key the seed, its counter the place. So any thread may
// draw any of them, and all arithmetic is IEEE 754 in one order, so that every processor draws the same bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "exponential.h"

namespace tdmpc2 {

enum Purpose : uint32_t { POLICY, SAMPLES, VALUE, HEAD_CHOICE, ELITE, ACTION, PRIOR };

// Where numbers stand: those of one environment, for one purpose of one iteration of one call.
struct Place {
    uint64_t seed, call;
    Purpose purpose;
    uint32_t iteration, environment;
};

struct Four {
    uint32_t x[4];
};

inline Four random_bits(const Place& place, uint32_t block) {
    // The call has 48 bits, the iteration 12.
    uint32_t c0 = uint32_t(place.call), c1 = uint32_t(place.call >> 32 & 0xffff) << 16 | place.iteration << 4 | place.purpose;
    uint32_t c2 = place.environment, c3 = block, k0 = uint32_t(place.seed), k1 = uint32_t(place.seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = uint64_t(0xD2511F53) * c0, b = uint64_t(0xCD9E8D57) * c2;
        c0 = uint32_t(b >> 32) ^ c1 ^ k0, c1 = uint32_t(b);
        c2 = uint32_t(a >> 32) ^ c3 ^ k1, c3 = uint32_t(a);
        k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    return {{c0, c1, c2, c3}};
}

// In (0, 1], never 0.
inline float uniform(uint32_t bits) { return (float(bits) + 0.5f) * 2.3283064e-10f; }

// Two independent standard normal numbers (Box and Muller).
inline void normal_pair(uint32_t a, uint32_t b, float* out) {
    const float radius = std::sqrt(-2 * logarithm(uniform(a)));
    const uint32_t quarter = (b + 0x20000000u) >> 30;                    // nearest multiple of a quarter turn
    const float r = float(int32_t(b - (quarter << 30))) * 1.4629181e-9f;  // the rest, between -pi/4 and pi/4
    const float q = r * r;
    const float sine = r * (1 - q * (0.16666667f - q * (8.3333333e-3f - q * (1.9841270e-4f - q * 2.7557319e-6f))));
    const float cosine = 1 - q * (0.5f - q * (0.041666667f - q * (1.3888889e-3f - q * 2.4801587e-5f)));
    const float x = quarter & 1 ? sine : cosine, y = quarter & 1 ? cosine : sine;
    out[0] = radius * (quarter == 1 || quarter == 2 ? -x : x);
    out[1] = radius * (quarter & 2 ? -y : y);
}

// Standard normal numbers of a place, `first` a multiple of four.
inline void normals(const Place& place, size_t first, size_t count, float* out) {
    for (size_t i = 0; i < count; i += 4) {
        const Four bits = random_bits(place, uint32_t((first + i) / 4));
        float four[4];
        normal_pair(bits.x[0], bits.x[1], four), normal_pair(bits.x[2], bits.x[3], four + 2);
        for (size_t k = 0; k < 4 && i + k < count; k++) out[i + k] = four[k];
    }
}

inline void gumbels(const Place& place, size_t count, float* out) {
    for (size_t i = 0; i < count; i++) {
        float u = uniform(random_bits(place, uint32_t(i / 4)).x[i % 4]);
        u = u < 1 - 1e-7f ? u : 1 - 1e-7f;
        out[i] = -logarithm(-logarithm(u));
    }
}

// Two different numbers below n >= 2.
inline void two_of(const Place& place, uint32_t n, int64_t* out) {
    const Four bits = random_bits(place, 0);
    const int64_t first = int64_t(uint64_t(bits.x[0]) * n >> 32), second = int64_t(uint64_t(bits.x[1]) * (n - 1) >> 32);
    out[0] = first, out[1] = second + (second >= first);
}

}  // namespace tdmpc2
