// Prints, for every variant of a kernels library that runs here, whether it agrees with the scalar one, and checksums of
// the bits that a plan's functions and the operator of training compute from numbers that are the same everywhere.
//
//     check PATH/kernels.so
//
// One line each: variant, what, checksum.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "kernels.h"

using namespace tdmpc2;

namespace {

// Numbers between -1 and 1 from integer arithmetic.
struct Numbers {
    float operator()() { return float(int((state = state * 1664525 + 1013904223) >> 8) - (1 << 23)) / float(1 << 23); }
    std::vector<float> operator()(size_t count, float scale = 1) {
        std::vector<float> found(count);
        for (float& x : found) x = (*this)() * scale;
        return found;
    }
    uint32_t state;
};

uint64_t checksum(const std::vector<float>& x) {  // FNV-1a
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < x.size() * sizeof(float); i++)
        hash = (hash ^ reinterpret_cast<const unsigned char*>(x.data())[i]) * 1099511628211u;
    return hash;
}

void tell(const Kernels& k, const char* what, const std::vector<float>& x) {
    for (float v : x)
        if (!(v - v == 0)) std::printf("%s %s holds %f\n", k.name, what, v);
    std::printf("%s %s %016llx\n", k.name, what, static_cast<unsigned long long>(checksum(x)));
}

constexpr int latent = 24, task = 9, action = 5, width = 70, bins = 31, heads = 3, envs = 2, horizon = 3, samples = 57;

int padded(int n) { return (n + padding - 1) / padding * padding; }

// A world model with weights of a format, packed for a variant.
struct Model {
    Model(const Kernels& k, Format format, bool episodic) : kernels(k), format(format), number{7} {
        const Format last = format == INT8 ? INT12 : format;  // as PackedNetworks does
        constexpr int termination = HEADS + heads;
        for (int network = 0; network < termination + episodic; network++) {
            const bool ends = network == termination, is_head = network >= HEADS && !ends, acts = network != PI && !ends;
            add(format, latent, width, MISH, true, acts, network < HEADS);
            add(format, width, width, MISH, false, false, false);
            const int out = network == DYNAMICS ? latent : network == PI ? 2 * action : ends ? 1 : bins;
            const bool precise = network == DYNAMICS || is_head;
            const float centre = ends ? 1.7f : 0;  // where the head ends some sequences, and not others
            add(precise ? last : format, width, out, network == DYNAMICS ? SIMNORM : NONE, false, false, false, centre);
        }
        std::vector<float>& values = keep(std::vector<float>(padded(bins)));
        for (int i = 0; i < bins; i++) values[i] = float(i - bins / 2) / 4;
        networks = {latent, task, action, bins, 8, int(layers.size()), episodic ? termination : 0, -10, 2, values.data(),
                    layers.data()};
    }

    std::vector<float>& keep(std::vector<float> x) {
        kept.push_back(std::move(x));
        return kept.back();
    }

    float* vector(int count, float scale, float add) {
        std::vector<float>& x = keep(std::vector<float>(padded(count)));
        for (int i = 0; i < count; i++) x[i] = add + scale * number();
        return x.data();
    }

    float* part(int rows, int out) {  // [rows, out padded]
        std::vector<float>& x = keep(std::vector<float>(size_t(rows) * padded(out)));
        for (int i = 0; i < rows * padded(out); i++)
            if (i % padded(out) < out) x[i] = number() * 0.3f;
        return x.data();
    }

    void add(Format own, int in, int out, Activation activation, bool first, bool acts, bool first_step,
             float centre = 0) {
        const bool integers = own == INT8 || own == INT12;
        const std::vector<float> weight = number(size_t(out) * in, 0.3f);
        std::vector<int8_t> codes(weight.size());
        for (size_t i = 0; i < codes.size(); i++) codes[i] = int8_t(weight[i] * 400);
        std::vector<float>& packed = keep(std::vector<float>(kernels.packed_bytes(own, in, out) / 4 + 1));
        kernels.pack(own, in, out, integers ? static_cast<const void*>(codes.data()) : weight.data(), packed.data());
        float* scale = vector(out, integers ? 0.0005f : 0, integers ? 0.0025f : 1);
        std::vector<float>& sums = keep(std::vector<float>(padded(out)));
        for (int j = 0; integers && j < out; j++) {
            int sum = 0;
            for (int i = 0; i < in; i++) sum += codes[size_t(j) * in + i];
            sums[j] = float(sum) * scale[j];
        }
        const bool normed = activation != NONE;
        const float* bias = vector(out, 0.1f, centre);
        const float* gain = normed ? vector(out, 0.2f, 1) : nullptr;
        const float* shift = normed ? vector(out, 0.2f, 0) : nullptr;
        layers.push_back({own, in, out, activation, packed.data(), scale, sums.data(), bias, gain, shift,
                          first_step ? part(latent, out) : nullptr, first ? part(task, out) : nullptr,
                          acts ? part(action, out) : nullptr});
    }

