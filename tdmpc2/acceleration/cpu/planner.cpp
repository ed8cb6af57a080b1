// MPPI's value estimate and the rollout of the policy prior (tdmpc2/planner.py), one tile of rows through all layers.
//
// All samples are independent, so a call is one parallel loop over tiles of samples, whose activations stay in the L2
// cache. Everything but the products is float32. A row's result depends neither on its tile nor on the threads.
#include "product.h"
#ifndef TDMPC2_ACTS_ONLY
#include "variant.h"
#endif

namespace tdmpc2::TDMPC2_VARIANT {
namespace {

// Sum of term(first column) over `width` columns, and of last(first column, mask) if lanes remain; two sums hide the
// latency of an addition.
template <class Term, class Last>
INLINE float sum(int width, Term term, Last last) {
    Floats a = splat(0), b = a;
    int i = 0;
    for (; i + 2 * lanes <= width; i += 2 * lanes) a = a + term(i), b = b + term(i + lanes);
    if (i + lanes <= width) a = a + term(i), i += lanes;
    if (i < width) b = b + last(i, first(width - i));
    return reduce_add(a + b);
}

template <int Group>
INLINE void simnorm_groups(float* row, int width) {
    for (int i = 0; i < width; i += lanes) {
        const Floats x = load(row + i);
        const Floats high = within_groups(x, Group, [](Floats a, Floats b) __attribute__((always_inline)) {
            return maximum(a, b);
        });
        const Floats e = exp(maximum(splat(lowest_exponent), x - high));
        const Floats total = within_groups(e, Group, [](Floats a, Floats b) __attribute__((always_inline)) {
            return a + b;
        });
        store(row + i, select(first(width - i), e / total, splat(0)));
    }
}

void simnorm(float* row, int width, int group) {
    if (group == 8) return simnorm_groups<8>(row, width);
    if (group == 1) return simnorm_groups<1>(row, width);
    if (group == 2) return simnorm_groups<2>(row, width);
    if (group == 4) return simnorm_groups<4>(row, width);
    simnorm_groups<16>(row, width);
}

// LayerNorm and Mish of a row. Padding has weights, gain and shift zero, so it stays zero: masks are for the variance.
void normalise(const Layer& layer, float* row, const float* action, int action_dim) {
    const int width = layer.out, stride = round_up(width, padding);
    const auto with_action = [&](int i) __attribute__((always_inline)) {
        Floats x = load(row + i);
        if (!action) return x;
        for (int a = 0; a < action_dim; a++)
            x = fma(splat(action[a]), load(layer.action + size_t(a) * stride + i), x);
        store(row + i, x);
        return x;
    };
    const auto last_action = [&](int i, Ints mask) __attribute__((always_inline)) {
        return select(mask, with_action(i), splat(0));
    };
    const Floats mean = splat(sum(width, with_action, last_action) / float(width));
    const auto square = [&](int i) __attribute__((always_inline)) {
        const Floats x = load(row + i) - mean;
        return x * x;
    };
    const auto last_square = [&](int i, Ints mask) __attribute__((always_inline)) {
        return select(mask, square(i), splat(0));
    };
    const float variance = sum(width, square, last_square) / float(width);
    const Floats factor = splat(1 / __builtin_sqrtf(variance + 1e-5f)), less = splat(0) - mean * factor;
    const auto affine = [&](int i) __attribute__((always_inline)) {
        return fma(fma(load(row + i), factor, less), load(layer.gain + i), load(layer.shift + i));
    };
    if (layer.activation == MISH)
        for (int i = 0; i < width; i += lanes) store(row + i, mish(affine(i)));
    else
        for (int i = 0; i < width; i += lanes) store(row + i, affine(i));
}

// What follows the product: the action's part of a first layer, LayerNorm and the activation.
void finish(const Layer& layer, const Rows& rows, int count, const float* actions, int action_dim, int simnorm_dim) {
    for (int r = 0; layer.gain && r < count; r++) {
        normalise(layer, rows.row(r), actions ? actions + size_t(r) * action_dim : nullptr, action_dim);
        if (layer.activation == SIMNORM) simnorm(rows.row(r), layer.out, simnorm_dim);
    }
}

// Expected value of logits, before the inverse of symlog.
INLINE float expected(const float* logits, const float* bins, int count) {
    const int full = (count - 1) / lanes * lanes;  // the last vector may lack some lanes
    const Floats last = select(first(count - full), load(logits + full), splat(logits[0]));
    Floats high = last;
    for (int i = 0; i < full; i += lanes) high = maximum(load(logits + i), high);
    const Floats highest = splat(reduce_max(high));
    const auto weight = [&](Floats logit) __attribute__((always_inline)) {
        return exp(maximum(splat(lowest_exponent), logit - highest));
    };
    Floats total = select(first(count - full), weight(last), splat(0)), moment = total * load(bins + full);
    for (int i = 0; i < full; i += lanes) {
        const Floats e = weight(load(logits + i));
        total = total + e, moment = fma(e, load(bins + i), moment);
    }
    return reduce_add(moment) / reduce_add(total);
}

// What the samples of an environment share in a network's first layer: bias, task and, at the first step, the latent.
void shared_part(const Networks& n, const Layer& layer, const float* z, const float* task, float* out) {
    const int stride = round_up(layer.out, padding);
    std::memcpy(out, layer.bias, stride * sizeof(float));
    const auto add = [&](const float* weight, const float* x, int width) {
        for (int j = 0; j < stride; j += padding) {
            Floats total[padding / lanes];
            for (int k = 0; k < padding / lanes; k++) total[k] = load(out + j + k * lanes);
            for (int i = 0; i < width; i++)
                for (int k = 0; k < padding / lanes; k++)
                    total[k] = fma(splat(x[i]), load(weight + size_t(i) * stride + j + k * lanes), total[k]);
            for (int k = 0; k < padding / lanes; k++) store(out + j + k * lanes, total[k]);
        }
    };
    if (task) add(layer.task, task, n.task_dim);
    if (z) add(layer.latent, z, n.latent_dim);
}

INLINE int smaller(int a, int b) { return a < b ? a : b; }

int widest(const Layer* layers, int count) {
    int width = 0;
    for (int i = 0; i < count; i++) width = layers[i].out > width ? layers[i].out : width;
    return width;
}

// Samples of a tile. Between 24 and 96 the time changes by less than 8 % for networks 384 to 4096 wide.
constexpr int tile_rows = 48;

// The rows that one thread works on.
struct Tile {
    Tile(Arena& arena, const Networks& n, int rows, int width)
        : n(n), latent(arena, rows, n.latent_dim), hidden(arena, rows, width),
          action(arena.take<float>(size_t(rows) * n.action_dim)), weight(arena.take<float>(rows)) {}

