// MPPI's value estimate and the rollout of the policy prior (tdmpc2/planner.py), one tile of rows through all layers.
//
// All samples are independent, so a call is one parallel loop over tiles of samples, whose activations stay in the L2
// cache. Everything but the products is float32. A row's result depends neither on its tile nor on the threads.
#include <cmath>
#include <limits>

#include "gemm.h"

namespace tdmpc2 {
namespace {

enum Activation : int32_t { NONE, MISH, SIMNORM };
enum Network { DYNAMICS, REWARD, PI, HEADS };  // the Q heads are HEADS, HEADS + 1, ...

struct Networks {
    int32_t latent_dim, task_dim, action_dim, num_bins, simnorm_dim, num_layers;
    float log_std_min, log_std_max;
    const float* bins;
    const Layer* layers;  // three of each network, the first with the parts of its input
};

inline __m512 splat(float x) { return _mm512_set1_ps(x); }

// Relative error 1e-7 + |x| 2e-8; underflow as usual, NaN stays NaN. Not for infinities.
inline __m512 exp(__m512 x) {
    const __m512 log2e = splat(1.44269504f);
    const __m512 n = _mm512_roundscale_ps(x * log2e, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_fmsub_ps(x, log2e, n);
    __m512 p = splat(1.3264713e-3f);  // minimax polynomial of 2^r on [-1/2, 1/2] that is 1 at 0
    for (float c : {9.671523e-3f, 5.550734e-2f, 2.4022242e-1f, 6.93147e-1f, 1.0f}) p = _mm512_fmadd_ps(p, r, splat(c));
    return _mm512_scalef_ps(p, n);
}

inline __m512 reciprocal(__m512 x) {
    const __m512 r = _mm512_rcp14_ps(x);
    return r * _mm512_fnmadd_ps(x, r, splat(2));
}

inline __m512 mish(__m512 x) {  // x tanh(softplus(x)) with one exponential
    const __m512 e = exp(_mm512_min_ps(splat(20), x));
    const __m512 n = e * (e + splat(2));
    return x * n * reciprocal(n + splat(2));
}

inline __m512 tanh(__m512 x) {
    const __m512 e = exp(_mm512_max_ps(splat(-88), splat(-2) * _mm512_abs_ps(x)));
    const __m512 sign = _mm512_and_ps(x, splat(-0.0f));
    return _mm512_or_ps((splat(1) - e) / (splat(1) + e), sign);
}

// Sum of term(first column, mask) over `width` columns; two sums hide the latency of an addition.
template <class Term>
inline float sum(int width, Term term) {
    __m512 a = splat(0), b = a;
    int i = 0;
    for (; i + 2 * lanes <= width; i += 2 * lanes) a += term(i, first(lanes)), b += term(i + lanes, first(lanes));
    for (; i < width; i += lanes) a += term(i, first(width - i));
    return _mm512_reduce_add_ps(a + b);
}

// Combine all lanes of each group of 2, 4, 8 or 16; every lane gets its group's result.
template <class Combine>
inline __m512 within_groups(__m512 x, int group, Combine combine) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int distance = 1; distance < group; distance *= 2)
        x = combine(x, _mm512_permutexvar_ps(_mm512_xor_si512(lane, _mm512_set1_epi32(distance)), x));
    return x;
}

void simnorm(float* row, int width, int group) {
    for (int i = 0; i < width; i += lanes) {
        const __m512 x = _mm512_load_ps(row + i);
        const __m512 high = within_groups(x, group, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
        const __m512 e = exp(x - high);
        const __m512 total = within_groups(e, group, [](__m512 a, __m512 b) { return a + b; });
        _mm512_store_ps(row + i, _mm512_maskz_mul_ps(first(width - i), e, reciprocal(total)));
    }
}

// What follows the product: the action's part of a first layer, LayerNorm and the activation.
void finish(const Layer& layer, const Rows& rows, int count, const float* actions, int action_dim, int simnorm_dim) {
    const int width = layer.out, stride = round_up(width, panel);
    for (int r = 0; layer.gain && r < count; r++) {
        float* row = rows.row(r);
        const float* action = actions ? actions + size_t(r) * action_dim : nullptr;
        const float mean = sum(width, [&](int i, __mmask16 mask) {
            __m512 x = _mm512_load_ps(row + i);
            for (int a = 0; action && a < action_dim; a++)
                x = _mm512_fmadd_ps(splat(action[a]), _mm512_load_ps(layer.action + size_t(a) * stride + i), x);
            _mm512_store_ps(row + i, x);
            return _mm512_maskz_mov_ps(mask, x);
        }) / width;
        const float variance = sum(width, [&](int i, __mmask16 mask) {
            const __m512 x = _mm512_maskz_sub_ps(mask, _mm512_load_ps(row + i), splat(mean));
            return x * x;
        }) / width;
        const __m512 factor = splat(1 / std::sqrt(variance + 1e-5f));
        for (int i = 0; i < width; i += lanes) {
            const __m512 x = (_mm512_load_ps(row + i) - splat(mean)) * factor;
            const __m512 y = _mm512_fmadd_ps(x, _mm512_load_ps(layer.gain + i), _mm512_load_ps(layer.shift + i));
            _mm512_store_ps(row + i, layer.activation == MISH ? mish(y) : y);
        }
        if (layer.activation == SIMNORM) simnorm(row, width, simnorm_dim);
    }
}

// Expected value of logits in raw units.
float decode(const float* logits, const float* bins, int count) {
    __m512 high = splat(logits[0]);
    for (int i = 0; i < count; i += lanes)
        high = _mm512_max_ps(high, _mm512_mask_load_ps(high, first(count - i), logits + i));
    const __m512 highest = splat(_mm512_reduce_max_ps(high));
    __m512 total = splat(0);
    const float moment = sum(count, [&](int i, __mmask16 mask) {
        const __m512 x = _mm512_max_ps(splat(-88), _mm512_load_ps(logits + i) - highest);
        const __m512 e = _mm512_maskz_mov_ps(mask, exp(x));
        total += e;
        return e * _mm512_maskz_loadu_ps(mask, bins + i);
    });
    const float x = moment / _mm512_reduce_add_ps(total);
    return std::copysign(std::expm1(std::abs(x)), x);
}

// What the samples of an environment share in a network's first layer: bias, task and, at the first step, the latent.
void shared_part(const Networks& n, const Layer& layer, const float* z, const float* task, float* out) {
    const int stride = round_up(layer.out, panel);
    std::memcpy(out, layer.bias, stride * sizeof(float));
    const auto add = [&](const float* weight, const float* x, int width) {
        for (int j = 0; j < stride; j += lanes) {
            __m512 total = _mm512_load_ps(out + j);
            for (int i = 0; i < width; i++)
                total = _mm512_fmadd_ps(splat(x[i]), _mm512_load_ps(weight + size_t(i) * stride + j), total);
            _mm512_store_ps(out + j, total);
        }
    };
    if (task) add(layer.task, task, n.task_dim);
    if (z) add(layer.latent, z, n.latent_dim);
}

// Samples of a tile. Between 24 and 96 the time changes by less than 8 % for networks 384 to 4096 wide.
constexpr int tile_rows = 48;

// The rows that one thread works on.
struct Tile {
    Tile(const Networks& n, int rows)
        : n(n), latent(rows, n.latent_dim, code_bytes(n)), hidden(rows, hidden_width(n), code_bytes(n)),
          action(size_t(rows) * n.action_dim) {}

    static int hidden_width(const Networks& n) {
        const auto narrower = [](const Layer& a, const Layer& b) { return a.out < b.out; };
        return std::max_element(n.layers, n.layers + n.num_layers, narrower)->out;
    }
    static int code_bytes(const Networks& n) {
        const auto less = [](const Layer& a, const Layer& b) { return a.format < b.format; };
        return 4 / inputs_per_word(Format(std::min_element(n.layers, n.layers + n.num_layers, less)->format));
    }

    // One network for `count` rows: from the latents (not at the first step: `shared` has them) into `out`.
    void run(int network, const float* shared, const float* actions, int count, bool first_step, const Rows& out) {
        const Layer* layer = n.layers + 3 * network;
        if (first_step) {
            for (int r = 0; r < count; r++)
                std::memcpy(hidden.row(r), shared, round_up(layer->out, panel) * sizeof(float));
        } else {
            if (encoded != layer->format) encode(latent, count, layer->in, Format(encoded = layer->format));
            product(*layer, latent, count, shared, hidden);
        }
        finish(*layer, hidden, count, actions, n.action_dim, n.simnorm_dim);
        for (const Layer* end = layer++ + 3; layer < end; layer++) {
            const Rows& to = layer + 1 == end ? out : hidden;
            encode(hidden, count, layer->in, Format(layer->format));
            product(*layer, hidden, count, layer->bias, to);
            finish(*layer, to, count, nullptr, 0, n.simnorm_dim);
        }
        if (&out == &latent) encoded = -1;
    }

    // Actions of the policy prior from its network's output in `hidden`.
    void sample(int count, const float* mask, const float* eps, float* out) {
        const int dim = n.action_dim;
        for (int r = 0; r < count; r++)
            for (int i = 0; i < dim; i += lanes) {
                const __mmask16 columns = first(dim - i);
                const __m512 active = mask ? _mm512_maskz_loadu_ps(columns, mask + i) : splat(1);
                const __m512 mean = _mm512_maskz_loadu_ps(columns, hidden.row(r) + i) * active;
                const __m512 raw = _mm512_maskz_loadu_ps(columns, hidden.row(r) + dim + i);
                const __m512 span = splat(0.5f * (n.log_std_max - n.log_std_min));
                const __m512 log_std = (splat(n.log_std_min) + span * (tanh(raw) + splat(1))) * active;
                const __m512 noise = _mm512_maskz_loadu_ps(columns, eps + size_t(r) * dim + i) * active;
                _mm512_mask_storeu_ps(out + size_t(r) * dim + i, columns, tanh(mean + noise * exp(log_std)));
            }
    }

    // total += weight * decoded output in `hidden`
    void add_decoded(int count, float weight, float* total) const {
        for (int r = 0; r < count; r++) total[r] += weight * decode(hidden.row(r), n.bins, n.num_bins);
    }

    const Networks& n;
    const Rows latent, hidden;
    const Buffer<float> action;
    int encoded = -1;  // format of the latents' codes
};

// One parallel loop over tiles of samples, after one over what the samples of an environment share.
struct Job {
    const Networks& n;
    int num_envs, samples, threads;
    const float *z, *task;
    const int* used;  // networks
    int num_used;

    // work(tile, environment, first sample, number of samples, shared), where shared(network, whether with the latent)
    // is what the samples share in the network's first layer.
    template <class Work>
    void run(Work work) const {
        const int width = round_up(Tile::hidden_width(n), panel);
        const Buffer<float> parts(size_t(num_envs) * num_used * 2 * width);
        int tiles = round_up(samples, tile_rows) / tile_rows;
        while (tiles < samples && num_envs * tiles % threads) tiles++;  // equally many for each thread
        const int rows = (samples + tiles - 1) / tiles;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(dynamic)
            for (int i = 0; i < num_envs * num_used * 2; i++) {
                const int env = i / (2 * num_used);
                const Layer& layer = n.layers[3 * used[i / 2 % num_used]];
                const float* latent = i % 2 ? z + size_t(env) * n.latent_dim : nullptr;
                if (!latent || layer.latent)
                    shared_part(n, layer, latent, task ? task + size_t(env) * n.task_dim : nullptr,
                                parts.data + size_t(i) * width);
            }
            Tile tile(n, rows);
#pragma omp for schedule(dynamic)
            for (int i = 0; i < num_envs * tiles; i++) {
                const int env = i / tiles, start = i % tiles * rows, count = std::min(rows, samples - start);
                const auto shared = [&](int network, bool with_latent) {
                    const auto index = std::find(used, used + num_used, network) - used;
                    return parts.data + (size_t(env * num_used + index) * 2 + with_latent) * width;
                };
                tile.encoded = -1;
                if (count > 0) work(tile, env, start, count, shared);
            }
        }
    }
};

}  // namespace
}  // namespace tdmpc2

