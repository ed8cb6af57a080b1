// The elementary functions of the kernels, in one variant and on arrays, for test_cpu_functions.py.
#include "exponential.h"
#include "simd.h"

#define EXPORT extern "C" __attribute__((visibility("default"))) void

// Of as many numbers as are a multiple of the lanes.
#define ON_VECTORS(NAME)                                                            \
    EXPORT vector_##NAME(int64_t count, const float* x, float* out) {               \
        using namespace tdmpc2::TDMPC2_VARIANT;                                     \
        for (int64_t i = 0; i < count; i += lanes) store(out + i, NAME(load(x + i))); \
    }
#define ON_NUMBERS(NAME)                                                       \
    EXPORT single_##NAME(int64_t count, const float* x, float* out) {          \
        for (int64_t i = 0; i < count; i++) out[i] = tdmpc2::NAME(x[i]);       \
    }

ON_VECTORS(exp)
ON_VECTORS(mish)
ON_VECTORS(tanh)
ON_VECTORS(symexp)
ON_NUMBERS(exponential)
ON_NUMBERS(logarithm)

EXPORT round_to_bf16(int64_t count, const float* x, uint16_t* out) {
    using namespace tdmpc2::TDMPC2_VARIANT;
    for (int64_t i = 0; i < count; i += lanes) store(reinterpret_cast<BFloat16*>(out) + i, load(x + i));
}
