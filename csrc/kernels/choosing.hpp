// What rules of choosing need of a machine, as loops over lanes that the compiler turns into vectors of whatever
// the including file is compiled for. No multiply-add is fused and the lanes are those of the loops, so that
// all instruction sets sum in one order: equal actions give equal bits.
#pragma once

#include <cmath>

#include "../kernels.hpp"
#include "philox.hpp"

namespace sorl {
namespace {

// sums[i] = sum over j of |(x_j - x_i) scale|, of n points x [act_dim][stride].
inline void distance_sums(const float* x, std::size_t stride, int n, int act_dim, const float* scale,
                          float* sums) noexcept {
  for (int i = 0; i < n; ++i) {
    float sum[kPointLanes] = {};
    for (int j = 0; j < n; j += kPointLanes) {
      float square[kPointLanes] = {};
      for (int a = 0; a < act_dim; ++a) {
        const float* row = x + static_cast<std::size_t>(a) * stride;
        const float own = row[i], by = scale[a];
        for (int l = 0; l < kPointLanes; ++l) {
          const float d = (row[j + l] - own) * by;
          square[l] += d * d;
        }
      }
      const int live = n - j;
      for (int l = 0; l < kPointLanes; ++l) sum[l] += l < live ? std::sqrt(square[l]) : 0.0f;
    }
    for (int half = kPointLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    sums[i] = sum[0];
  }
}

// u of a row, in [0, 1): word 0 of the counter (0, 2^32 - 1, row, call).
inline double philox_uniform(std::uint64_t seed, std::uint32_t call, std::uint32_t row) noexcept {
  PhiloxBlock block{};
  block.w[1][0] = 0xFFFFFFFFu;
  block.w[2][0] = row;
  block.w[3][0] = call;
  philox(block, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
  return (block.w[0][0] >> 8) * 0x1p-24;
}

}  // namespace
}  // namespace sorl
