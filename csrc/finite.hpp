// Whether a float is finite, by its bits: compilers may assume that floats are finite where it suits them.
#pragma once

#include <cstdint>
#include <cstring>

namespace sorl {

inline bool finite(float x) noexcept {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7F800000u) != 0x7F800000u;
}

// NaN and infinities stay: they are judged later.
inline float clip_finite(float x, float bound) noexcept {
  if (!finite(x)) return x;
  x = x < -bound ? -bound : x;
  return x > bound ? bound : x;
}

}  // namespace sorl
