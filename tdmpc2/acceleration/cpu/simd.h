// Vectors of 16 floats on every instruction set, made of as many native ones as that takes.
//
// Results are the same bits everywhere: additions and multiplications are contracted only where fma is written
// (-ffp-contract=off), sums over lanes have one order, and all operations are those of IEEE 754. Only bf16 differs: its
// products, and subnormal numbers, which processors that have an instruction for it store as zero.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels.h"

#define INLINE inline __attribute__((always_inline))

namespace tdmpc2::TDMPC2_VARIANT {

#if defined(__AVX512F__)
constexpr int native_lanes = 16;
#elif defined(__AVX2__)
constexpr int native_lanes = 8;
#else
constexpr int native_lanes = 4;
#endif

constexpr int lanes = 16, parts = lanes / native_lanes;

// Native vectors.
typedef float Vector __attribute__((vector_size(4 * native_lanes)));
typedef int32_t Integers __attribute__((vector_size(4 * native_lanes)));
typedef uint32_t Unsigned __attribute__((vector_size(4 * native_lanes)));
typedef uint16_t Shorts __attribute__((vector_size(2 * native_lanes)));
typedef uint8_t Bytes __attribute__((vector_size(native_lanes)));
typedef float Quarter __attribute__((vector_size(16)));

template <class T>
INLINE T load_as(const void* from) {
    T x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
template <class T>
INLINE void store_as(void* to, T x) {
    std::memcpy(to, &x, sizeof x);
}

// -- one native vector ------------------------------------------------------------------------------------------------

INLINE Vector native(float x) { return x - Vector{}; }  // not +, which would make -0 to 0
INLINE Integers native(int32_t x) { return x + Integers{}; }

// a * b + c with one rounding. Where numbers cannot be compared, minimum and maximum are the second one.
#if defined(__AVX512F__)
INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vector minimum(Vector a, Vector b) { return _mm512_min_ps(a, b); }
INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
#elif defined(__AVX2__)
INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
#else
#if defined(__ARM_NEON) && !defined(TDMPC2_SCALAR)
INLINE Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
#else
INLINE Vector fma(Vector a, Vector b, Vector c) {
    for (int i = 0; i < native_lanes; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
}
#endif
INLINE Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
INLINE Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
#endif

// Lane i gets lane i ^ Distance.
template <int Distance, int... Lane>
INLINE Vector swapped(Vector x, std::integer_sequence<int, Lane...>) {
#ifdef __clang__
    return __builtin_shufflevector(x, x, (Lane ^ Distance)...);
#else
    return __builtin_shuffle(x, Integers{(Lane ^ Distance)...});
#endif
}

// -- 16 lanes ---------------------------------------------------------------------------------------------------------

struct Floats {
    Vector part[parts];
};
struct Ints {  // also masks: all bits of a lane, or none
    Integers part[parts];
};

template <class Result, class Of>
INLINE Result each_part(Of of) {  // no loop: g++ would keep the result in memory
    if constexpr (parts == 1) return {{of(0)}};
    else if constexpr (parts == 2) return {{of(0), of(1)}};
    else return {{of(0), of(1), of(2), of(3)}};
}

INLINE Floats splat(float x) {
    return each_part<Floats>([&](int) __attribute__((always_inline)) { return native(x); });
}
#define TDMPC2_OPERATOR(NAME, RESULT, TYPE, EXPRESSION)                                                   \
    INLINE RESULT NAME(TYPE a, TYPE b) {                                                                  \
        return each_part<RESULT>([&](int i) __attribute__((always_inline)) { return EXPRESSION; });       \
    }
TDMPC2_OPERATOR(operator+, Floats, Floats, a.part[i] + b.part[i])
TDMPC2_OPERATOR(operator-, Floats, Floats, a.part[i] - b.part[i])
TDMPC2_OPERATOR(operator*, Floats, Floats, a.part[i] * b.part[i])
TDMPC2_OPERATOR(operator/, Floats, Floats, a.part[i] / b.part[i])
TDMPC2_OPERATOR(minimum, Floats, Floats, minimum(a.part[i], b.part[i]))
TDMPC2_OPERATOR(maximum, Floats, Floats, maximum(a.part[i], b.part[i]))
#undef TDMPC2_OPERATOR

INLINE Floats fma(Floats a, Floats b, Floats c) {
    return each_part<Floats>([&](int i)
                                 __attribute__((always_inline)) { return fma(a.part[i], b.part[i], c.part[i]); });
}
INLINE Floats select(Ints mask, Floats a, Floats b) {
    return each_part<Floats>([&](int i) __attribute__((always_inline)) {
        return (Vector)((mask.part[i] & (Integers)a.part[i]) | (~mask.part[i] & (Integers)b.part[i]));
    });
}
INLINE Ints unordered(Floats x) {  // NaN
    return each_part<Ints>([&](int i) __attribute__((always_inline)) { return (Integers)(x.part[i] != x.part[i]); });
}
INLINE Ints operator|(Ints a, Ints b) {
    return each_part<Ints>([&](int i) __attribute__((always_inline)) { return a.part[i] | b.part[i]; });
}

// The first lanes, all where count >= 16.
INLINE Ints first(int count) {
    alignas(64) static const int32_t index[lanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return each_part<Ints>([&](int i) __attribute__((always_inline)) {
        return (Integers)(load_as<Integers>(index + i * native_lanes) < native(count));
    });
}

// -- memory -----------------------------------------------------------------------------------------------------------

struct BFloat16 {
    uint16_t bits;
};

INLINE Floats load(const float* from) {
    return each_part<Floats>([&](int i)
                                 __attribute__((always_inline)) { return load_as<Vector>(from + i * native_lanes); });
}
INLINE Floats load(const BFloat16* from) {
    return each_part<Floats>([&](int i) __attribute__((always_inline)) {
        return (Vector)(__builtin_convertvector(load_as<Shorts>(from + i * native_lanes), Unsigned) << 16);
    });
}
INLINE void store(float* to, Floats x) {
#pragma GCC unroll 4
    for (int i = 0; i < parts; i++) store_as(to + i * native_lanes, x.part[i]);
}
INLINE Unsigned bf16_bits(Vector x) {  // to nearest, half to even
    const Unsigned bits = (Unsigned)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x == x ? rounded : bits >> 16 | 0x40;
}
INLINE void store(BFloat16* to, Floats x) {
#if defined(__AVX512BF16__)  // one instruction, for which numbers below 2^-126 are zero
    store_as(to, _mm512_cvtneps_pbh(x.part[0]));
#else
#pragma GCC unroll 4
    for (int i = 0; i < parts; i++)
        store_as(to + i * native_lanes, __builtin_convertvector(bf16_bits(x.part[i]), Shorts));
#endif
}

// The first `count` numbers, zeros after them; nothing else is touched.
INLINE Floats load_first(const float* from, int count) {
    if (count >= lanes) return load(from);
    float x[lanes] = {};
    for (int i = 0; i < count; i++) x[i] = from[i];
    return load(x);
}
INLINE void store_first(float* to, Floats x, int count) {
    if (count >= lanes) return store(to, x);
    float all[lanes];
    store(all, x);
    for (int i = 0; i < count; i++) to[i] = all[i];
}

// -- reductions -------------------------------------------------------------------------------------------------------

template <class Combine>
INLINE float reduce(Floats x, Combine combine) {
    Quarter q[4];
    std::memcpy(q, &x, sizeof x);
    const Quarter all = combine(combine(q[0], q[2]), combine(q[1], q[3]));
    return combine(combine(all[0], all[2]), combine(all[1], all[3]));
}
INLINE float reduce_add(Floats x) {
    return reduce(x, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
INLINE float reduce_min(Floats x) {
    return reduce(x, [](auto a, auto b) __attribute__((always_inline)) { return a < b ? a : b; });
}
INLINE float reduce_max(Floats x) {
    return reduce(x, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}
INLINE bool any(Ints mask) {
    Integers all = mask.part[0];
    for (int i = 1; i < parts; i++) all |= mask.part[i];
    uint64_t words[sizeof all / 8], found = 0;
    std::memcpy(words, &all, sizeof all);
    for (uint64_t word : words) found |= word;
    return found;
}

// Lane i gets lane i ^ Distance.
template <int Distance>
INLINE Floats swapped(Floats x) {
    return each_part<Floats>([&](int i) __attribute__((always_inline)) {
        if constexpr (Distance >= native_lanes) return x.part[i ^ (Distance / native_lanes)];
        else return swapped<Distance>(x.part[i], std::make_integer_sequence<int, native_lanes>());
    });
}

// Combine all lanes of each group of 1, 2, 4, 8 or 16; every lane gets its group's result.
template <class Combine>
INLINE Floats within_groups(Floats x, int group, Combine combine) {
    if (group > 1) x = combine(x, swapped<1>(x));
    if (group > 2) x = combine(x, swapped<2>(x));
    if (group > 4) x = combine(x, swapped<4>(x));
    if (group > 8) x = combine(x, swapped<8>(x));
    return x;
}

// -- functions --------------------------------------------------------------------------------------------------------
// tests/acceleration/test_cpu_functions.py holds them to the errors that stand here.

// x + rounding - rounding is x to the nearest integer, half to even, for |x| < 2^22; the sum's low bits are that integer.
constexpr float rounding = 12582912;  // 1.5 * 2^23

INLINE Ints bits(Floats x) {
    return each_part<Ints>([&](int i) __attribute__((always_inline)) { return (Integers)x.part[i]; });
}
INLINE Floats power_of_two(Ints rounded, int add) {  // of integers between -126 and 127, in the low bits
    return each_part<Floats>([&](int i) __attribute__((always_inline)) {
        return (Vector)((rounded.part[i] + native(int32_t(127 + add))) << 23);
    });
}
INLINE Floats absolute(Floats x) {
    return each_part<Floats>([&](int i) __attribute__((always_inline)) {
        return (Vector)((Integers)x.part[i] & native(int32_t(0x7fffffff)));
    });
}
INLINE Floats with_sign(Floats x, Floats sign) {  // of x >= 0
    return each_part<Floats>([&](int i) __attribute__((always_inline)) {
        return (Vector)((Integers)x.part[i] | ((Integers)sign.part[i] & native(int32_t(0x80000000))));
    });
}

constexpr float lowest_exponent = -86;  // of exp; its result is then still a normal number

// For x between -86 and 88; relative error 2e-7 + |x| 1.4e-8. NaN stays NaN.
INLINE Floats exp(Floats x) {
    const Floats log2e = splat(1.44269504f), rounded = fma(x, log2e, splat(rounding));
    const Floats r = fma(x, log2e, splat(rounding) - rounded);
    Floats p = splat(1.3264713e-3f);  // minimax polynomial of 2^r on [-1/2, 1/2] that is 1 at 0
    constexpr float coefficients[] = {9.671523e-3f, 5.550734e-2f, 2.4022242e-1f, 6.93147e-1f, 1.0f};
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++) p = fma(p, r, splat(coefficients[i]));
    return p * power_of_two(bits(rounded), 0);
}

INLINE Floats mish(Floats x) {  // x tanh(softplus(x)) with one exponential; error 1.7e-7 |x|
    const Floats e = exp(maximum(splat(lowest_exponent), minimum(splat(20), x))), more = e + splat(2);
    return x * (e * more / fma(e, more, splat(2)));
}

INLINE Floats tanh(Floats x) {  // error 1.3e-7
    const Floats e = exp(maximum(splat(lowest_exponent), splat(-2) * absolute(x)));
    return with_sign((splat(1) - e) / (splat(1) + e), x);
}

// sign(x) (e^|x| - 1), infinite where float32 overflows; error e^|x| (4e-7 + |x| 1.4e-8).
INLINE Floats symexp(Floats x) {
    const Floats half = exp(splat(0.5f) * minimum(splat(100), absolute(x)));
    return with_sign(fma(half, half, splat(-1)), x);
}

}  // namespace tdmpc2::TDMPC2_VARIANT
