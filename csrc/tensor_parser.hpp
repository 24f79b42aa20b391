// One tensor's entry in a policy file's header, against what the policy's dimensions ask for.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "json.hpp"

namespace sorl {

// A tensor that the dimensions ask for, and where the header says that it lies.
struct Tensor {
  std::array<std::int64_t, 3> shape{};
  int rank = 0;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  bool seen = false;
};

// Reads the entry `name` into `tensor.begin` and `end`. False, with the reason in the reader's error, where its dtype
// is not F32, its shape another one, or its offsets do not fit the shape.
bool parse_tensor(json::Reader& reader, const std::string& name, Tensor& tensor);

}  // namespace sorl
