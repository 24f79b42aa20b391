#include "tensor_parser.hpp"

#include <utility>

#include "bounds_parser.hpp"

namespace sorl {

bool parse_tensor(json::Reader& reader, const std::string& name, Tensor& tensor) {
  std::string dtype;
  std::array<std::int64_t, 3> shape{};
  std::array<std::int64_t, 2> offsets{};
  std::array<bool, 3> seen{};
  // A list of exactly `count` integers, or why not.
  const auto list = [&](std::int64_t* out, int count) {
    int n = 0;
    const auto element = [&] { return n < count ? reader.integer(out[n++]) : reader.fail("too long"); };
    return reader.array(element) && (n == count || reader.fail("too short"));
  };
  const auto member = [&](const std::string& key) {
    const int which = key == "dtype" ? 0 : key == "shape" ? 1 : key == "data_offsets" ? 2 : -1;
    if (which < 0) return reader.fail("unknown key " + quoted(key) + " of tensor " + name);
    if (std::exchange(seen[static_cast<std::size_t>(which)], true)) {
      return reader.fail("the key " + key + " of tensor " + name + " stands twice");
    }
    const bool read = which == 0   ? reader.string(dtype, 16)
                      : which == 1 ? list(shape.data(), tensor.rank)
                                   : list(offsets.data(), 2);
    return read || reader.fail(key + " of tensor " + name);
  };
  if (!reader.object(member)) return false;
  if (!seen[0] || !seen[1] || !seen[2]) return reader.fail("tensor " + name + " lacks a key");
  if (dtype != "F32") return reader.fail("the dtype of " + name + " is " + quoted(dtype) + ", not F32");
  std::uint64_t bytes = sizeof(float);
  for (std::size_t i = 0; i < static_cast<std::size_t>(tensor.rank); ++i) {
    if (shape[i] != tensor.shape[i]) {
      return reader.fail("axis " + std::to_string(i) + " of tensor " + name + " has length " +
                         std::to_string(shape[i]) + ", but the dimensions ask for " +
                         std::to_string(tensor.shape[i]));
    }
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(shape[i]), &bytes)) {
      return reader.fail("the tensor " + name + " is larger than any file");
    }
  }
  if (offsets[0] < 0 || offsets[1] < offsets[0] ||
      static_cast<std::uint64_t>(offsets[1]) - static_cast<std::uint64_t>(offsets[0]) != bytes) {
    return reader.fail("data_offsets of tensor " + name + " are " + std::to_string(offsets[0]) +
                       " and " + std::to_string(offsets[1]) + ", but its shape needs " +
                       std::to_string(bytes) + " bytes");
  }
  tensor.begin = static_cast<std::uint64_t>(offsets[0]);
  tensor.end = static_cast<std::uint64_t>(offsets[1]);
  return true;
}

}  // namespace sorl