    // One network for `count` rows: from the latents (not at the first step: `shared` has them) into `out`.
    void run(int network, const float* shared, const float* actions, int count, bool first_step, const Rows& out) {
        const Layer* layer = n.layers + 3 * network;
        if (first_step) {
            for (int r = 0; r < count; r++)
                std::memcpy(hidden.row(r), shared, round_up(layer->out, padding) * sizeof(float));
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
    void sample(int count, const float* mask, const float* eps, float* out) const {
        const int dim = n.action_dim;
        const Floats span = splat(0.5f * (n.log_std_max - n.log_std_min));
        for (int r = 0; r < count; r++)
            for (int i = 0; i < dim; i += lanes) {
                const Floats active = mask ? load_first(mask + i, dim - i) : splat(1);
                const Floats mean = load_first(hidden.row(r) + i, dim - i) * active;
                const Floats raw = load_first(hidden.row(r) + dim + i, dim - i);
                const Floats log_std = fma(span, tanh(raw) + splat(1), splat(n.log_std_min)) * active;
                const Floats noise = load_first(eps + size_t(r) * dim + i, dim - i) * active;
                const Floats std = exp(maximum(splat(lowest_exponent), minimum(splat(88), log_std)));
                store_first(out + size_t(r) * dim + i, tanh(fma(noise, std, mean)), dim - i);
            }
    }

    // total += weight / share * decoded output in `hidden`
    void add_decoded(int count, float share, float* total) const {
        for (int start = 0; start < count; start += lanes) {
            float value[lanes] = {};
            const int rows = smaller(lanes, count - start);
            for (int r = 0; r < rows; r++) value[r] = expected(hidden.row(start + r), n.bins, n.num_bins);
            store(value, symexp(load(value)));
            for (int r = 0; r < rows; r++) total[start + r] += weight[start + r] / share * value[r];
        }
    }

    // Give what comes after a predicted end no weight, from the logits of termination in `hidden`. A NaN ends the episode as
    // well, as in tdmpc2/planner.py.
    void end_terminated(int count) const {
        for (int r = 0; r < count; r++) weight[r] *= hidden.row(r)[0] <= 0 ? 1.0f : 0.0f;
    }

    const Networks& n;
    const Rows latent, hidden;
    float *const action, *const weight;  // weight: of each row's next reward or value
    int encoded = -1;  // format of the latents' codes
};

// Items [first, items) of a loop, on several threads; the work may be any callable.
template <class Work>
void parallel(int threads, int items, Work work) {
    const auto on_thread = [](void* context, int item) {
        constexpr bool tiles = shape_of(elements[BF16]) == TILES;
        if constexpr (tiles) configure_tiles();
        (*static_cast<Work*>(context))(item);
        if constexpr (tiles) release_tiles();
    };
    for_each_item(threads, items, on_thread, &work);
}

// A parallel loop over tiles of samples, after one over what the samples of an environment share.
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
        const int hidden = widest(n.layers, n.num_layers), width = round_up(hidden, padding);
        auto* const parts = static_cast<float*>(scratch(CALL, size_t(num_envs) * num_used * 2 * width * sizeof(float)));
        parallel(threads, num_envs * num_used * 2, [&](int i) {
            const int env = i / (2 * num_used);
            const Layer& layer = n.layers[3 * used[i / 2 % num_used]];
            const float* latent = i % 2 ? z + size_t(env) * n.latent_dim : nullptr;
            if (!latent || layer.latent)
                shared_part(n, layer, latent, task ? task + size_t(env) * n.task_dim : nullptr,
                            parts + size_t(i) * width);
        });
        int tiles = round_up(samples, tile_rows) / tile_rows;
        while (tiles < samples && num_envs * tiles % threads) tiles++;  // equally many for each thread
        const int rows = (samples + tiles - 1) / tiles;
        parallel(threads, num_envs * tiles, [&](int i) {
            const int env = i / tiles, start = i % tiles * rows, count = smaller(rows, samples - start);
            if (count <= 0) return;
            const auto shared = [&](int network, bool with_latent) {
                int index = 0;
                while (used[index] != network) index++;
                return parts + (size_t(env * num_used + index) * 2 + with_latent) * width;
            };
            Arena size{nullptr};
            Tile(size, n, rows, hidden);
            Arena arena{static_cast<char*>(scratch(ITEM, size.used))};
            Tile tile(arena, n, rows, hidden);
            work(tile, env, start, count, shared);
        });
    }
};

// What one observation needs on its way through the encoder.
struct Observation {
    Observation(Arena& arena, const Layer* encoder, int num_layers)
        : input(arena, 1, encoder->in), hidden(arena, 1, widest(encoder, num_layers)),
          fixed(arena.take<float>(round_up(encoder->out, padding))) {}

