#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace tdmpc2 {
namespace {

constexpr float largest = 3.402823466e38f;
constexpr size_t most_numbers = size_t(1) << 31;

bool finite(const float* x, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!std::isfinite(x[i])) return false;
    return true;
}

// True if a value is none, as estimate_value marks it.
bool replaced(float x) { return !(std::fabs(x) < largest) || (x == 0 && std::signbit(x)); }

float clamped(float x) { return std::min(std::max(x, -1.0f), 1.0f); }

// The product of sizes. Throws where no memory could hold as many numbers.
size_t numbers(std::initializer_list<int> sizes) {
    size_t count = 1;
    for (int n : sizes)
        if ((count *= size_t(n)) > most_numbers) throw std::bad_alloc();
    return count;
}

}  // namespace

template <class Work>
void Actor::parallel(int items, Work work) {
    for_each_item(b.threads, items, [](void* context, int i) { (*static_cast<Work*>(context))(i); }, &work);
}

Actor::Actor(const Card& card, const Model& model, const Kernels& kernels, const Budget& budget, uint64_t seed)
    : card(card), model(model), kernels(kernels), b(budget), dim(card.action_dim), key(seed) {
    const int envs = b.environments, random_samples = b.samples - b.policy_samples;
    latent.resize(numbers({envs, card.latent_dim}));
    embedding.resize(numbers({envs, card.task_dim}));
    own_mask.resize(card.multitask ? numbers({envs, dim}) : 0);
    discount.resize(size_t(envs));
    noise.resize(numbers({envs, b.horizon, std::max(random_samples, b.policy_samples), dim}));
    value_noise.resize(numbers({envs, b.samples, dim}));
    few_noise.resize(numbers({envs, std::max(b.elites, dim)}));
    policy_actions.resize(numbers({envs, b.horizon, std::max(b.policy_samples, 1), dim}));
    no_noise.resize(card.start_at_policy ? numbers({envs, b.horizon, dim}) : 0);
    all_actions.resize(numbers({envs, b.horizon, b.samples, dim}));
    value.resize(numbers({envs, b.samples}));
    before.resize(numbers({envs, b.horizon, dim}));
    mean = std = before;
    elite_value.resize(numbers({envs, b.elites}));
    score = elite_value;
    elite_actions.resize(numbers({envs, b.horizon, b.elites, dim}));
    executed.resize(numbers({envs, dim}));
    now.resize(size_t(envs));
    of_plan.assign(size_t(envs), -1);

    size_t bytes[num_slots];
    kernels.scratch_bytes(&model.networks, model.encoder.data(), int(model.encoder.size()), envs, b.samples, bytes);
    bool enough = tdmpc2::reserve(b.threads, bytes);
    for (int slot = 0; slot < num_slots; slot++) enough = scratch.reserve(Slot(slot), bytes[slot]) && enough;
    if (!enough) throw std::bad_alloc();
}

void Actor::reset(int first, int count) {
    std::fill_n(before.begin() + ptrdiff_t(first) * b.horizon * dim, ptrdiff_t(count) * b.horizon * dim, 0.0f);
    std::fill_n(of_plan.begin() + first, count, -1);
}

void Actor::seed(uint64_t seed) { key = seed, calls = 0; }

// Check what a call was given, look up its tasks and encode the observations.
Problem Actor::observe(const float* obs, const int* task) {
    const int tasks = int(card.tasks.size());
    for (int env = 0; env < b.environments; env++) {
        const int own = task ? task[env] : 0;
        if (own < 0 || own >= tasks) return {TDMPC2_BAD_ARGUMENT, env, "the model has no task of this number"};
        if (!finite(obs + size_t(env) * card.obs_dim, size_t(card.obs_dim)))
            return {TDMPC2_NOT_FINITE, env, "the observation has values that are not finite"};
        now[env] = own;
        discount[env] = model.discounts[own];
        if (card.multitask)
            std::copy_n(model.masks.begin() + ptrdiff_t(own) * dim, dim, own_mask.begin() + ptrdiff_t(env) * dim);
        std::copy_n(model.embeddings.begin() + ptrdiff_t(own) * card.task_dim, card.task_dim,
                    embedding.begin() + ptrdiff_t(env) * card.task_dim);
    }
    kernels.encode(&model.networks, model.encoder.data(), int(model.encoder.size()), b.environments, b.threads, obs,
                   task_embedding(), latent.data());
    for (int env = 0; env < b.environments; env++)
        if (!finite(latent.data() + size_t(env) * card.latent_dim, size_t(card.latent_dim)))
            return {TDMPC2_NOT_FINITE, env, "the encoded observation is not finite: it is too large for the weights"};
    return {TDMPC2_OK, 0, nullptr};
}

