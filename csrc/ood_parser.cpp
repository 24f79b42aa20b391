// The field `ood` of a policy file, whose bounds are those of sorl_fast/act/ood.py.
#include <array>
#include <cstddef>

#include "bounds_parser.hpp"
#include "finite.hpp"
#include "ood.hpp"

namespace sorl {

bool parse_ood(json::Reader reader, OodNumbers& out, std::string& error) {
  constexpr std::array<const char*, 3> kNames = {"threshold", "rate", "measured"};
  constexpr std::array<const char*, 3> kBounds = {"a number above 0, finite in float32", "a number above 0 and below 1",
                                                  "a number from 0 to 1"};
  if (reader.kind() != json::Kind::object) {
    error = "ood is no object, but must be one with threshold, rate, measured";
    return false;
  }
  std::array<double, kNames.size()> value{};
  std::array<json::Kind, kNames.size()> kind{};
  std::array<bool, kNames.size()> seen{};
  const auto member = [&](const std::string& key) {
    std::size_t field = 0;
    while (field < kNames.size() && key != kNames[field]) ++field;
    if (field == kNames.size()) return reader.fail("it has a field that is none of threshold, rate, measured");
    if (seen[field]) return reader.fail("the field " + key + " stands twice");
    seen[field] = true;
    kind[field] = reader.kind();
    return kind[field] == json::Kind::number ? reader.number(value[field]) : reader.skip();
  };
  if (!reader.object(member)) {
    error = "ood is wrong (" + reader.error() + ")";
    return false;
  }
  const auto threshold = static_cast<float>(value[0]);
  const std::array<bool, kNames.size()> holds = {threshold > 0 && finite(threshold), value[1] > 0 && value[1] < 1,
                                                 value[2] >= 0 && value[2] <= 1};
  for (std::size_t field = 0; field < kNames.size(); ++field) {
    const bool number = seen[field] && kind[field] == json::Kind::number;
    if (number && holds[field]) continue;
    error = std::string("ood ") + kNames[field] + " is " +
            (!seen[field] ? "missing" : !number ? "no number" : shown(value[field])) + ", but must be " + kBounds[field];
    return false;
  }
  out = {threshold, value[1], value[2]};
  return true;
}

}  // namespace sorl
