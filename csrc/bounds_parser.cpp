#include "bounds_parser.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>

#include "action_map.hpp"
#include "finite.hpp"

namespace sorl {
namespace {

std::string element(const char* name, std::size_t a) { return std::string(name) + "[" + std::to_string(a) + "]"; }

bool is_of_map(float x) {
  const float size = std::fabs(x);
  return size == 0 || (size >= kLeastOfMap && size <= kMostOfMap);
}

}  // namespace

std::string shown(double value) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return std::string(text.data(), end);
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text.substr(0, 64)) out.push_back(c >= 0x20 && c < 0x7F ? c : '?');
  return out + (text.size() > 64 ? "...\"" : "\"");
}

bool parse_numbers(json::Reader reader, const std::string& name, int count, std::vector<float>& out,
                   std::string& error) {
  const auto refuse = [&](const std::string& value) {
    error = name + " is " + value + ", but must be a list of " + std::to_string(count) + " finite numbers";
    return false;
  };
  if (reader.kind() != json::Kind::array) return refuse("no list");
  out.reserve(static_cast<std::size_t>(count));
  const auto element = [&] {
    double value = 0;
    if (out.size() == static_cast<std::size_t>(count)) return reader.fail("too many numbers");
    if (reader.kind() != json::Kind::number) return reader.fail("no number");
    if (!reader.number(value)) return false;
    const auto single = static_cast<float>(value);
    if (!finite(single)) return reader.fail(shown(value) + " is beyond float32");
    out.push_back(single);
    return true;
  };
  if (!reader.array(element)) return refuse("wrong (" + reader.error() + ")");
  return out.size() == static_cast<std::size_t>(count) || refuse("a list of " + std::to_string(out.size()));
}

bool parse_action_map(json::Reader reader, const std::vector<float>& action_low, const std::vector<float>& action_high,
                      std::vector<float>& low, std::vector<float>& high, std::string& error) {
  constexpr std::array<const char*, 2> kNames = {"low", "high"};
  if (reader.kind() != json::Kind::object) {
    error = "action_map is no object, but must be one with low, high";
    return false;
  }
  std::array<std::size_t, kNames.size()> position{};
  std::array<bool, kNames.size()> seen{};
  const json::Reader start = reader;
  const auto member = [&](const std::string& key) {
    const std::size_t field = key == kNames[0] ? 0 : 1;
    if (key != kNames[field]) return reader.fail("it has a field that is neither low nor high");
    if (seen[field]) return reader.fail("the field " + key + " stands twice");
    seen[field] = true;
    position[field] = reader.tell();
    return reader.skip();
  };
  if (!reader.object(member)) {
    error = "action_map is wrong (" + reader.error() + ")";
    return false;
  }
  const auto A = static_cast<int>(action_low.size());
  for (std::size_t field = 0; field < kNames.size(); ++field) {
    const std::string name = std::string("action_map ") + kNames[field];
    if (!seen[field]) {
      error = name + " is missing, but must be there";
      return false;
    }
    json::Reader at = start;
    at.seek(position[field]);
    std::vector<float>& numbers = field == 0 ? low : high;
    if (!parse_numbers(at, name, A, numbers, error)) return false;
    for (std::size_t a = 0; a < numbers.size(); ++a) {
      if (is_of_map(numbers[a])) continue;
      error = element(name.c_str(), a) + " is " + shown(numbers[a]) +
              ", but must be 0 or of a magnitude from 2^-100 to 2^126";
      return false;
    }
  }
  for (std::size_t a = 0; a < low.size(); ++a) {
    if (low[a] > high[a]) {
      error = element("action_map low", a) + " is " + shown(low[a]) + ", but must be at most " +
              element("high", a) + " = " + shown(high[a]);
      return false;
    }
    const bool below = action_low[a] < -1;
    if (!below && action_high[a] <= 1) continue;
    error = element(below ? "action_low" : "action_high", a) + " is " +
            shown(below ? action_low[a] : action_high[a]) + ", but must be in [-1, 1] where there is an action_map";
    return false;
  }
  return true;
}

}  // namespace sorl
