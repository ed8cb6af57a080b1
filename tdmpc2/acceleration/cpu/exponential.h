// e^x and ln x of single numbers, the same bits on every processor: IEEE 754 operations in one order, and no library.
#pragma once

#include <cstdint>
#include <cstring>

namespace tdmpc2 {

// e^x for x <= 0, to the nearest float but for the last bit; 0 for x <= -87, where it soon is no normal float.
inline float exponential(float x) {
    if (!(x > -87)) return x == x ? 0 : x;
    const double turns = double(x) * 1.4426950408889634, whole = double(int(turns - 0.5));
    const double r = double(x) - whole * 0.6931471805599453;  // |r| <= ln 2 / 2
    double term = 1, sum = 1;
    for (int i = 1; i <= 12; i++) sum += term *= r / i;
    const uint64_t power = uint64_t(1023 + int(whole)) << 52;
    double scale;
    std::memcpy(&scale, &power, sizeof scale);
    return float(sum * scale);
}

// ln x for normal x > 0, with an error of 1.2e-7, or so much of |ln x| where that is larger than 1.
inline float logarithm(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t shifted = bits - 0x3f3504f3;  // of sqrt(1/2): the mantissa is between that and sqrt(2)
    const int32_t exponent = int32_t(shifted) >> 23;
    const uint32_t mantissa = bits - (uint32_t(exponent) << 23);
    float m;
    std::memcpy(&m, &mantissa, sizeof m);
    const float s = (m - 1) / (m + 1), q = s * s;  // ln m = 2 artanh s
    const float series = q * (0.33333333f + q * (0.2f + q * (0.14285714f + q * 0.11111111f)));
    return float(exponent) * 0.69314718f + 2 * (s + s * series);
}

}  // namespace tdmpc2