    const Rows input, hidden;
    float* const fixed;  // bias and task
};

void encode_observations(const Networks* n, const Layer* encoder, int num_layers, int num_envs, int threads,
                         const float* obs, const float* task, float* out) {
    parallel(threads, num_envs, [&](int env) {
        Arena size{nullptr};
        Observation(size, encoder, num_layers);
        Arena arena{static_cast<char*>(scratch(ITEM, size.used))};
        const Observation own(arena, encoder, num_layers);
        shared_part(*n, *encoder, nullptr, task ? task + size_t(env) * n->task_dim : nullptr, own.fixed);
        std::memcpy(own.input.row(0), obs + size_t(env) * encoder->in, encoder->in * sizeof(float));
        for (int i = 0; i < num_layers; i++) {
            const Layer& layer = encoder[i];
            const Rows& from = i ? own.hidden : own.input;
            encode(from, 1, layer.in, Format(layer.format));
            product(layer, from, 1, i ? layer.bias : own.fixed, own.hidden);
            finish(layer, own.hidden, 1, nullptr, 0, n->simnorm_dim);
        }
        std::memcpy(out + size_t(env) * n->latent_dim, own.hidden.row(0), n->latent_dim * sizeof(float));
    });
}

void normed_linear(const Layer* layer, int rows, int threads, const float* x, float* out) {
    parallel(threads, (rows + tile_rows - 1) / tile_rows, [&](int i) {
        const int start = i * tile_rows, count = smaller(tile_rows, rows - start);
        Arena size{nullptr};
        Rows(size, count, layer->in), Rows(size, count, layer->out);
        Arena arena{static_cast<char*>(scratch(ITEM, size.used))};
        const Rows input(arena, count, layer->in), output(arena, count, layer->out);
        for (int r = 0; r < count; r++)
            std::memcpy(input.row(r), x + size_t(start + r) * layer->in, layer->in * sizeof(float));
        encode(input, count, layer->in, Format(layer->format));
        product(*layer, input, count, layer->bias, output);
        finish(*layer, output, count, nullptr, 0, 1);
        for (int r = 0; r < count; r++)
            std::memcpy(out + size_t(start + r) * layer->out, output.row(r), layer->out * sizeof(float));
    });
}

void estimate_value(const Networks* n, int num_envs, int horizon, int samples, int num_heads, int threads,
                    const float* z, const float* task, const float* mask, const float* discount, const float* actions,
                    const float* eps, const int64_t* heads, float* out) {
    constexpr int most = 256;  // heads
    int used[HEADS + most + 1];
    num_heads = smaller(num_heads, most);
    for (int i = 0; i < HEADS + num_heads; i++) used[i] = i < HEADS ? i : HEADS + int(heads[i - HEADS]);
    used[HEADS + num_heads] = n->termination;
    const Job job{*n, num_envs, samples, threads, z, task, used, HEADS + num_heads + (n->termination ? 1 : 0)};
    job.run([&](Tile& tile, int env, int start, int count, auto shared) {
        float* total = out + size_t(env) * samples + start;
        for (int r = 0; r < count; r++) total[r] = 0, tile.weight[r] = 1;
        for (int t = 0; t < horizon; t++) {
            const bool first_step = t == 0;
            const float* action = actions + ((size_t(env) * horizon + t) * samples + start) * n->action_dim;
            tile.run(REWARD, shared(REWARD, first_step), action, count, first_step, tile.hidden);
            tile.add_decoded(count, 1, total);
            tile.run(DYNAMICS, shared(DYNAMICS, first_step), action, count, first_step, tile.latent);
            for (int r = 0; r < count; r++) tile.weight[r] *= discount[env];
            if (!n->termination) continue;
            tile.run(n->termination, shared(n->termination, false), nullptr, count, false, tile.hidden);
            tile.end_terminated(count);
        }
        tile.run(PI, shared(PI, false), nullptr, count, false, tile.hidden);
        tile.sample(count, mask ? mask + size_t(env) * n->action_dim : nullptr,
                    eps + (size_t(env) * samples + start) * n->action_dim, tile.action);
        for (int h = 0; h < num_heads; h++) {
            const int head = used[HEADS + h];
            tile.run(head, shared(head, false), tile.action, count, false, tile.hidden);
            tile.add_decoded(count, float(num_heads), total);
        }
        constexpr float largest = 3.402823466e38f;
        for (int r = 0; r < count; r++) {  // a sum that began with 0 is never -0, so that this tells of NaN
            const float x = total[r] < largest ? total[r] : total[r] == total[r] ? largest : -0.0f;
            total[r] = x > -largest ? x : -largest;
        }
    });
}

void policy_rollout(const Networks* n, int num_envs, int horizon, int samples, int threads, const float* z,
                    const float* task, const float* mask, const float* eps, float* out) {
    const int used[] = {PI, DYNAMICS};
    const Job job{*n, num_envs, samples, threads, z, task, used, horizon > 1 ? 2 : 1};
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

void scratch_bytes(const Networks* n, const Layer* encoder, int num_layers, int num_envs, int samples, size_t* bytes) {
    const int networks = n->num_layers / 3, hidden = widest(n->layers, n->num_layers);
    bytes[CALL] = size_t(num_envs) * networks * 2 * round_up(hidden, padding) * sizeof(float);
    Arena tile{nullptr}, observation{nullptr};
    Tile(tile, *n, tile_rows, hidden);
    Observation(observation, encoder, num_layers);
    const size_t order = size_t(samples) * sizeof(int32_t);  // of refit
    bytes[ITEM] = tile.used > observation.used ? tile.used : observation.used;
    bytes[ITEM] = bytes[ITEM] > order ? bytes[ITEM] : order;
}

}  // namespace

#define TDMPC2_STRING(x) #x
#define TDMPC2_NAME(x) TDMPC2_STRING(x)

#ifdef TDMPC2_ACTS_ONLY  // what only training needs is left out
constexpr decltype(Kernels::norm_mish) norm_mish = nullptr;
constexpr decltype(Kernels::norm_mish_backward) norm_mish_backward = nullptr;
#endif

extern const Kernels kernels;
const Kernels kernels = {TDMPC2_NAME(TDMPC2_VARIANT), packed_bytes, pack, normed_linear, estimate_value, policy_rollout,
                         norm_mish, norm_mish_backward, encode_observations, refit, scratch_bytes};

}  // namespace tdmpc2::TDMPC2_VARIANT
