// MPPI's fit of mean and standard deviation to the elites (refit of tdmpc2/planner.py). It takes microseconds, so it is
// compiled once and not for each variant: plain float32 in one order gives the same bits everywhere.
#include <algorithm>
#include <cmath>

#include "exponential.h"
#include "kernels.h"

namespace tdmpc2 {
namespace {

struct Sizes {
    int horizon, samples, action_dim, num_elites;
};

// Elites by descending value, of equal ones the first sample first.
void choose(const Sizes& s, const float* value, int32_t* order) {
    for (int i = 0; i < s.samples; i++) order[i] = i;
    const auto better = [&](int32_t a, int32_t b) { return value[a] > value[b] || (value[a] == value[b] && a < b); };
    std::partial_sort(order, order + s.num_elites, order + s.samples, better);
}

void fit(const Sizes& s, const float* limits, float norm, const float* mask, const float* score, const float* elites,
         float* mean, float* std) {
    for (int t = 0; t < s.horizon; t++)
        for (int a = 0; a < s.action_dim; a++) {
            const float* x = elites + size_t(t) * s.num_elites * s.action_dim + a;
            float first = 0, second = 0;
            for (int k = 0; k < s.num_elites; k++) first += score[k] * x[size_t(k) * s.action_dim];
            first /= norm;
            for (int k = 0; k < s.num_elites; k++) {
                const float off = x[size_t(k) * s.action_dim] - first;
                second += score[k] * (off * off);
            }
            const float active = mask ? mask[a] : 1;
            mean[t * s.action_dim + a] = first * active;
            std[t * s.action_dim + a] = std::min(std::max(std::sqrt(second / norm), limits[0]), limits[1]) * active;
        }
}

}  // namespace

// Settings are temperature, min_std and max_std. actions [E, H, S, A], value [E, S], mask [E, A] or null -> mean and std
// [E, H, A], elite_value and score [E, K], elite_actions [E, H, K, A].
void refit(int num_envs, int horizon, int samples, int action_dim, int num_elites, int threads, const float* settings,
           const float* mask, const float* actions, const float* value, float* mean, float* std, float* elite_value,
           float* score, float* elite_actions) {
    const Sizes s{horizon, samples, action_dim, num_elites};
    const auto work = [&](int env) {
        auto* const order = static_cast<int32_t*>(scratch(ITEM, size_t(samples) * sizeof(int32_t)));
        choose(s, value + size_t(env) * samples, order);
        float* const own_value = elite_value + size_t(env) * num_elites;
        float* const own_score = score + size_t(env) * num_elites;
        float* const elites = elite_actions + size_t(env) * horizon * num_elites * action_dim;
        float total = 0;
        for (int k = 0; k < num_elites; k++) {
            own_value[k] = value[size_t(env) * samples + order[k]];
            total += own_score[k] = exponential(settings[0] * (own_value[k] - own_value[0]));
        }
        float norm = 0;
        for (int k = 0; k < num_elites; k++) norm += own_score[k] /= total;
        for (int t = 0; t < horizon; t++)
            for (int k = 0; k < num_elites; k++)
                std::copy_n(actions + ((size_t(env) * horizon + t) * samples + order[k]) * action_dim, action_dim,
                            elites + (size_t(t) * num_elites + k) * action_dim);
        fit(s, settings + 1, norm + 1e-9f, mask ? mask + size_t(env) * action_dim : nullptr, own_score, elites,
            mean + size_t(env) * horizon * action_dim, std + size_t(env) * horizon * action_dim);
    };
    for_each_item(threads, num_envs, [](void* context, int env) { (*static_cast<decltype(work)*>(context))(env); },
                  const_cast<void*>(static_cast<const void*>(&work)));
}

}  // namespace tdmpc2
