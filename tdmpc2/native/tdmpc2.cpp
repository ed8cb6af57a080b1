// The C interface: arguments are checked here, and no exception passes.
#include "tdmpc2.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <thread>

#include "plan.h"

namespace {

using namespace tdmpc2;

constexpr int most_threads = 1024, most_environments = 1 << 16;
constexpr size_t message_size = 512;

// What was wrong with the last file. Of a thread's variables there is little memory (threads.cpp).
thread_local std::unique_ptr<char[]> kept;
thread_local const char* opening = "";

// Text may have names of the file in it, which must not write to a terminal what they like. Of a long path its end is
// shown, so that the reason has room.
void tell(const char* path, const char* text) {
    kept.reset(new (std::nothrow) char[message_size]);
    opening = kept ? kept.get() : "there is not enough memory";
    if (!kept) return;
    if (!path) path = "tdmpc2_open";
    const size_t length = std::strlen(path), most = message_size / 2;
    const char* end = path + (length > most ? length - most : 0);
    while ((*end & 0xc0) == 0x80) end++;  // not in the middle of a character of UTF-8
    const int used = std::snprintf(kept.get(), message_size, "%s%s: ", length > most ? "..." : "", end);
    char* const rest = kept.get() + std::min(size_t(std::max(used, 0)), message_size - 1);
    std::snprintf(rest, message_size - size_t(rest - kept.get()), "%s", text);
    for (char* c = rest; *c; c++)
        if (*c < 0x20 || *c > 0x7e) *c = '?';
}

Budget budget_of(const Card& card, const tdmpc2_options& o) {
    const auto chosen = [](const char* name, int value, int otherwise, int least, int most) {
        const int found = value ? value : otherwise;
        if (found < least || found > most)
            throw Refused(std::string(name) + "=" + std::to_string(found) + " must be from " + std::to_string(least) +
                          " to " + std::to_string(most));
        return found;
    };
    const int processors = std::min(int(std::thread::hardware_concurrency()), most_threads);
    Budget b{};
    b.threads = chosen("threads", o.threads, processors > 0 ? processors : 1, 1, most_threads);
    b.environments = chosen("environments", o.environments, 1, 1, most_environments);
    b.iterations = chosen("iterations", o.iterations, card.iterations, 1, 4095);
    b.horizon = chosen("horizon", o.horizon, card.horizon, 1, 1024);
    b.samples = chosen("num_samples", o.num_samples, card.num_samples, 2, 1 << 20);
    // As Python scales them where num_samples alone is typed (config/sizes.py).
    const auto scaled = [&](int of, int least, int most) {
        if (!o.num_samples) return of;
        return std::min(std::max(least, int(std::nearbyint(double(of) * b.samples / card.num_samples))), most);
    };
    const int elites = scaled(card.num_elites, std::min(2, card.num_elites), b.samples);
    b.elites = chosen("num_elites", o.num_elites, elites, 1, b.samples);
    b.policy_samples =
        chosen("num_pi_trajs", o.num_pi_trajs, scaled(card.num_pi_trajs, 1, b.samples - 1), 0, b.samples - 1);
    b.explore = o.explore;
    return b;
}

}  // namespace

struct tdmpc2_agent {
    tdmpc2_agent(const TensorFile& file, const tdmpc2_options& o)
        : card(file), kernels(choose_kernels(o.instructions)), model(file, card, kernels, o.precision),
          budget(budget_of(card, o)), actor(card, model, kernels, budget, o.seed) {}

    tdmpc2_status done(const Problem& problem) {
        if (problem.status) std::snprintf(message, message_size, "Environment %d: %s", problem.environment, problem.text);
        return problem.status;
    }
    tdmpc2_status refuse(const char* text) {
        std::snprintf(message, message_size, "%s", text);
        return TDMPC2_BAD_ARGUMENT;
    }
    bool has(int task) const { return task >= 0 && task < int(card.tasks.size()); }

    const Card card;
    const Kernels& kernels;
    const Model model;
    const Budget budget;
    Actor actor;
    char message[message_size] = "";
};

namespace {

// Check what all calls that act are given, then call `act`.
template <class Act>
tdmpc2_status acting(tdmpc2_agent* agent, const float* obs, const int* task, float* actions, Act act) {
    if (!agent) return TDMPC2_BAD_ARGUMENT;
    if (!obs || !actions) return agent->refuse("obs and actions must not be NULL");
    if (!task && agent->card.tasks.size() > 1) return agent->refuse("the model has several tasks: pass their numbers");
    return agent->done(act(agent->actor));
}

}  // namespace

tdmpc2_options tdmpc2_default_options(void) {
    tdmpc2_options options{};
    options.size = sizeof options, options.threads = 1, options.environments = 1, options.seed = 1;
    return options;
}

