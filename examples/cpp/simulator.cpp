// Plays episodes of a task in the simulator and prints their returns.
//
//     simulator MODEL TASK [EPISODES] [SEED] [THREADS]
//
// The simulator is examples/cpp/simulator.py, the environments of this project, in a process that this program starts and
// talks to through two pipes. PYTHON names the interpreter, SIMULATOR the script.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tdmpc2.hpp"

namespace {

// Numbers through pipes, as this machine has them in memory.
class Simulator {
  public:
    Simulator(const char* task, int seed) {
        int to[2], from[2];
        if (pipe(to) || pipe(from)) throw tdmpc2::Error("there are no more pipes");
        const char* const python = std::getenv("PYTHON") ? std::getenv("PYTHON") : "python3";
        const char* const script = std::getenv("SIMULATOR") ? std::getenv("SIMULATOR") : "examples/cpp/simulator.py";
        const std::string number = std::to_string(seed);
        child = fork();
        if (child < 0) throw tdmpc2::Error("no process could be started");
        if (child == 0) {
            dup2(to[0], 0), dup2(from[1], 3);
            for (int end : {to[0], to[1], from[0], from[1]})
                if (end != 0 && end != 3) close(end);
            execlp(python, python, script, task, number.c_str(), static_cast<char*>(nullptr));
            _exit(127);
        }
        close(to[0]), close(from[1]);
        std::signal(SIGPIPE, SIG_IGN);  // a simulator that ends is an error, and not the end of this program
        out = to[1], in = from[0];
    }
    Simulator(const Simulator&) = delete;
    Simulator& operator=(const Simulator&) = delete;
    ~Simulator() {
        close(out), close(in);
        waitpid(child, nullptr, 0);
    }

    // reward, whether the episode is over, and the observation
    void receive(std::vector<float>& message) const {
        char* at = reinterpret_cast<char*>(message.data());
        for (size_t left = message.size() * sizeof(float); left;) {
            const ssize_t got = read(in, at, left);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0)
                throw tdmpc2::Error("the simulator ended: PYTHON must have this project installed, and SIMULATOR must be "
                                    "the path of simulator.py (default: examples/cpp/simulator.py from here)");
            at += got, left -= size_t(got);
        }
    }

    void send(const std::vector<float>& action, int size) const {
        const size_t bytes = size_t(size) * sizeof(float);
        if (write(out, action.data(), bytes) != ssize_t(bytes)) throw tdmpc2::Error("the simulator does not listen");
    }

  private:
    int in = -1, out = -1;
    pid_t child = -1;
};

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 3) return std::fprintf(stderr, "usage: %s MODEL TASK [EPISODES] [SEED] [THREADS]\n", argv[0]), 2;
    const int episodes = argc > 3 ? std::atoi(argv[3]) : 1, seed = argc > 4 ? std::atoi(argv[4]) : 100;
    tdmpc2_options options = tdmpc2_default_options();
    options.seed = static_cast<std::uint64_t>(seed), options.threads = argc > 5 ? std::atoi(argv[5]) : 1;
    tdmpc2::Agent agent(argv[1], options);
    const int task = agent.task(argv[2]), actions = tdmpc2_task_action_dim(agent.get(), task);
    const int size = tdmpc2_task_obs_dim(agent.get(), task);
    std::vector<float> message(size_t(2 + size)), observation(size_t(agent.obs_dim())), action(size_t(agent.action_dim()));
    const Simulator simulator(argv[2], seed);
    for (int episode = 0; episode < episodes; episode++) {
        agent.reset();
        double sum = 0;
        int steps = 0;
        for (simulator.receive(message);; steps++) {
            std::copy(message.begin() + 2, message.end(), observation.begin());
            if (agent.plan(observation.data(), action.data(), &task)) throw tdmpc2::Error(agent.error());
            simulator.send(action, actions);
            simulator.receive(message);
            sum += double(message[0]);
            if (message[1] != 0) break;
        }
        std::printf("%s, episode %d: return %.2f in %d steps\n", argv[2], episode + 1, sum, steps + 1);
    }
} catch (const tdmpc2::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
}
