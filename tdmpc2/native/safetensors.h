// Files of tensors in the safetensors format: eight bytes of length, a JSON header, the numbers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "json.h"

namespace tdmpc2 {

struct Tensor {
    std::string type;  // F32, F16, BF16, I8 or another of the format's
    std::vector<int64_t> shape;
    size_t begin, end;  // of its bytes, in the data
};

class TensorFile {
  public:
    // Reads the whole file. Throws Refused, or std::bad_alloc.
    explicit TensorFile(const char* path);

    // Numbers of a tensor of this shape, as float32. Throws Refused if there is none, or one is not finite.
    std::vector<float> floats(const std::string& name, const std::vector<int64_t>& shape) const;
    std::vector<int8_t> bytes(const std::string& name, const std::vector<int64_t>& shape) const;

    const std::string& type(const std::string& name) const;
    const std::vector<int64_t>& shape(const std::string& name) const;

    Json metadata;  // an object of texts

  private:
    void list(const Json& header);
    const Tensor& find(const std::string& name) const;
    const Tensor& find(const std::string& name, const std::vector<int64_t>& shape) const;

    std::map<std::string, Tensor> tensors;
    std::vector<char> data;
};

}  // namespace tdmpc2
