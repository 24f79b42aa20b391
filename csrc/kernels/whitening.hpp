// Mahalanobis distances, as loops over lanes that the compiler turns into vectors of whatever the including file is
// compiled for. No multiply-add is fused and the lanes are those of the loops: all instruction sets sum in one order.
#pragma once

#include "../kernels.hpp"

namespace sorl {
namespace {

inline void whiten(const Whitening& t, const float* x, int count, float* squares) noexcept {
  const int blocks = (t.dim + kWhitenLanes - 1) / kWhitenLanes;
  for (int r = 0; r < count; ++r, x += t.dim) {
    float sum[kWhitenLanes] = {};
    const float* w = t.w;
    for (int block = 0; block < blocks; ++block, w += static_cast<std::size_t>(t.dim) * kWhitenLanes) {
      float y[kWhitenLanes] = {};
      for (int i = 0; i < t.ends[block]; ++i) {
        const float d = x[i] - t.mean[i];
        for (int l = 0; l < kWhitenLanes; ++l) y[l] += d * w[static_cast<std::size_t>(i) * kWhitenLanes + l];
      }
      for (int l = 0; l < kWhitenLanes; ++l) sum[l] += y[l] * y[l];
    }
    for (int half = kWhitenLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    squares[r] = sum[0];
  }
}

}  // namespace
}  // namespace sorl
