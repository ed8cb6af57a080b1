// Times a fixed amount of arithmetic again and again: how even the machine itself is, beside a control loop.
//
//   steady_work STEPS MILLISECONDS THREADS
//
// Each of THREADS does the same arithmetic in every step, about MILLISECONDS of it; a step ends when all have done
// theirs. Nothing is allocated and no memory is read, so what makes some steps long is the machine: its other
// processes, its interrupts and, in a virtual machine, its neighbours.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point began) {
    return std::chrono::duration<double, std::milli>(Clock::now() - began).count();
}

volatile double start = 0.5;  // read anew by each call, or the compiler would move equal work out of the timed loop

double work(long rounds) {
    double value = start;
    for (long i = 0; i < rounds; ++i) value = value * 0.999999 + 1e-6;
    return value;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) {
        std::fprintf(stderr, "steady_work STEPS MILLISECONDS THREADS\n");
        return 2;
    }
    const long steps = std::atol(argv[1]);
    const double wanted = std::atof(argv[2]);
    const int threads = std::atoi(argv[3]);
    if (steps < 1 || wanted <= 0 || threads < 1) {
        std::fprintf(stderr, "steady_work: STEPS, MILLISECONDS and THREADS must be above zero\n");
        return 2;
    }

    volatile double kept = 0;  // or the compiler would see that nobody reads the results
    double fastest = 1e9;
    const long trial = 1'000'000;
    for (int i = 0; i < 20; ++i) {
        const auto began = Clock::now();
        kept = work(trial);
        fastest = std::min(fastest, milliseconds_since(began));
    }
    const long rounds = static_cast<long>(trial * wanted / fastest);

    std::atomic<long> step{0}, done{0};
    std::atomic<bool> over{false};
    std::vector<std::thread> helpers;
    for (int i = 1; i < threads; ++i) {
        helpers.emplace_back([&] {
            for (long seen = 0; !over;) {
                if (step == seen) continue;  // spins: a sleeping thread would add its waking up
                seen = step;
                volatile double mine = work(rounds);
                (void)mine;
                ++done;
            }
        });
    }
    std::vector<double> times(steps);
    for (long i = 0; i < steps; ++i) {
        const auto began = Clock::now();
        done = 0;
        ++step;
        kept = work(rounds);
        while (done < threads - 1) {
        }
        times[i] = milliseconds_since(began);
    }
    over = true;
    for (auto& helper : helpers) helper.join();
    (void)kept;

    std::sort(times.begin(), times.end());
    const double median = times[steps / 2], tail = times[std::min(steps - 1, steps * 999 / 1000)];
    std::printf("steady work: median %.3f ms, 99.9th percentile %.3f ms\n", median, tail);
    return 0;
}