tdmpc2_agent* tdmpc2_open(const char* path, const tdmpc2_options* options) {
    opening = "";
    try {
        if (!path) throw Refused("no path was given");
        if (options && options->size != sizeof *options)  // before the rest is read, which may not be there
            throw Refused("the options are not those of this version's header");
        const tdmpc2_options chosen = options ? *options : tdmpc2_default_options();
        if (chosen.precision < TDMPC2_AS_WRITTEN || chosen.precision > TDMPC2_BF16)
            throw Refused("the precision is none of those in tdmpc2.h");
        return new tdmpc2_agent(TensorFile(path), chosen);
    } catch (const std::bad_alloc&) {
        tell(path, "there is not enough memory");
    } catch (const std::exception& error) {
        tell(path, error.what());
    } catch (...) {
        tell(path, "it cannot be opened");
    }
    return nullptr;
}

void tdmpc2_close(tdmpc2_agent* agent) { delete agent; }

tdmpc2_status tdmpc2_plan(tdmpc2_agent* agent, const float* obs, const int* task, float* actions) {
    return acting(agent, obs, task, actions, [&](Actor& actor) { return actor.plan(obs, task, nullptr, actions); });
}

tdmpc2_status tdmpc2_policy(tdmpc2_agent* agent, const float* obs, const int* task, float* actions) {
    return acting(agent, obs, task, actions, [&](Actor& actor) { return actor.policy(obs, task, actions); });
}

tdmpc2_status tdmpc2_plan_with_noise(tdmpc2_agent* agent, const float* obs, const int* task, const tdmpc2_noise* noise,
                                     float* actions) {
    if (!agent) return TDMPC2_BAD_ARGUMENT;
    if (!noise || !noise->policy || !noise->samples || !noise->value || !noise->heads || !noise->elite || !noise->action)
        return agent->refuse("noise must hold all random numbers");
    for (int i = 0; i < 2 * agent->budget.iterations; i++)
        if (noise->heads[i] < 0 || noise->heads[i] >= agent->card.num_q) return agent->refuse("there is no such Q head");
    return acting(agent, obs, task, actions, [&](Actor& actor) { return actor.plan(obs, task, noise, actions); });
}

tdmpc2_status tdmpc2_reset(tdmpc2_agent* agent, int environment) {
    if (!agent) return TDMPC2_BAD_ARGUMENT;
    if (environment < -1 || environment >= agent->budget.environments)
        return agent->refuse("there is no environment of this number");
    if (environment < 0) agent->actor.reset(0, agent->budget.environments);
    else agent->actor.reset(environment, 1);
    return TDMPC2_OK;
}

tdmpc2_status tdmpc2_seed(tdmpc2_agent* agent, uint64_t seed) {
    if (!agent) return TDMPC2_BAD_ARGUMENT;
    agent->actor.seed(seed);
    return TDMPC2_OK;
}

const char* tdmpc2_error(const tdmpc2_agent* agent) { return agent ? agent->message : opening; }

int tdmpc2_obs_dim(const tdmpc2_agent* agent) { return agent ? agent->card.obs_dim : 0; }
int tdmpc2_action_dim(const tdmpc2_agent* agent) { return agent ? agent->card.action_dim : 0; }
int tdmpc2_horizon(const tdmpc2_agent* agent) { return agent ? agent->budget.horizon : 0; }
int tdmpc2_environments(const tdmpc2_agent* agent) { return agent ? agent->budget.environments : 0; }
int tdmpc2_num_tasks(const tdmpc2_agent* agent) { return agent ? int(agent->card.tasks.size()) : 0; }

int tdmpc2_task_number(const tdmpc2_agent* agent, const char* name) {
    for (int i = 0; agent && name && agent->has(i); i++)
        if (agent->card.tasks[size_t(i)].name == name) return i;
    return -1;
}

const char* tdmpc2_task_name(const tdmpc2_agent* agent, int task) {
    return agent && agent->has(task) ? agent->card.tasks[size_t(task)].name.c_str() : nullptr;
}

int tdmpc2_task_obs_dim(const tdmpc2_agent* agent, int task) {
    return agent && agent->has(task) ? agent->card.tasks[size_t(task)].obs_dim : 0;
}

int tdmpc2_task_action_dim(const tdmpc2_agent* agent, int task) {
    return agent && agent->has(task) ? agent->card.tasks[size_t(task)].action_dim : 0;
}

const char* tdmpc2_card(const tdmpc2_agent* agent) { return agent ? agent->card.text.c_str() : nullptr; }
const char* tdmpc2_instructions(const tdmpc2_agent* agent) { return agent ? agent->kernels.name : nullptr; }
