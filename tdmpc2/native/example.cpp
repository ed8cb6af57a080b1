// Plans one action for an observation of zeros and prints it.
//
//     build/example model.safetensors [TASK]
#include <cstdio>
#include <vector>

#include "tdmpc2.hpp"

int main(int argc, char** argv) try {
    if (argc < 2) return std::fprintf(stderr, "usage: %s model.safetensors [TASK]\n", argv[0]), 2;
    tdmpc2::Agent agent(argv[1]);
    const int task = argc > 2 ? agent.task(argv[2]) : 0;
    const std::vector<float> observation(agent.obs_dim());
    std::vector<float> action(agent.action_dim());
    if (agent.plan(observation.data(), action.data(), &task)) return std::fprintf(stderr, "%s\n", agent.error()), 1;
    std::printf("%s, %s kernels, action", tdmpc2_task_name(agent.get(), task), agent.instructions());
    for (int i = 0; i < tdmpc2_task_action_dim(agent.get(), task); i++) std::printf(" %.9g", action[i]);
    std::printf("\n");
} catch (const tdmpc2::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
}
