// Acting in a group of environments: the plans that are carried from call to call (tdmpc2/player.py, tdmpc2/planner.py).
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"
#include "random.h"
#include "tdmpc2.h"
#include "threads.h"

namespace tdmpc2 {

// Sizes of the search.
struct Budget {
    int threads, environments, horizon, iterations, samples, elites, policy_samples;
    bool explore;
};

// Why a call could not be done, without memory that would have to be allocated.
struct Problem {
    tdmpc2_status status;
    int environment;
    const char* text;
};

class Actor {
  public:
    // All memory that later calls need. Throws std::bad_alloc.
    Actor(const Card& card, const Model& model, const Kernels& kernels, const Budget& budget, uint64_t seed);

    Problem plan(const float* obs, const int* task, const tdmpc2_noise* noise, float* actions);
    Problem policy(const float* obs, const int* task, float* actions);
    void reset(int first, int count);
    void seed(uint64_t seed);

  private:
    Problem observe(const float* obs, const int* task);
    enum Order { BY_ENVIRONMENT, BY_BLOCK };
    void draw(Purpose purpose, int iteration, Order order, int blocks, size_t block_size, float* out);
    void sample(const float* noise);
    void act(const float* elite, const float* noise);
    Problem give(float* actions) const;
    const float* mask() const { return own_mask.empty() ? nullptr : own_mask.data(); }
    const float* task_embedding() const { return embedding.empty() ? nullptr : embedding.data(); }

    template <class Work>
    void parallel(int items, Work work);

    const Card& card;
    const Model& model;
    const Kernels& kernels;
    const Budget b;
    const int dim;  // A

    Scratch scratch;
    std::vector<float> latent, embedding, own_mask, discount;            // of the tasks of this call
    std::vector<float> noise, value_noise, few_noise;                    // of this iteration
    std::vector<float> policy_actions, no_noise, all_actions, value, executed;
    std::vector<float> before, mean, std, elite_value, score, elite_actions;  // before: the plans, [E, H, A]
    std::vector<int> now, of_plan;  // tasks of this call and of the plans; -1: a plan that begins
    uint64_t key, calls = 0;
};

}  // namespace tdmpc2
