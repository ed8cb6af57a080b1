// Uses libtdmpc2 as a robot's program would, and watches it.
//
//     agent plan MODEL THREADS ENVIRONMENTS STEPS INSTRUCTIONS    bits of all actions; INSTRUCTIONS may be -
//     agent allocations MODEL THREADS INSTRUCTIONS                allocations while it acts; this and the next two need
//                                                                 -DCOUNT
//     agent shared LARGE SMALL                                    the same of two models, the second with more threads
//     agent refused MODEL                                         the same, where the system gives no threads at first
//     agent threads MODEL INSTRUCTIONS                            two agents in two threads, each with helpers
//     agent open INSTRUCTIONS FILE...                             opens, plans with and closes each
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tdmpc2.hpp"

#ifdef COUNT
#include "counting.h"
#endif

namespace {

struct Loop {
    Loop(const char* model, const tdmpc2_options& options)
        : agent(model, options), obs(size_t(agent.environments()) * agent.obs_dim()),
          actions(size_t(agent.environments()) * agent.action_dim()), tasks(agent.environments()) {
        for (size_t i = 0; i < tasks.size(); i++) tasks[i] = int(i) % agent.num_tasks();
    }

    bool step(int t) {
        for (size_t i = 0; i < obs.size(); i++) obs[i] = float((t * 31 + int(i) * 17) % 23 - 11) / 16;  // exact
        return !agent.plan(obs.data(), actions.data(), tasks.data());
    }

    tdmpc2::Agent agent;
    std::vector<float> obs, actions;
    std::vector<int> tasks;
};

tdmpc2_options options_of(int threads, int environments) {
    tdmpc2_options options = tdmpc2_default_options();
    options.threads = threads, options.environments = environments, options.explore = 1;
    return options;
}

int plan(char** argv) {
    tdmpc2_options options = options_of(std::atoi(argv[1]), std::atoi(argv[2]));
    if (std::strcmp(argv[4], "-")) options.instructions = argv[4];
    Loop loop(argv[0], options);
    for (int t = 0; t < std::atoi(argv[3]); t++) {
        if (!loop.step(t)) return std::fprintf(stderr, "%s\n", loop.agent.error()), 1;
        for (float x : loop.actions) std::printf("%a ", double(x));
        if (loop.agent.policy(loop.obs.data(), loop.actions.data(), loop.tasks.data())) return 1;
        for (float x : loop.actions) std::printf("%a ", double(x));
    }
    std::printf("\n");
    return 0;
}

#ifdef COUNT
int count(char** argv) {
    tdmpc2_options options = options_of(std::atoi(argv[1]), 2);
    if (std::strcmp(argv[2], "-")) options.instructions = argv[2];
    Loop loop(argv[0], options);
    const long before = allocations;
    for (int t = 0; t < 20; t++) {
        if (!loop.step(t)) return 1;
        loop.agent.policy(loop.obs.data(), loop.actions.data(), loop.tasks.data());
        if (t % 7 == 6) loop.agent.reset(t % 2);
    }
    loop.obs[0] = NAN;
    const bool refused = loop.agent.plan(loop.obs.data(), loop.actions.data(), loop.tasks.data()) == TDMPC2_NOT_FINITE;
    const long acting = allocations - before;
    long elsewhere = 0;
    std::thread other([&] {
        const long own = allocations;
        loop.step(20);
        elsewhere = allocations - own;
    });
    other.join();
    std::printf("%ld while acting, %ld in another thread, %ld before, NaN %s\n", acting, elsewhere, before,
                refused ? "refused" : "taken");
    return 0;
}

// Allocations of so many steps.
long allocated(Loop& loop, int steps) {
    const long before = allocations;
    for (int t = 0; t < steps; t++)
        if (!loop.step(t)) std::abort();
    return allocations - before;
}

int shared(char** argv) {
    Loop large(argv[0], options_of(2, 2)), little(argv[1], options_of(5, 2));
    long first = 0;  // in turns: after a small plan all threads are awake, and any of them may help with a large one
    for (int t = 0; t < 50; t++) first += allocated(little, 1) + allocated(large, 1);
    int status = 0, channel[2];
    if (pipe(channel)) return 1;
    const pid_t child = fork();
    if (child == 0) {  // it has no threads before its first plan
        allocated(little, 1);
        const long own = allocated(large, 20) + allocated(little, 20);
        _exit(write(channel[1], &own, sizeof own) != sizeof own);
    }
    long forked = -1;
    if (read(channel[0], &forked, sizeof forked) != sizeof forked || waitpid(child, &status, 0) != child) return 1;
    std::printf("%ld while acting, %ld in a fork\n", first, forked);
    return status;
}

int refused(char** argv) {
    no_more_threads = true;
    Loop alone(argv[0], options_of(4, 2));
    const long asked = threads_asked_for, counted = allocated(alone, 20), again = threads_asked_for - asked;
    no_more_threads = false;
    Loop helped(argv[0], options_of(4, 2));
    std::printf("%ld while acting, %ld threads asked for at first, %ld by plans, %ld later\n", counted, asked, again,
                threads_asked_for - asked);
    return 0;
}
#endif

int threads(char** argv) {
    std::vector<std::thread> users;
    std::atomic<int> failed{0};
    for (int i = 0; i < 2; i++)
        users.emplace_back([&] {
            tdmpc2_options options = options_of(3, 2);
            options.instructions = argv[1];
            Loop loop(argv[0], options);
            for (int t = 0; t < 6; t++) failed += !loop.step(t);
        });
    for (std::thread& user : users) user.join();
    return failed;
}

int open(const char* instructions, int count, char** files) {
    for (int i = 0; i < count; i++) {
        tdmpc2_options options = options_of(1, 1);
        options.instructions = instructions;
        options.num_samples = 8, options.num_elites = 2, options.num_pi_trajs = 1, options.iterations = 1;
        if (tdmpc2_agent* agent = tdmpc2_open(files[i], &options)) {
            const std::vector<float> obs(size_t(tdmpc2_obs_dim(agent)));
            std::vector<float> actions(size_t(tdmpc2_action_dim(agent)));
            const int task = 0;
            std::printf("opened %d\n", int(tdmpc2_plan(agent, obs.data(), &task, actions.data())));
            tdmpc2_close(agent);
        } else {
            std::printf("refused %s\n", tdmpc2_error(nullptr));
        }
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string what = argc > 2 ? argv[1] : "";
    try {
        if (what == "plan" && argc == 7) return plan(argv + 2);
#ifdef COUNT
        if (what == "allocations" && argc == 5) return count(argv + 2);
        if (what == "shared" && argc == 4) return shared(argv + 2);
        if (what == "refused") return refused(argv + 2);
#endif
        if (what == "threads" && argc == 4) return threads(argv + 2);
        if (what == "open") return open(argv[2], argc - 3, argv + 3);
    } catch (const tdmpc2::Error& error) {
        return std::fprintf(stderr, "%s\n", error.what()), 1;
    }
    return std::fprintf(stderr, "see the head of agent.cpp\n"), 2;
}