    const Kernels& kernels;
    const Format format;
    Numbers number;
    std::deque<std::vector<float>> kept;
    std::vector<Layer> layers;
    Networks networks;
};

void plan(const Kernels& k, Format format, bool episodic, const char* name) {
    const Model model(k, format, episodic);
    Numbers number{11};
    std::vector<float> z = number(envs * latent, 0.5f);
    for (float& x : z) x = x < 0 ? -x : x;
    const std::vector<float> embedding = number(envs * task), actions = number(envs * horizon * samples * action),
                             noise = number(horizon * envs * samples * action);
    const std::vector<float> discount = {0.99f, 0.95f};
    std::vector<float> mask(envs * action, 1);
    mask.back() = 0;
    const int64_t used[] = {2, 0};
    std::vector<float> values(envs * samples), rollout(envs * horizon * samples * action);
    for (int threads : {1, 3}) {
        k.estimate_value(&model.networks, envs, horizon, samples, 2, threads, z.data(), embedding.data(), mask.data(),
                         discount.data(), actions.data(), noise.data(), used, values.data());
        k.policy_rollout(&model.networks, envs, horizon, samples, threads, z.data(), embedding.data(), mask.data(),
                         noise.data(), rollout.data());
        tell(k, (std::string(name) + " values").c_str(), values);
        tell(k, (std::string(name) + " actions").c_str(), rollout);
    }
}

void operators(const Kernels& k) {
    constexpr int n = 2, rows = 21, width = 48;
    Numbers number{13};
    const std::vector<float> x = number(n * rows * width, 3), dout = number(n * rows * width), bias = number(n * width),
                             gain = number(n * width), shift = number(n * width), factors = number(n * rows * width);
    std::vector<float> out(n * rows * width), stats(2 * n * rows), dx(out.size()), sums(3 * n * width);
    k.norm_mish(0, x.data(), bias.data(), gain.data(), shift.data(), factors.data(), out.data(), stats.data(), n, rows,
                width, rows * width, width, 2, nullptr);
    k.norm_mish_backward(0, dout.data(), x.data(), bias.data(), gain.data(), shift.data(), factors.data(), stats.data(),
                         dx.data(), sums.data(), n, rows, width, rows * width, width, 2, nullptr);
    tell(k, "norm_mish", out);
    tell(k, "norm_mish gradient", dx);
    tell(k, "norm_mish sums", sums);
}

}  // namespace

int main(int argc, char** argv) {
    void* const library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : nullptr;
    if (!library) return std::fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "usage: check PATH/kernels.so"), 2;
    const auto kernels = reinterpret_cast<const Kernels* (*)(int)>(dlsym(library, "tdmpc2_kernels"));
    const auto runs_here = reinterpret_cast<int (*)(int)>(dlsym(library, "tdmpc2_runs_here"));
    const auto agrees = reinterpret_cast<int (*)(int)>(dlsym(library, "tdmpc2_agrees"));
    int failed = 0;
    for (int i = 0; const Kernels* k = kernels(i); i++) {
        if (!runs_here(i)) continue;
        const bool good = agrees(i);
        failed += !good;
        std::printf("%s self-check %s\n", k->name, good ? "passed" : "FAILED");
        plan(*k, FP32, false, "fp32"), plan(*k, FP32, true, "fp32 episodic");
        plan(*k, BF16, false, "bf16"), plan(*k, BF16, true, "bf16 episodic");
        plan(*k, INT8, false, "int8"), plan(*k, INT8, true, "int8 episodic");
        operators(*k);
    }
    return failed ? 1 : 0;
}
