// What the instruction sets that multiply bf16 pairs themselves have in common: activations are bf16,
// and the two values of a 32-bit word are consecutive inputs. z and observations are not rounded to 8
// bits of mantissa on the way in: each enters as a pair (high, low) whose sum carries 16, over a weight
// that is there twice.
#pragma once

#include "avx512.hpp"

namespace sorl {
namespace {

// 2^x to 3e-6 and 14 bits of reciprocal: far below the 9 bits that a bf16 result keeps.
inline __m512 gelu_for_bf16(__m512 x) {
  using V = Avx512;
  const __m512 square = V::mul(x, x);
  const __m512 e = V::clamp(V::mul(x, V::fma(square, V::set(-0.10294324f), V::set(-2.3022082f))));
  const __m512 n = V::round(e), f = V::sub(e, n);
  __m512 p = V::set(0.0095701021f);
  p = V::fma(p, f, V::set(0.055917859f));
  p = V::fma(p, f, V::set(0.24024744f));
  p = V::fma(p, f, V::set(0.69312179f));
  p = V::fma(p, f, V::set(0.99999928f));
  return V::mul(x, _mm512_rcp14_ps(V::add(V::scale(p, n), V::set(1.0f))));
}

struct StoreBf16 {
  static void store(void* y, int column, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<std::uint16_t*>(y) + column),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
};

inline void input_bf16(const float* x, std::size_t x_stride, int rows, int n, int k, void* y,
                       std::size_t y_stride) noexcept {
  for (int r = 0; r < rows; ++r) {
    const float* from = offset(x, r * x_stride);
    auto* to = reinterpret_cast<std::uint32_t*>(static_cast<char*>(y) + r * y_stride);
    for (int i = 0; i < n; ++i) {
      const std::uint32_t u = bits_of(from[i]);
      if ((u & 0x7F800000u) == 0x7F800000u) {  // infinity, or a NaN that must not round to one
        to[i] = u >> 16 | ((u & 0x007FFFFFu) != 0 ? 0x40u : 0u);
      } else {
        const std::uint32_t high = to_bf16(from[i]);
        to[i] = high | to_bf16(from[i] - float_of(high << 16)) << 16;
      }
    }
    for (int i = n; i < k / 2; ++i) to[i] = 0;
  }
}

struct WeightsPairs {
  static constexpr int panel = 32;

  static constexpr std::size_t packed_bytes(int k, int n) { return sizeof(std::uint16_t) * k * n; }

  static void pack(const float* w, int in, int out, int k, int n, bool input_split, void* packed) {
    const auto at = [&](int i, int j) -> std::uint32_t {
      if (input_split) i /= 2;
      return i < in && j < out ? to_bf16(w[static_cast<std::size_t>(i) * out + j]) : 0;
    };
    auto* to = static_cast<std::uint32_t*>(packed);
    for (int first = 0; first < n; first += panel)
      for (int i = 0; i < k; i += 2)
        for (int j = first; j < first + panel; ++j) *to++ = at(i, j) | at(i + 1, j) << 16;
  }
};

}  // namespace
}  // namespace sorl
