// Plans at a fixed rate on the newest observation and publishes the action; see README.md.
#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <rclcpp/rclcpp.hpp>
#include <std_msgs/msg/empty.hpp>
#include <std_msgs/msg/float32_multi_array.hpp>
#include <tdmpc2.hpp>

class PlannerNode : public rclcpp::Node {
  public:
    PlannerNode() : Node("tdmpc2_planner"), agent(declare_parameter<std::string>("model"), options()) {
        const std::string name = declare_parameter<std::string>("task", "");
        task = name.empty() ? 0 : agent.task(name);
        observation.resize(size_t(agent.obs_dim())), action.resize(size_t(agent.action_dim()));
        message.data.resize(size_t(tdmpc2_task_action_dim(agent.get(), task)));
        publisher = create_publisher<std_msgs::msg::Float32MultiArray>("action", 1);
        observed = create_subscription<std_msgs::msg::Float32MultiArray>(
            "observation", rclcpp::SensorDataQoS(), [this](const std_msgs::msg::Float32MultiArray& now) { take(now.data); });
        begun = create_subscription<std_msgs::msg::Empty>("reset", 1, [this](const std_msgs::msg::Empty&) { agent.reset(); });
        timer = create_wall_timer(std::chrono::duration<double>(1 / declare_parameter<double>("hertz", 50.0)),
                                  [this] { step(); });
    }

  private:
    tdmpc2_options options() {
        tdmpc2_options chosen = tdmpc2_default_options();
        chosen.threads = int(declare_parameter<int>("threads", 1));
        return chosen;
    }

    void take(const std::vector<float>& values) {
        const size_t expected = size_t(tdmpc2_task_obs_dim(agent.get(), task));
        if (values.size() != expected) {
            RCLCPP_ERROR_THROTTLE(get_logger(), *get_clock(), 1000, "an observation has %zu numbers, expected %zu",
                                  values.size(), expected);
            return;
        }
        std::copy(values.begin(), values.end(), observation.begin());
        fresh = true;
    }

    void step() {
        if (!fresh) return;
        fresh = false;
        if (agent.plan(observation.data(), action.data(), &task)) {
            RCLCPP_ERROR_THROTTLE(get_logger(), *get_clock(), 1000, "%s", agent.error());
            return;
        }
        std::copy_n(action.begin(), message.data.size(), message.data.begin());
        publisher->publish(message);
    }

    tdmpc2::Agent agent;
    int task = 0;
    bool fresh = false;  // callbacks of one node do not overlap in the default executor
    std::vector<float> observation, action;
    std_msgs::msg::Float32MultiArray message;
    rclcpp::Publisher<std_msgs::msg::Float32MultiArray>::SharedPtr publisher;
    rclcpp::Subscription<std_msgs::msg::Float32MultiArray>::SharedPtr observed;
    rclcpp::Subscription<std_msgs::msg::Empty>::SharedPtr begun;
    rclcpp::TimerBase::SharedPtr timer;
};

int main(int argc, char** argv) {
    rclcpp::init(argc, argv);
    try {
        rclcpp::spin(std::make_shared<PlannerNode>());
    } catch (const std::exception& error) {  // tdmpc2::Error, or a parameter of a wrong type
        RCLCPP_FATAL(rclcpp::get_logger("tdmpc2_planner"), "%s", error.what());
    }
    rclcpp::shutdown();
}
