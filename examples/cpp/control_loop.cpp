// Plans at a fixed rate, as a robot would, and reports how well it kept time.
//
//     control_loop MODEL [HERTZ] [STEPS] [THREADS] [TASK]     HERTZ 0: as fast as it can
//
// Observations are made up: `observe` and `apply` are what a robot replaces. For short latencies on a real robot give the
// process a real-time priority (chrt -f 50) and a processor of its own (isolcpus, taskset).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "tdmpc2.hpp"

using Clock = std::chrono::steady_clock;

static void observe(int step, std::vector<float>& observation, int size) {
    for (int i = 0; i < size; i++) observation[size_t(i)] = std::sin(0.05f * float(step) + float(i));
}

static void apply(const std::vector<float>& action) { static_cast<void>(action); }

static double milliseconds(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

// The numbers have to be sorted.
static double percentile(const std::vector<double>& sorted, double share) {
    return sorted[std::min(sorted.size() - 1, size_t(share * double(sorted.size())))];
}

static void report(const char* what, std::vector<double> times) {
    std::sort(times.begin(), times.end());
    std::printf("%s: median %.3f ms, 99.9th percentile %.3f ms (%.2f of the median), longest %.3f ms\n", what,
                percentile(times, 0.5), percentile(times, 0.999), percentile(times, 0.999) / percentile(times, 0.5),
                times.back());
}

int main(int argc, char** argv) try {
    const Clock::time_point began = Clock::now();
    if (argc < 2) return std::fprintf(stderr, "usage: %s MODEL [HERTZ] [STEPS] [THREADS] [TASK]\n", argv[0]), 2;
    const double hertz = argc > 2 ? std::atof(argv[2]) : 20;
    const int steps = argc > 3 ? std::max(1, std::atoi(argv[3])) : 200;
    tdmpc2_options options = tdmpc2_default_options();
    options.threads = argc > 4 ? std::atoi(argv[4]) : 1;
    tdmpc2::Agent agent(argv[1], options);
    const int task = argc > 5 ? agent.task(argv[5]) : 0;
    const int size = tdmpc2_task_obs_dim(agent.get(), task);
    std::vector<float> observation(size_t(agent.obs_dim())), action(size_t(agent.action_dim()));
    std::vector<double> planning, periods;  // with room for all: the loop allocates nothing
    planning.reserve(size_t(steps)), periods.reserve(size_t(steps));

    const auto period = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(hertz > 0 ? 1 / hertz : 0));
    Clock::time_point next = Clock::now(), before = next;
    double first = 0;
    int late = 0;
    for (int step = 0; step < steps; step++) {
        const Clock::time_point start = Clock::now();
        observe(step, observation, size);
        if (agent.plan(observation.data(), action.data(), &task)) return std::fprintf(stderr, "%s\n", agent.error()), 1;
        apply(action);
        const Clock::time_point end = Clock::now();
        if (step == 0) first = milliseconds(end - began);
        planning.push_back(milliseconds(end - start));
        if (step > 0) periods.push_back(milliseconds(start - before));
        before = start;
        next += period;
        if (hertz > 0 && end > next) late++, next = end;  // not to hurry after a late step
        if (hertz > 0) std::this_thread::sleep_until(next);
    }
    std::printf("%s kernels, %d threads, %s: first action %.1f ms after main began\n", agent.instructions(), options.threads,
                tdmpc2_task_name(agent.get(), task), first);
    report("planning", planning);
    if (hertz > 0 && !periods.empty()) {
        report("period", periods);
        double squares = 0;
        for (double x : periods) squares += (x - 1e3 / hertz) * (x - 1e3 / hertz);
        std::printf("wanted: %.3f ms, jitter (root mean square) %.3f ms, %d of %d steps late\n", 1e3 / hertz,
                    std::sqrt(squares / double(periods.size())), late, steps);
    }
} catch (const tdmpc2::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
}