// Standard normal numbers [E, blocks, block_size] or [blocks, E, block_size], each environment's from its own place.
void Actor::draw(Purpose purpose, int iteration, Order order, int blocks, size_t block_size, float* out) {
    const size_t stride = (block_size + 3) / 4 * 4;
    parallel(blocks * b.environments, [&](int i) {
        const int env = order == BY_ENVIRONMENT ? i / blocks : i % b.environments;
        const int block = order == BY_ENVIRONMENT ? i % blocks : i / b.environments;
        const Place place{key, calls, purpose, uint32_t(iteration), uint32_t(env)};
        normals(place, size_t(block) * stride, block_size, out + size_t(i) * block_size);
    });
}

// Action sequences around (mean, std), behind those of the policy.
void Actor::sample(const float* numbers) {
    const int random_samples = b.samples - b.policy_samples;
    parallel(b.environments * b.horizon, [&](int i) {
        const int env = i / b.horizon;
        const float *m = mean.data() + size_t(i) * dim, *s = std.data() + size_t(i) * dim;
        float* to = all_actions.data() + size_t(i) * b.samples * dim;
        const size_t from_policy = size_t(b.policy_samples) * dim;
        std::copy_n(policy_actions.data() + size_t(i) * from_policy, from_policy, to);
        const float* x = numbers + size_t(i) * random_samples * dim;
        for (int k = 0; k < random_samples; k++)
            for (int a = 0; a < dim; a++)
                to[from_policy + size_t(k) * dim + a] = clamped(m[a] + s[a] * x[size_t(k) * dim + a]);
        if (!own_mask.empty())
            for (int k = 0; k < b.samples; k++)
                for (int a = 0; a < dim; a++) to[size_t(k) * dim + a] *= own_mask[size_t(env) * dim + a];
    });
}

// The actions to execute: of an elite drawn by score, or the mean.
void Actor::act(const float* elite, const float* numbers) {
    for (int env = 0; env < b.environments; env++) {
        int chosen = 0;
        float best = -INFINITY;
        for (int k = 0; k < b.elites; k++) {
            const float own = score[size_t(env) * b.elites + k];
            const float sum = own < 1e-37f ? -INFINITY : logarithm(own) + elite[size_t(env) * b.elites + k];
            if (sum > best) best = sum, chosen = k;
        }
        const float* from = card.mean_action ? mean.data() + size_t(env) * b.horizon * dim
                                             : elite_actions.data() +
                                                   (size_t(env) * b.horizon * b.elites + size_t(chosen)) * dim;
        for (int a = 0; a < dim; a++) {
            float x = from[a];
            if (b.explore) x += std[size_t(env) * b.horizon * dim + a] * numbers[size_t(env) * dim + a];
            executed[size_t(env) * dim + a] = clamped(x);
        }
    }
}

// Hand actions to the caller, if all are finite.
Problem Actor::give(float* actions) const {
    for (int env = 0; env < b.environments; env++)
        if (!finite(executed.data() + size_t(env) * dim, size_t(dim)))
            return {TDMPC2_NOT_FINITE, env, "the action is not finite: the observation is too large for the weights"};
    std::copy_n(executed.data(), size_t(b.environments) * dim, actions);
    return {TDMPC2_OK, 0, nullptr};
}

