// From the [-1, 1] that networks work in to a robot's own units, one affine map of each component.
#pragma once

#include <cstddef>
#include <vector>

namespace sorl {

// Numbers of a map are 0 or of a magnitude from 2^-100 to 2^126: nothing between is subnormal, where a session
// flushes to zero and the definition does not, or infinite.
inline constexpr float kLeastOfMap = 0x1p-100f, kMostOfMap = 0x1p126f;

struct ActionMap {
  std::vector<float> low, half, high;  // [A] each, half = (high - low) / 2; empty: the identity

  ActionMap() = default;
  ActionMap(const float* least, const float* most, int A) : low(least, least + A), high(most, most + A) {
    for (int a = 0; a < A; ++a) half.push_back((most[a] - least[a]) / 2);
  }

  // In the order of operations of sorl_fast/action_map.py. Real-time safe.
  float of(float x, std::size_t a) const noexcept {
    const float y = low[a] + (x + 1) * half[a];
    return y > high[a] ? high[a] : y;
  }
  void apply(float* action) const noexcept {
    for (std::size_t a = 0; a < low.size(); ++a) action[a] = of(action[a], a);
  }
  // The same of bounds, or anything [A], by value.
  std::vector<float> applied(std::vector<float> actions) const {
    apply(actions.data());
    return actions;
  }
};

}  // namespace sorl