using namespace tdmpc2;

extern "C" {

// One layer without SimNorm: x [rows, in] -> out [rows, out], contiguous.
void normed_linear(const Layer* layer, int rows, int threads, const float* x, float* out) {
#pragma omp parallel num_threads(threads)
    {
        const Rows input(tile_rows, layer->in, 4), output(tile_rows, layer->out, 4);
#pragma omp for schedule(dynamic)
        for (int start = 0; start < rows; start += tile_rows) {
            const int count = std::min(tile_rows, rows - start);
            for (int r = 0; r < count; r++)
                std::memcpy(input.row(r), x + size_t(start + r) * layer->in, layer->in * sizeof(float));
            encode(input, count, layer->in, Format(layer->format));
            product(*layer, input, count, layer->bias, output);
            finish(*layer, output, count, nullptr, 0, 1);
            for (int r = 0; r < count; r++)
                std::memcpy(out + size_t(start + r) * layer->out, output.row(r), layer->out * sizeof(float));
        }
    }
}

// Shapes as in tdmpc2/planner.py, all contiguous; task [E, T] and mask [E, A] may be null; out [E, S].
void estimate_value(const Networks* n, int num_envs, int horizon, int samples, int num_heads, int threads,
                    const float* z, const float* task, const float* mask, const float* discount, const float* actions,
                    const float* eps, const int64_t* heads, float* out) {
    const Buffer<int> used(HEADS + num_heads);
    for (int i = 0; i < HEADS + num_heads; i++) used.data[i] = i < HEADS ? i : HEADS + int(heads[i - HEADS]);
    const Job job{*n, num_envs, samples, threads, z, task, used.data, HEADS + num_heads};
    job.run([&](Tile& tile, int env, int start, int count, auto shared) {
        float* total = out + size_t(env) * samples + start;
        std::fill_n(total, count, 0.0f);
        float weight = 1;
        for (int t = 0; t < horizon; t++, weight *= discount[env]) {
            const bool first_step = t == 0;
            const float* action = actions + ((size_t(env) * horizon + t) * samples + start) * n->action_dim;
            tile.run(REWARD, shared(REWARD, first_step), action, count, first_step, tile.hidden);
            tile.add_decoded(count, weight, total);
            tile.run(DYNAMICS, shared(DYNAMICS, first_step), action, count, first_step, tile.latent);
        }
        tile.run(PI, shared(PI, false), nullptr, count, false, tile.hidden);
        tile.sample(count, mask ? mask + size_t(env) * n->action_dim : nullptr,
                    eps + (size_t(env) * samples + start) * n->action_dim, tile.action.data);
        for (int h = 0; h < num_heads; h++) {
            const int head = used.data[HEADS + h];
            tile.run(head, shared(head, false), tile.action.data, count, false, tile.hidden);
            tile.add_decoded(count, weight / num_heads, total);
        }
        constexpr float largest = std::numeric_limits<float>::max();
        for (int r = 0; r < count; r++)
            total[r] = std::isnan(total[r]) ? 0 : std::clamp(total[r], -largest, largest);
    });
}

// eps [H, E, P, A] -> out [E, H, P, A].
void policy_rollout(const Networks* n, int num_envs, int horizon, int samples, int threads, const float* z,
                    const float* task, const float* mask, const float* eps, float* out) {
    const int used[] = {DYNAMICS, PI};
    const Job job{*n, num_envs, samples, threads, z, task, used, 2};
    job.run([&](Tile& tile, int env, int start, int count, auto shared) {
        for (int t = 0; t < horizon; t++) {
            const bool first_step = t == 0;
            float* action = out + ((size_t(env) * horizon + t) * samples + start) * n->action_dim;
            tile.run(PI, shared(PI, first_step), nullptr, count, first_step, tile.hidden);
            tile.sample(count, mask ? mask + size_t(env) * n->action_dim : nullptr,
                        eps + ((size_t(t) * num_envs + env) * samples + start) * n->action_dim, action);
            if (t + 1 < horizon)
                tile.run(DYNAMICS, shared(DYNAMICS, first_step), action, count, first_step, tile.latent);
        }
    });
}
}
