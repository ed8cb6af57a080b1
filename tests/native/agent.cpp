// Uses libtdmpc2 as a robot's program would, and watches it.
//
//     agent plan MODEL THREADS ENVIRONMENTS STEPS INSTRUCTIONS    bits of all actions; INSTRUCTIONS may be -
//     agent allocations MODEL THREADS                             allocations while it acts
//     agent threads MODEL                                         two agents in two threads, each with helpers
//     agent open FILE...                                          opens, plans with and closes each
#include <errno.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tdmpc2.hpp"

#ifdef COUNT_ALLOCATIONS  // these take the place of the C library's in the whole process; operator new ends here as well
static std::atomic<long> allocations{0};
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t size) { return allocations++, __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return allocations++, __libc_calloc(count, size); }
void* realloc(void* block, size_t size) { return allocations++, __libc_realloc(block, size); }
void* aligned_alloc(size_t alignment, size_t size) { return allocations++, __libc_memalign(alignment, size); }
void* memalign(size_t alignment, size_t size) { return allocations++, __libc_memalign(alignment, size); }
int posix_memalign(void** to, size_t alignment, size_t size) {
    return allocations++, (*to = __libc_memalign(alignment, size)) ? 0 : ENOMEM;
}
}
#else
static std::atomic<long> allocations{-1};
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

int count(char** argv) {
    Loop loop(argv[0], options_of(std::atoi(argv[1]), 2));
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

int threads(char** argv) {
    std::vector<std::thread> users;
    std::atomic<int> failed{0};
    for (int i = 0; i < 2; i++)
        users.emplace_back([&] {
            Loop loop(argv[0], options_of(3, 2));
            for (int t = 0; t < 6; t++) failed += !loop.step(t);
        });
    for (std::thread& user : users) user.join();
    return failed;
}

int open(int count, char** files) {
    for (int i = 0; i < count; i++) {
        tdmpc2_options options = options_of(1, 1);
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
        if (what == "allocations" && argc == 4) return count(argv + 2);
        if (what == "threads") return threads(argv + 2);
        if (what == "open") return open(argc - 2, argv + 2);
    } catch (const tdmpc2::Error& error) {
        return std::fprintf(stderr, "%s\n", error.what()), 1;
    }
    return std::fprintf(stderr, "see the head of agent.cpp\n"), 2;
}
