// A model as the kernels read it, made of a file.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "kernels.h"
#include "safetensors.h"
#include "tdmpc2.h"

namespace tdmpc2 {

struct Task {
    std::string name;
    int obs_dim, action_dim;
};

// What the file says of itself.
struct Card {
    explicit Card(const TensorFile& file);

    std::string text;
    std::vector<Task> tasks;
    int obs_dim, action_dim, latent_dim, task_dim, num_q, num_bins, simnorm_dim, encoder_layers;
    int horizon, iterations, num_samples, num_elites, num_pi_trajs;
    bool multitask, mean_action, start_at_policy, episodic;
    std::vector<Format> formats;  // of the layers: the encoder's, then three of each network
};

// The fastest kernels that this processor has and that compute what the scalar ones do, or those of a name.
// Throws Refused.
const Kernels& choose_kernels(const char* name);

class Model {
  public:
    // Throws Refused, or std::bad_alloc.
    Model(const TensorFile& file, const Card& card, const Kernels& kernels, tdmpc2_precision precision);
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    Networks networks;
    std::vector<Layer> encoder;
    std::vector<float> embeddings, masks, discounts;  // [T, task_dim], [T, A], [T]
    std::vector<float> limits;                        // temperature, min_std and max_std, as refit takes them

  private:
    // Widths of the parts of a first layer's input, and whether planning multiplies it with a latent that all share.
    struct Parts {
        int first, task, action;
        bool shared;
    };
    Layer layer(const TensorFile& file, const std::string& name, Format format, int in, int out, Activation activation,
                const Parts* parts, tdmpc2_precision precision);
    const float* padded(const std::vector<float>& x);
    const float* transposed(const std::vector<float>& weight, int in, int out, int begin, int count);

    const Kernels& kernels;
    std::deque<std::vector<float>> kept;
    std::vector<Layer> layers;
};

}  // namespace tdmpc2
