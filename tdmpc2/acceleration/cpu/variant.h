// The functions of norm_mish.cpp, for the table of functions in planner.cpp.
#pragma once

#include "kernels.h"

namespace tdmpc2::TDMPC2_VARIANT {

void norm_mish(int bf16, const void* x, const float* bias, const float* gain, const float* shift, const float* factors,
               void* out, float* stats, int64_t networks, int64_t rows, int64_t width, int64_t network_stride,
               int64_t row_stride, int64_t threads, Parallel parallel);
void norm_mish_backward(int bf16, const void* dout, const void* x, const float* bias, const float* gain,
                        const float* shift, const float* factors, const float* stats, void* dx, float* sums,
                        int64_t networks, int64_t rows, int64_t width, int64_t network_stride, int64_t row_stride,
                        int64_t threads, Parallel parallel);

}  // namespace tdmpc2::TDMPC2_VARIANT
