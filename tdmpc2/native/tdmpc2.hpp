// The C interface of tdmpc2.h for C++17: an object that closes itself, and exceptions where no control loop is running.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tdmpc2.h"

namespace tdmpc2 {

// A model that cannot be opened, or a task that it does not have.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

class Agent {
  public:
    // Throws Error.
    explicit Agent(const std::string& path, const tdmpc2_options& options = tdmpc2_default_options())
        : agent(tdmpc2_open(path.c_str(), &options)) {
        if (!agent) throw Error(tdmpc2_error(nullptr));
    }

    // In the control loop: nothing is thrown and nothing allocated. Arguments as in tdmpc2.h.
    tdmpc2_status plan(const float* obs, float* actions, const int* task = nullptr) noexcept {
        return tdmpc2_plan(agent.get(), obs, task, actions);
    }
    tdmpc2_status policy(const float* obs, float* actions, const int* task = nullptr) noexcept {
        return tdmpc2_policy(agent.get(), obs, task, actions);
    }
    tdmpc2_status reset(int environment = -1) noexcept { return tdmpc2_reset(agent.get(), environment); }
    tdmpc2_status seed(std::uint64_t seed) noexcept { return tdmpc2_seed(agent.get(), seed); }
    const char* error() const noexcept { return tdmpc2_error(agent.get()); }

    int obs_dim() const noexcept { return tdmpc2_obs_dim(agent.get()); }
    int action_dim() const noexcept { return tdmpc2_action_dim(agent.get()); }
    int horizon() const noexcept { return tdmpc2_horizon(agent.get()); }
    int environments() const noexcept { return tdmpc2_environments(agent.get()); }
    int num_tasks() const noexcept { return tdmpc2_num_tasks(agent.get()); }
    const char* card() const noexcept { return tdmpc2_card(agent.get()); }
    const char* instructions() const noexcept { return tdmpc2_instructions(agent.get()); }

    // Number of a task. Throws Error.
    int task(const std::string& name) const {
        const int number = tdmpc2_task_number(agent.get(), name.c_str());
        if (number < 0) throw Error("the model has no task '" + name + "'");
        return number;
    }
    std::vector<std::string> tasks() const {
        std::vector<std::string> names;
        for (int i = 0; i < num_tasks(); i++) names.emplace_back(tdmpc2_task_name(agent.get(), i));
        return names;
    }

    tdmpc2_agent* get() const noexcept { return agent.get(); }

  private:
    struct Close {
        void operator()(tdmpc2_agent* opened) const noexcept { tdmpc2_close(opened); }
    };
    std::unique_ptr<tdmpc2_agent, Close> agent;
};

}  // namespace tdmpc2
