#include "../kernels/bf16.hpp"
#include "loops.hpp"

namespace sorl::bench {
namespace {

using V = Avx512;

// As burn, of pairs.
double burn_pairs(long n) noexcept {
  constexpr int chains = 24;
  const auto pair = [](float low, float high) { return to_bf16(low) | to_bf16(high) << 16; };
  std::uint32_t weights[2][16];
  for (int i = 0; i < 16; ++i) {
    const float low = burn_weight(2 * i), high = burn_weight(2 * i + 1);
    weights[0][i] = pair(low, high);
    weights[1][i] = pair(-std::copysign(burn_weight(32 + 2 * i), low), -std::copysign(burn_weight(33 + 2 * i), high));
  }
  volatile std::uint32_t values[2] = {pair(burn_activation(0), burn_activation(1)),
                                      pair(burn_activation(2), burn_activation(3))};
  const auto all_lanes = [](std::uint32_t u) {
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(u)));
  };
  const __m512bh first = all_lanes(values[0]), second = all_lanes(values[1]);
  auto w = reinterpret_cast<__m512bh>(V::load_words(weights[0]));
  auto other = reinterpret_cast<__m512bh>(V::load_words(weights[1]));
  __m512 acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = V::set(burn_activation(i));
  for (long r = 0; r < n; ++r) {
#pragma GCC unroll 64
    for (int i = 0; i < chains; ++i)
      acc[i] = _mm512_dpbf16_ps(acc[i], i % 2 == 0 ? first : second, i / 2 % 2 == 0 ? w : other);
    const __m512bh before = w;
    w = other;
    other = before;
  }
  __m512 all = acc[0];
  for (int i = 1; i < chains; ++i) all = V::add(all, acc[i]);
  volatile float sink = V::sum(all);
  (void)sink;
  return 64.0 * chains * static_cast<double>(n);
}

}  // namespace

const Loops* avx512_bf16_loops(Precision) {
  static constexpr Loops loops{burn_pairs, read_all<V>, nullptr, nullptr};
  return &loops;
}

}  // namespace sorl::bench
