#include "model.h"

#include <cstring>

extern "C" const tdmpc2::Kernels* tdmpc2_kernels(int index);
extern "C" int tdmpc2_runs_here(int index);
extern "C" int tdmpc2_agrees(int index);

namespace tdmpc2 {
namespace {

constexpr int widest = 1 << 16, most = 1 << 20, card_version = 3;

Format format_of(const std::string& name) {
    static const char* const names[] = {"fp32", "bf16", "int8", "int12"};
    for (int i = 0; i < 4; i++)
        if (name == names[i]) return Format(i);
    throw Refused("it computes in '" + name + "', which this version does not know");
}

int padded_width(int n) { return (n + padding - 1) / padding * padding; }

float to_bf16(float x) {  // to nearest, half to even; finite
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

const Json& part(const Json& card, const char* key) {
    const Json& found = card.at(key);
    if (found.kind != Json::OBJECT) throw Refused(std::string("'") + key + "' is no object");
    return found;
}

}  // namespace

Card::Card(const TensorFile& file) {
    if (file.metadata.kind != Json::OBJECT || !file.metadata.find("tdmpc2"))
        throw Refused("it is a safetensors file, but none that `tdmpc2 export --to native` wrote");
    text = file.metadata.text_of("tdmpc2");
    const Json card = parse_json(text.data(), text.data() + text.size());
    if (card.kind != Json::OBJECT) throw Refused("its card is no object");
    const Json& sizes = part(card, "networks");
    const long long version = sizes.integer("format", 1, 1 << 20);
    if (version > card_version)
        throw Refused("it has format " + std::to_string(version) + ", which is newer than this library");
    obs_dim = int(sizes.integer("obs_dim", 1, widest)), action_dim = int(sizes.integer("action_dim", 1, widest / 2));
    latent_dim = int(sizes.integer("latent_dim", 1, widest)), task_dim = int(sizes.integer("task_dim", 0, widest));
    num_q = int(sizes.integer("num_q", 1, 256)), num_bins = int(sizes.integer("num_bins", 2, widest));
    simnorm_dim = int(sizes.integer("simnorm_dim", 1, 16));
    encoder_layers = int(sizes.integer("encoder_layers", 2, 64));
    if ((simnorm_dim & (simnorm_dim - 1)) || latent_dim % simnorm_dim)
        throw Refused("SimNorm of " + std::to_string(simnorm_dim) + " does not fit " + std::to_string(latent_dim));
    multitask = sizes.integer("multitask", 0, 1);
    mean_action = sizes.integer("mean_action", 0, 1);
    start_at_policy = version > 1 && sizes.integer("start_at_policy", 0, 1);
    episodic = version > 2 && sizes.integer("episodic", 0, 1);
    const Json& budget = part(card, "budget");
    horizon = int(budget.integer("horizon", 1, 1024)), iterations = int(budget.integer("iterations", 1, 4095));
    num_samples = int(budget.integer("num_samples", 2, most));
    num_elites = int(budget.integer("num_elites", 1, num_samples));
    num_pi_trajs = int(budget.integer("num_pi_trajs", 0, num_samples - 1));
    const Json& listed = card.at("tasks");
    if (listed.kind != Json::LIST || listed.items.empty() || listed.items.size() > size_t(widest))
        throw Refused("it lists no tasks");
    for (const Json& task : listed.items) {
        tasks.push_back({task.text_of("name"), int(task.integer("obs_dim", 1, obs_dim)),
                         int(task.integer("action_dim", 1, action_dim))});
        for (const char c : tasks.back().name)  // programs print it
            if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
                throw Refused("a task's name holds a control character");
    }
    const Json& given = sizes.at("products");
    const size_t expected = size_t(encoder_layers) + 3 * (size_t(HEADS) + size_t(num_q) + episodic);
    if (given.kind != Json::LIST || given.items.size() != expected) throw Refused("it lists no products");
    for (const Json& name : given.items) {
        if (name.kind != Json::TEXT) throw Refused("it lists no products");
        formats.push_back(format_of(name.text));
    }
}

const Kernels& choose_kernels(const char* name) {
    int count = 0;
    while (tdmpc2_kernels(count)) count++;
    for (int i = count - 1; i >= 0; i--) {
        const Kernels& found = *tdmpc2_kernels(i);
        if (name && std::strcmp(name, found.name)) continue;
        if (!tdmpc2_runs_here(i)) {
            if (name) throw Refused(std::string("this processor has no ") + name);
        } else if (i == 0 || name || tdmpc2_agrees(i)) {
            return found;
        }
    }
    if (!name) throw Refused("this processor has none of the library's instructions");
    throw Refused(std::string("there are no instructions called '") + name + "' in this library");
}

const float* Model::padded(const std::vector<float>& x) {
    std::vector<float>& own = kept.emplace_back(size_t(padded_width(int(x.size()))), 0.0f);
    if (!x.empty()) std::memcpy(own.data(), x.data(), x.size() * sizeof(float));
    return own.data();
}

// Columns [begin, begin + count) of a weight [out, in] as [count, out padded]; null: none.
const float* Model::transposed(const std::vector<float>& weight, int in, int out, int begin, int count) {
    if (!count) return nullptr;
    const int stride = padded_width(out);
    std::vector<float>& own = kept.emplace_back(size_t(count) * size_t(stride), 0.0f);
    for (int j = 0; j < out; j++)
        for (int i = 0; i < count; i++) own[size_t(i) * stride + j] = weight[size_t(j) * in + begin + i];
    return own.data();
}

Layer Model::layer(const TensorFile& file, const std::string& name, Format format, int in, int out,
                   Activation activation, const Parts* parts, tdmpc2_precision precision) {
    const std::vector<int64_t> shape{out, in}, vector{out};
    const bool stored_integers = file.type(name + ".weight") == "I8";
    std::vector<int8_t> codes;
    std::vector<float> weight, scale(size_t(out), 1.0f), bias = file.floats(name + ".bias", vector);
    if (stored_integers) {
        codes = file.bytes(name + ".weight", shape);
        scale = file.floats(name + ".scale", vector);
        weight.assign(codes.begin(), codes.end());
    } else {
        weight = file.floats(name + ".weight", shape);
    }
    if (precision != TDMPC2_AS_WRITTEN) {
        const bool observes = name.compare(0, 8, "encoder.") == 0;  // its products stay float32
        for (size_t j = 0; stored_integers && j < size_t(out); j++)
            for (size_t i = 0; i < size_t(in); i++) weight[j * in + i] *= scale[j];
        scale.assign(size_t(out), 1.0f);
        format = precision == TDMPC2_BF16 && !observes ? BF16 : FP32;
        if (format == BF16) {
            for (float& x : weight) x = to_bf16(x);
            for (float& x : bias) x = to_bf16(x);
        }
    }
    const bool integers = format == INT8 || format == INT12;
    if (integers && !stored_integers) throw Refused("layer '" + name + "' computes in int8 and is not stored so");
    const int own = parts ? parts->first : in;
    std::vector<float> product(size_t(out) * own), sums(size_t(out), 0.0f);
    std::vector<int8_t> product_codes(integers ? size_t(out) * own : 0);
    for (size_t j = 0; j < size_t(out); j++) {
        int32_t sum = 0;
        for (size_t i = 0; i < size_t(own); i++) {
            product[j * own + i] = weight[j * in + i];
            if (integers) sum += product_codes[j * own + i] = codes[j * in + i];
        }
        if (integers) sums[j] = float(sum) * scale[j];
    }
    const size_t bytes = size_t(kernels.packed_bytes(format, own, out));
    float* const packed = kept.emplace_back(bytes / sizeof(float) + 1).data();
    kernels.pack(format, own, out, integers ? static_cast<const void*>(product_codes.data()) : product.data(), packed);
    Layer made{format, own, out, activation, packed, padded(scale), padded(sums), padded(bias), nullptr, nullptr,
               nullptr, nullptr, nullptr};
    if (activation != NONE) {
        made.gain = padded(file.floats(name + ".gain", vector));
        made.shift = padded(file.floats(name + ".shift", vector));
    }
    if (parts) {
        if (stored_integers && precision == TDMPC2_AS_WRITTEN)
            for (size_t j = 0; j < size_t(out); j++)
                for (size_t i = 0; i < size_t(in); i++) weight[j * in + i] *= scale[j];
        if (parts->shared) made.latent = transposed(weight, in, out, 0, parts->first);
        made.task = transposed(weight, in, out, parts->first, parts->task);
        made.action = transposed(weight, in, out, parts->first + parts->task, parts->action);
    }
    return made;
}

Model::Model(const TensorFile& file, const Card& card, const Kernels& kernels, tdmpc2_precision precision)
    : kernels(kernels) {
    const int64_t tasks = int64_t(card.tasks.size());
    const int task_dim = card.task_dim;
    discounts = file.floats("discounts", {tasks});
    if (card.multitask) masks = file.floats("action_masks", {tasks, card.action_dim});
    if (task_dim) embeddings = file.floats("task_embeddings", {tasks, task_dim});
    const std::vector<float> settings = file.floats("settings", {5});
    limits.assign(settings.begin(), settings.begin() + 3);
    if (!(limits[0] >= 0) || !(limits[1] >= 0) || !(limits[1] <= limits[2]))
        throw Refused("its temperature or its standard deviations cannot be");

    // Widths that nothing else follows from are those of the biases.
    const auto width = [&](const std::string& name) {
        const std::vector<int64_t> shape = file.shape(name + ".bias");
        if (shape.size() != 1 || shape[0] < 1 || shape[0] > widest) throw Refused("layer '" + name + "' has no width");
        return int(shape[0]);
    };
    size_t next = 0;
    int in = card.obs_dim + task_dim;
    for (int i = 0; i < card.encoder_layers; i++) {
        const std::string name = "encoder." + std::to_string(i);
        const bool last = i + 1 == card.encoder_layers;
        const int out = last ? card.latent_dim : width(name);
        const Parts parts{card.obs_dim, task_dim, 0, false};
        encoder.push_back(layer(file, name, card.formats[next++], in, out, last ? SIMNORM : MISH, i ? nullptr : &parts,
                                precision));
        in = out;
    }
    const int termination = HEADS + card.num_q;
    for (int network = 0; network < termination + card.episodic; network++) {
        const std::string name = network == DYNAMICS ? "dynamics." : network == REWARD ? "reward." : network == PI ? "pi."
                                 : network == termination ? "termination."
                                 : "Q." + std::to_string(network - HEADS) + ".";
        const bool acts = network != PI && network != termination;
        const Parts parts{card.latent_dim, task_dim, acts ? card.action_dim : 0, network < HEADS};
        in = parts.first + parts.task + parts.action;
        for (int i = 0; i < 3; i++) {
            const std::string own = name + std::to_string(i);
            const int out = i < 2 ? width(own) : network == DYNAMICS ? card.latent_dim
                            : network == PI ? 2 * card.action_dim : network == termination ? 1 : card.num_bins;
            const Activation activation = i < 2 ? MISH : network == DYNAMICS ? SIMNORM : NONE;
            layers.push_back(layer(file, own, card.formats[next++], in, out, activation, i ? nullptr : &parts, precision));
            in = out;
        }
    }
    networks = {card.latent_dim, task_dim, card.action_dim, card.num_bins, card.simnorm_dim, int32_t(layers.size()),
                card.episodic ? termination : 0, settings[3], settings[4],
                padded(file.floats("bins", {card.num_bins})), layers.data()};
}

}  // namespace tdmpc2
