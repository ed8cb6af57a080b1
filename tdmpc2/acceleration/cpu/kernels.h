// What the variants of the kernels share: one variant is all of planner.cpp and norm_mish.cpp compiled for one
// instruction set. Nothing in here is executed, since the linker would take one variant's copy of it for all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tdmpc2 {

// How a product is computed. The inputs of the last two are quantised, to 8 or to (at most) 12 bits.
enum Format : int32_t { FP32, BF16, INT8, INT12 };
enum Activation : int32_t { NONE, MISH, SIMNORM };
enum Network { DYNAMICS, REWARD, PI, HEADS };  // the Q heads are HEADS, HEADS + 1, ...; behind them the termination head

// Vectors of one number per output are zero-padded to a multiple of this, whatever the variant.
constexpr int padding = 64;

// One affine map and what follows it; tdmpc2/acceleration/cpu/networks.py holds the same structure.
struct Layer {
    int32_t format, in, out, activation;
    const void* weight;   // packed by the variant that uses it
    const float* scale;   // of the weights, [out]
    const float* sums;    // of the scaled weights of each output, [out]
    const float* bias;    // [out]
    const float* gain;    // of the LayerNorm, [out]; null: none
    const float* shift;   // [out]
    const float* latent;  // first layers: the weights of each part of the input in float32, [part, out padded]
    const float* task;
    const float* action;
};

struct Networks {
    int32_t latent_dim, task_dim, action_dim, num_bins, simnorm_dim, num_layers;
    int32_t termination;  // number of the network whose output is the logit of an episode's end; 0: there is none
    float log_std_min, log_std_max;
    const float* bins;    // zero-padded
    const Layer* layers;  // three of each network, the first with the parts of its input
};

// Memory in slots, one for each purpose; threads.h says whose.
enum Slot { CALL, ITEM, num_slots };

// Runs function(data) in so many threads or fewer, the caller among them: GOMP_parallel of an OpenMP library.
using Parallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// The functions of a variant; tdmpc2/acceleration/cpu/library.py holds the same structure.
struct Kernels {
    const char* name;

    // Bytes of a packed weight of this format.
    int64_t (*packed_bytes)(int format, int in, int out);

    // Pack a weight [out, in], float32 or (for INT8 and INT12) int8.
    void (*pack)(int format, int in, int out, const void* weight, void* packed);

    // One layer without SimNorm: x [rows, in] -> out [rows, out], contiguous.
    void (*normed_linear)(const Layer* layer, int rows, int threads, const float* x, float* out);

    // Shapes as in tdmpc2/planner.py, all contiguous; task [E, T] and mask [E, A] may be null; out [E, S], of which -0 was
    // NaN and the largest numbers were infinite.
    void (*estimate_value)(const Networks* n, int num_envs, int horizon, int samples, int num_heads, int threads,
                           const float* z, const float* task, const float* mask, const float* discount,
                           const float* actions, const float* eps, const int64_t* heads, float* out);

    // eps [H, E, P, A] -> out [E, H, P, A].
    void (*policy_rollout)(const Networks* n, int num_envs, int horizon, int samples, int threads, const float* z,
                           const float* task, const float* mask, const float* eps, float* out);

    // See norm_mish.cpp.
    void (*norm_mish)(int bf16, const void* x, const float* bias, const float* gain, const float* shift,
                      const float* factors, void* out, float* stats, int64_t networks, int64_t rows, int64_t width,
                      int64_t network_stride, int64_t row_stride, int64_t threads, Parallel parallel);
    void (*norm_mish_backward)(int bf16, const void* dout, const void* x, const float* bias, const float* gain,
                               const float* shift, const float* factors, const float* stats, void* dx, float* sums,
                               int64_t networks, int64_t rows, int64_t width, int64_t network_stride,
                               int64_t row_stride, int64_t threads, Parallel parallel);

    // Observations [E, inputs of the first layer] -> latents [E, D]. The encoder's layers are not among those of the
    // networks; the first takes the task as well.
    void (*encode)(const Networks* n, const Layer* encoder, int num_layers, int num_envs, int threads, const float* obs,
                   const float* task, float* out);

    // See refit.cpp.
    void (*refit)(int num_envs, int horizon, int samples, int action_dim, int num_elites, int threads,
                  const float* settings, const float* mask, const float* actions, const float* value, float* mean,
                  float* std, float* elite_value, float* score, float* elite_actions);

    // Bytes of scratch memory that the functions above need for plans of these sizes, by slot.
    void (*scratch_bytes)(const Networks* n, const Layer* encoder, int num_layers, int num_envs, int samples,
                          size_t* bytes);
};

// Calls work(context, item) for every item on up to `threads` threads, the caller among them; returns when all are done.
// The threads are those of `parallel`, or without it this library's own.
void for_each_item(int threads, int items, void (*work)(void* context, int item), void* context,
                   Parallel parallel = nullptr);

// Uninitialised memory of the calling thread, aligned to cache lines, kept until its next call with this slot.
void* scratch(Slot slot, size_t bytes);

// Of refit.cpp, which is not compiled for each variant.
void refit(int num_envs, int horizon, int samples, int action_dim, int num_elites, int threads, const float* settings,
           const float* mask, const float* actions, const float* value, float* mean, float* std, float* elite_value,
           float* score, float* elite_actions);

}  // namespace tdmpc2
