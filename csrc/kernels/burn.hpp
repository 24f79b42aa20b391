// The machine's multiply-add limit, for the benchmarks that quote it: nothing but products, on what those of a
// trained policy multiply. A core's clock depends on the bits that change: zeros run faster.
//
// Operands stay in registers where a smarter product could load fewer than ours; with tiles (amx.cpp) each
// product needs a load, so that burn has one too.
//
// Included by kernels/*.cpp only, like dense.hpp.
#pragma once

#include "dense.hpp"

namespace sorl {
namespace {

// The i-th of a sequence spread evenly over [0, 1), its bits like random ones.
inline double burn_fraction(int i) {
  const double x = (i + 1) * 0.61803398874989485;
  return x - std::floor(x);
}

// An activation after its GELU: half of them lie between -0.17 and 0.
inline float burn_activation(int i) {
  const double x = 4 * burn_fraction(i) - 2;
  return static_cast<float>(x / (1 + std::exp(-1.702 * x)));
}

// A weight, of either sign.
constexpr float kBurnLargest = 0.2f;
inline float burn_weight(int i) { return static_cast<float>(kBurnLargest * (2 * burn_fraction(i) - 1)); }

// Two activations, each in all lanes, by two vectors of weights of opposite signs that change places after each
// round: a compiler can take no product out of the loop.
template <class V>
inline double burn(long n) noexcept {
  constexpr int of_tile = V::max_rows * V::panel_vectors - 2;  // two operands more than a tile's
  constexpr int chains = of_tile > 8 ? of_tile : 8;
  float weights[2 * V::W];
  for (int i = 0; i < V::W; ++i) {
    weights[i] = burn_weight(i);
    weights[V::W + i] = -std::copysign(burn_weight(V::W + i), weights[i]);
  }
  volatile float values[2] = {burn_activation(0), burn_activation(1)};
  const auto first = V::set(values[0]), second = V::set(values[1]);
  auto w = V::load(weights), other = V::load(weights + V::W);
  typename V::f acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = V::set(burn_activation(i));
  for (long r = 0; r < n; ++r) {
#pragma GCC unroll 64
    for (int i = 0; i < chains; ++i) acc[i] = V::fma(i % 2 == 0 ? first : second, i / 2 % 2 == 0 ? w : other, acc[i]);
    const auto before = w;
    w = other;
    other = before;
  }
  auto all = acc[0];
  for (int i = 1; i < chains; ++i) all = V::add(all, acc[i]);
  volatile float sink = V::sum(all);
  (void)sink;
  return 2.0 * V::W * chains * static_cast<double>(n);
}

}  // namespace
}  // namespace sorl