Problem Actor::plan(const float* obs, const int* task, const tdmpc2_noise* given, float* actions) {
    const Lend lend(&scratch);
    if (const Problem problem = observe(obs, task); problem.status) return problem;
    const int envs = b.environments, random_samples = b.samples - b.policy_samples;
    for (int env = 0; env < envs; env++)
        if (of_plan[env] >= 0 && of_plan[env] != now[env])
            return {TDMPC2_BAD_ARGUMENT, env, "its plan is of another task: an episode begins with tdmpc2_reset"};
    const size_t policy_block = size_t(b.policy_samples) * dim, sample_block = size_t(random_samples) * dim;
    if (b.policy_samples) {
        if (!given) draw(POLICY, 0, BY_BLOCK, b.horizon, policy_block, noise.data());
        kernels.policy_rollout(&model.networks, envs, b.horizon, b.policy_samples, b.threads, latent.data(),
                               task_embedding(), mask(), given ? given->policy : noise.data(), policy_actions.data());
    }
    for (int env = 0; env < envs && !card.start_at_policy; env++) {
        const size_t own = size_t(env) * b.horizon * dim, later = size_t(b.horizon - 1) * dim;
        std::copy_n(before.data() + own + dim, later, mean.data() + own);
        std::fill_n(mean.data() + own + later, dim, 0.0f);
    }
    if (card.start_at_policy)
        kernels.policy_rollout(&model.networks, envs, b.horizon, 1, b.threads, latent.data(), task_embedding(), mask(),
                               no_noise.data(), mean.data());
    std::fill(std.begin(), std.end(), model.limits[2]);
    for (int i = 0; i < b.iterations; i++) {
        int64_t heads[2] = {0, 1};
        if (card.num_q > 2 && given) std::copy_n(given->heads + size_t(i) * 2, 2, heads);
        else if (card.num_q > 2)
            two_of({key, calls, HEAD_CHOICE, uint32_t(i), 0}, uint32_t(card.num_q), heads);
        if (!given) {
            draw(SAMPLES, i, BY_ENVIRONMENT, b.horizon, sample_block, noise.data());
            draw(VALUE, i, BY_ENVIRONMENT, 1, size_t(b.samples) * dim, value_noise.data());
        }
        sample(given ? given->samples + size_t(i) * envs * b.horizon * sample_block : noise.data());
        kernels.estimate_value(&model.networks, envs, b.horizon, b.samples, std::min(card.num_q, 2), b.threads,
                               latent.data(), task_embedding(), mask(), discount.data(), all_actions.data(),
                               given ? given->value + size_t(i) * envs * b.samples * dim : value_noise.data(), heads,
                               value.data());
        kernels.refit(envs, b.horizon, b.samples, dim, b.elites, b.threads, model.limits.data(), mask(),
                      all_actions.data(), value.data(), mean.data(), std.data(), elite_value.data(), score.data(),
                      elite_actions.data());
    }
    for (int env = 0; env < envs; env++) {
        const float* own = elite_value.data() + size_t(env) * b.elites;
        if (std::all_of(own, own + b.elites, replaced) ||
            !finite(mean.data() + size_t(env) * b.horizon * dim, size_t(b.horizon) * dim))
            return {TDMPC2_NOT_FINITE, env, "no value of its plan is finite: the observation is too large for the weights"};
    }
    if (!given) {
        for (int env = 0; env < envs; env++)
            gumbels({key, calls, ELITE, 0, uint32_t(env)}, size_t(b.elites), value.data() + size_t(env) * b.elites);
        draw(ACTION, 0, BY_ENVIRONMENT, 1, size_t(dim), few_noise.data());
    }
    act(given ? given->elite : value.data(), given ? given->action : few_noise.data());
    if (const Problem problem = give(actions); problem.status) return problem;
    before.swap(mean);
    of_plan = now;
    calls += !given;
    return {TDMPC2_OK, 0, nullptr};
}

Problem Actor::policy(const float* obs, const int* task, float* actions) {
    const Lend lend(&scratch);
    if (const Problem problem = observe(obs, task); problem.status) return problem;
    if (b.explore) draw(PRIOR, 0, BY_ENVIRONMENT, 1, size_t(dim), few_noise.data());
    else std::fill(few_noise.begin(), few_noise.end(), 0.0f);
    kernels.policy_rollout(&model.networks, b.environments, 1, 1, b.threads, latent.data(), task_embedding(), mask(),
                           few_noise.data(), executed.data());
    const Problem problem = give(actions);
    calls += b.explore && !problem.status;
    return problem;
}

}  // namespace tdmpc2
