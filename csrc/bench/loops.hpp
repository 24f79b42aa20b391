// The machine's limits, for the benchmarks that quote them: multiply-adds, and reading.
//
// burn is nothing but products, on what those of a trained policy multiply. A core's clock depends on the bits
// that change: zeros run faster. Operands stay in registers where a smarter product could load fewer than ours;
// with tiles (amx.cpp) each product needs a load, so that burn has one too.
//
// Included by bench/*.cpp only.
#pragma once

#include "../kernels/int8.hpp"
#include "bench.hpp"

namespace sorl::bench {
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

// Both as int8's products read them.
inline std::uint8_t burn_byte(int i) { return static_cast<std::uint8_t>((burn_activation(i) - kFloor) * (255 / 2.2f)); }
inline std::int8_t burn_signed_byte(int i) { return static_cast<std::int8_t>(burn_weight(i) * (127 / kBurnLargest)); }

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

// As burn: two groups of four activations by weights that come from the first-level cache, then by their
// negatives, so that no sum overflows. The compiler doesn't see that the weights stay the same.
template <class V>
inline double int8_burn(long n) noexcept {
  constexpr int chains = 12;
  constexpr std::size_t bytes = V::W * 4, all_weights = chains / 2 * bytes;
  unsigned char values[8];
  for (int i = 0; i < 8; ++i) values[i] = burn_byte(i);
  alignas(64) signed char weights[2][all_weights];
  for (std::size_t i = 0; i < all_weights; ++i) {
    weights[0][i] = burn_signed_byte(static_cast<int>(i));
    weights[1][i] = static_cast<signed char>(-weights[0][i]);
  }
  const signed char* volatile somewhere = weights[0];
  const unsigned char* volatile here = values;
  typename V::i acc[chains];
  for (auto& a : acc) a = V::zero_words();
  const typename V::i x[2] = {V::spread(here), V::spread(here + 4)};
  for (long r = 0; r < n; ++r) {
    const signed char* w = somewhere;
#pragma GCC unroll 2
    for (int sign = 0; sign < 2; ++sign)
#pragma GCC unroll 64
      for (int i = 0; i < chains; ++i)
        acc[i] = V::dot(acc[i], x[i % 2], V::load_words(w + sign * all_weights + i / 2 * bytes));
  }
  auto all = V::to_float(acc[0]);
  for (int i = 1; i < chains; ++i) all = V::add(all, V::to_float(acc[i]));
  volatile float sink = V::sum(all);
  (void)sink;
  return 2.0 * 2 * 4 * V::W * chains * static_cast<double>(n);
}

// Four vectors at a time, from the first to the last or the other way.
template <class V>
inline float read_all(const void* p, std::size_t bytes, bool backwards) noexcept {
  constexpr std::ptrdiff_t step = 4 * V::W;
  const auto steps = static_cast<std::ptrdiff_t>(bytes / sizeof(float)) / step;
  const auto* x = static_cast<const float*>(p) + (backwards ? (steps - 1) * step : 0);
  typename V::f sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for (std::ptrdiff_t i = 0; i < steps; ++i, x += backwards ? -step : step)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[v] = V::add(sums[v], V::load(x + v * V::W));
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}


}  // namespace
}  // namespace sorl::bench
