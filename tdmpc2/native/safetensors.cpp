#include "safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

namespace tdmpc2 {
namespace {

constexpr uint64_t largest_header = 1 << 20, largest_file = uint64_t(4) << 30;

// Bytes of one number; 0: a type that the format does not have.
size_t width_of(const std::string& type) {
    static const std::pair<const char*, size_t> widths[] = {{"F64", 8}, {"F32", 4},  {"F16", 2}, {"BF16", 2},
                                                            {"I64", 8}, {"I32", 4},  {"I16", 2}, {"I8", 1},
                                                            {"U8", 1},  {"BOOL", 1}};
    for (const auto& [name, width] : widths)
        if (type == name) return width;
    return 0;
}

// The number of elements; throws where it is too large to be true.
uint64_t count_of(const std::vector<int64_t>& shape) {
    uint64_t count = 1;
    for (int64_t n : shape) {
        if (n && count > largest_file / uint64_t(n)) throw Refused("a tensor is larger than the file");
        count *= uint64_t(n);
    }
    return count;
}

std::vector<int64_t> whole_numbers(const Json& list, const std::string& of) {
    std::vector<int64_t> found;
    if (list.kind != Json::LIST || list.items.size() > 8) throw Refused("tensor '" + of + "' has no sound shape");
    for (const Json& item : list.items) {
        if (item.kind != Json::NUMBER || !item.whole || item.number < 0 || item.number > double(largest_file))
            throw Refused("tensor '" + of + "' has no sound shape");
        found.push_back(int64_t(item.number));
    }
    return found;
}

float of_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    if (!exponent) {  // below the normal ones: units of 2^-24
        const float small = float(mantissa) * 5.9604645e-8f;
        return sign ? -small : small;
    }
    const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

std::string shown(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

TensorFile::TensorFile(const char* path) {
    struct stat status;  // opening a named pipe would wait for somebody who writes into it
    if (!stat(path, &status) && (status.st_mode & S_IFMT) != S_IFREG) throw Refused("it is no regular file");
    const std::unique_ptr<std::FILE, Close> file(std::fopen(path, "rb"));
    if (!file) throw Refused(std::strerror(errno));
    unsigned char length[8];
    if (std::fread(length, 1, sizeof length, file.get()) != sizeof length) throw Refused("it is no safetensors file");
    uint64_t header_size = 0;
    for (int i = 7; i >= 0; i--) header_size = header_size << 8 | length[i];
    if (std::fseek(file.get(), 0, SEEK_END)) throw Refused(std::strerror(errno));
    const long end = std::ftell(file.get());
    if (end < 8 || std::fseek(file.get(), 8, SEEK_SET)) throw Refused("it cannot be read at any place");
    const uint64_t size = uint64_t(end) - 8;
    if (size > largest_file) throw Refused("it has more than 4 GiB");
    if (header_size > largest_header) throw Refused("it is no model: its header would have more than 1 MiB");
    if (header_size > size) throw Refused("it ends in its header");
    std::vector<char> header(header_size);
    if (std::fread(header.data(), 1, header.size(), file.get()) != header.size()) throw Refused("it cannot be read");
    const Json parsed = parse_json(header.data(), header.data() + header.size());
    data.resize(size - header_size);  // as large as the file truly is
    list(parsed);
    if (std::fread(data.data(), 1, data.size(), file.get()) != data.size()) throw Refused("it cannot be read");
}

void TensorFile::list(const Json& header) {
    if (header.kind != Json::OBJECT) throw Refused("its header is no object");
    std::vector<std::pair<size_t, size_t>> places;
    for (const auto& [name, entry] : header.members) {
        if (name == "__metadata__") {
            metadata = entry;
            continue;
        }
        if (entry.kind != Json::OBJECT) throw Refused("tensor '" + name + "' has no description");
        Tensor tensor{entry.text_of("dtype"), whole_numbers(entry.at("shape"), name), 0, 0};
        const std::vector<int64_t> place = whole_numbers(entry.at("data_offsets"), name);
        const size_t width = width_of(tensor.type);
        if (!width) throw Refused("tensor '" + name + "' is of type '" + tensor.type + "'");
        if (place.size() != 2 || place[0] > place[1] || uint64_t(place[1]) > data.size() ||
            uint64_t(place[1] - place[0]) != count_of(tensor.shape) * width)
            throw Refused("tensor '" + name + "' is not where the header says");
        tensor.begin = size_t(place[0]), tensor.end = size_t(place[1]);
        places.emplace_back(tensor.begin, tensor.end);
        tensors.emplace(name, std::move(tensor));
    }
    std::sort(places.begin(), places.end());
    size_t at = 0;
    for (const auto& [begin, end] : places) {
        if (begin != at) throw Refused("its tensors overlap or leave gaps");
        at = end;
    }
    if (at != data.size()) throw Refused("it is longer than its tensors");
}

const Tensor& TensorFile::find(const std::string& name) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw Refused("it has no tensor '" + name + "'");
    return found->second;
}

const Tensor& TensorFile::find(const std::string& name, const std::vector<int64_t>& shape) const {
    const Tensor& found = find(name);
    if (found.shape != shape)
        throw Refused("tensor '" + name + "' has shape " + shown(found.shape) + ", expected " + shown(shape));
    return found;
}

const std::string& TensorFile::type(const std::string& name) const { return find(name).type; }
const std::vector<int64_t>& TensorFile::shape(const std::string& name) const { return find(name).shape; }

std::vector<float> TensorFile::floats(const std::string& name, const std::vector<int64_t>& shape) const {
    const Tensor& tensor = find(name, shape);
    const char* from = data.data() + tensor.begin;
    std::vector<float> found(count_of(shape));
    if (tensor.type == "F32") {
        if (!found.empty()) std::memcpy(found.data(), from, found.size() * sizeof(float));
    } else if (tensor.type == "F16" || tensor.type == "BF16") {
        for (size_t i = 0; i < found.size(); i++) {
            uint16_t half;
            std::memcpy(&half, from + 2 * i, sizeof half);
            const uint32_t bits = uint32_t(half) << 16;
            if (tensor.type == "F16") found[i] = of_half(half);
            else std::memcpy(&found[i], &bits, sizeof bits);
        }
    } else {
        throw Refused("tensor '" + name + "' is of type " + tensor.type + ", expected F32, F16 or BF16");
    }
    for (float x : found)
        if (!std::isfinite(x)) throw Refused("tensor '" + name + "' has numbers that are not finite");
    return found;
}

std::vector<int8_t> TensorFile::bytes(const std::string& name, const std::vector<int64_t>& shape) const {
    const Tensor& tensor = find(name, shape);
    if (tensor.type != "I8") throw Refused("tensor '" + name + "' is of type " + tensor.type + ", expected I8");
    std::vector<int8_t> found(count_of(shape));
    if (!found.empty()) std::memcpy(found.data(), data.data() + tensor.begin, found.size());
    return found;
}

}  // namespace tdmpc2
