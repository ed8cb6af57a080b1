// Opens a library with libtdmpc2 in it as a program opens its plug-ins, acts in threads that end, and closes the library
// while its own threads look for work or sleep, several times.
//
//     plugin PATH/libtdmpc2.so MODEL
#include <cstdio>
#include <thread>
#include <vector>

#include "counting.h"
#include "tdmpc2.h"

int main(int argc, char** argv) {
    long counted = 0;
    for (int turn = 0; argc == 3 && turn < 10; turn++) {
        void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 1;
#define FUNCTION(NAME) const auto NAME = reinterpret_cast<decltype(&::tdmpc2_##NAME)>(dlsym(library, "tdmpc2_" #NAME))
        FUNCTION(default_options);
        FUNCTION(open);
        FUNCTION(plan);
        FUNCTION(close);
        FUNCTION(obs_dim);
        FUNCTION(action_dim);
        tdmpc2_options options = default_options();
        options.threads = 3;
        tdmpc2_agent* agent = nullptr;
        std::thread([&] { agent = open(argv[2], &options); }).join();
        if (!agent) return 1;
        const std::vector<float> obs(size_t(obs_dim(agent)), 0.25f);
        std::vector<float> actions(size_t(action_dim(agent)));
        tdmpc2_status status = TDMPC2_OK;
        std::thread robot([&] {
            const int task = 0;
            const long before = allocations;
            for (int t = 0; t < 3 && !status; t++) status = plan(agent, obs.data(), &task, actions.data());
            counted += allocations - before;
        });
        robot.join();
        close(agent);
        if (status || dlclose(library)) return 1;
    }
    std::printf("%ld while acting\n", counted);
    return 0;
}
