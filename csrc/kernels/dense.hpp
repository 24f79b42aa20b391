// The arithmetic of a layer as a template over a vector type V, so that each instruction set's file
// states only its vectors. Included by kernels/*.cpp only; everything is in an unnamed namespace,
// since the same code compiled for two instruction sets must never meet in the linker.
//
// V: type f (W floats), type u (W 32-bit words); zero, set, load, store, add, sub, mul, fma (a b + c),
// sum, round, scale (a 2^n), recip, clamp (to at most 64, and to where scale works; of a NaN a number),
// load_words, low (word << 16 as float), high (word as float), prefetch (to the first level of cache),
// prefetch_second (to the second); panel_vectors (of a panel row), max_rows (of a tile;
// max_rows_bf16 where two more registers an input are busy with widening).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../kernels.hpp"

namespace sorl {
namespace {

template <class T>
inline const T* offset(const T* p, std::size_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(p) + bytes);
}
template <class T>
inline T* offset(T* p, std::size_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(p) + bytes);
}

inline std::uint32_t bits_of(float x) {
  std::uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float float_of(std::uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
inline std::int32_t four_bytes(const void* p) {
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}
// Round to nearest even; weights are finite.
inline std::uint32_t to_bf16(float x) {
  const std::uint32_t u = bits_of(x);
  return (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
}

// 2^e, e clamped: of a NaN a number, of what is huge no infinity.
template <class V>
inline typename V::f exp2(typename V::f e) {
  e = V::clamp(e);
  const auto n = V::round(e), f = V::sub(e, n);
  auto p = V::set(0.00015345813f);
  p = V::fma(p, f, V::set(0.0013399931f));
  p = V::fma(p, f, V::set(0.0096184891f));
  p = V::fma(p, f, V::set(0.055503286f));
  p = V::fma(p, f, V::set(0.24022646f));
  p = V::fma(p, f, V::set(0.69314718f));
  p = V::fma(p, f, V::set(1.0f));
  return V::scale(p, n);
}

// GELU, tanh form, as x / (1 + 2^(-2 log2(e) sqrt(2/pi) (x + 0.044715 x^3))): one exponential, one
// reciprocal, relative error about 2e-7. The clamp keeps the reciprocal of a huge sum from a NaN;
// a NaN in x comes back out through the last product.
template <class V>
inline typename V::f gelu(typename V::f x) {
  const auto square = V::mul(x, x);
  const auto e = V::mul(x, V::fma(square, V::set(-0.10294324f), V::set(-2.3022082f)));
  return V::mul(x, V::recip(V::add(exp2<V>(e), V::set(1.0f))));
}

// tanh as 1 - 2 / (1 + 2^(2 log2(e) x)), to 3e-7. What is not finite comes out as a NaN, through the last product.
template <class V>
inline void tanh(float* x, int n) noexcept {
  for (int i = 0; i < n; i += V::W) {
    const auto v = V::load(x + i);
    const auto rest = V::recip(V::add(exp2<V>(V::mul(v, V::set(2.8853901f))), V::set(1.0f)));
    V::store(x + i, V::fma(v, V::zero(), V::fma(rest, V::set(-2.0f), V::set(1.0f))));
  }
}

// Weights in fp32: a panel row is panel_vectors vectors.
template <class V>
struct WeightsF32 {
  static constexpr int k_step = 1, max_rows = V::max_rows;
  static constexpr Precision precision = Precision::fp32;

  static constexpr std::size_t packed_bytes(int k, int n) { return sizeof(float) * k * n; }

  static void pack(const float* w, int in, int out, int k, int n, bool, void* packed) {
    constexpr int P = V::W * V::panel_vectors;
    auto* to = static_cast<float*>(packed);
    for (int panel = 0; panel < n / P; ++panel)
      for (int i = 0; i < k; ++i)
        for (int j = panel * P; j < (panel + 1) * P; ++j)
          *to++ = i < in && j < out ? w[static_cast<std::size_t>(i) * out + j] : 0.0f;
  }
};

// Weights in bf16, two to a 32-bit word: the low half is inputs 2i, the high half inputs 2i + 1. The
// low one is shifted up. The high one is read as the whole word: its lower half is then noise below
// bf16's precision, which pack takes into account when it rounds, so that no mask is needed and the
// weight is still as near to the true one as bf16 gets.
template <class V>
struct WeightsBf16 {
  static constexpr int k_step = 2, max_rows = V::max_rows_bf16;
  static constexpr Precision precision = Precision::bf16;

  static constexpr std::size_t packed_bytes(int k, int n) { return sizeof(std::uint16_t) * k * n; }

  static std::uint32_t word(float low, float high) {
    const std::uint32_t below = to_bf16(low);
    const std::uint32_t middle = bits_of(high) & 0xFFFF0000u;
    std::uint32_t best = middle | below;
    for (const std::uint32_t upper : {middle - 0x10000u, middle + 0x10000u}) {
      const float there = float_of(upper | below);
      // A step across zero or infinity changes sign or class: never nearer.
      if (((upper ^ middle) & 0x80000000u) == 0 &&
          std::fabs(there - high) < std::fabs(float_of(best) - high))
        best = upper | below;
    }
    return best;
  }

  static void pack(const float* w, int in, int out, int k, int n, bool, void* packed) {
    constexpr int P = V::W * V::panel_vectors;
    const auto at = [&](int i, int j) {
      return i < in && j < out ? w[static_cast<std::size_t>(i) * out + j] : 0.0f;
    };
    auto* to = static_cast<std::uint32_t*>(packed);
    for (int panel = 0; panel < n / P; ++panel)
      for (int i = 0; i < k; i += 2)
        for (int j = panel * P; j < (panel + 1) * P; ++j) *to++ = word(at(i, j), at(i + 1, j));
  }
};

template <class V, class Weights>
struct Layer {
  using f = typename V::f;
  static constexpr int W = V::W, VP = V::panel_vectors, P = W * VP;

  // R rows by NP panels. Each output is one chain of multiply-adds in the order of k, whatever R and
  // NP are, so that no split of rows or columns changes a bit.
  template <int R, int NP>
  __attribute__((noinline)) static void tile(const Dense& d, int row, int panel, int group,
                                             int groups) {
    f acc[R][NP * VP];
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 64
      for (int v = 0; v < NP * VP; ++v) acc[r][v] = V::load(d.bias + panel * P + v * W);
    if (d.init != nullptr)
#pragma GCC unroll 64
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < NP * VP; ++v)
          acc[r][v] = V::add(acc[r][v], V::load(d.init[row + r] + panel * P + v * W));

    const std::size_t stride = d.x_stride;
    // Five rows to a base pointer: x86 addresses base + {0, 1, 2, 3, 4} strides with two registers.
    const char* x[(R + 4) / 5];
#pragma GCC unroll 64
    for (int b = 0; b < (R + 4) / 5; ++b)
      x[b] = static_cast<const char*>(d.x) + (row + 5 * b) * stride;
    const std::size_t panel_bytes = Weights::packed_bytes(d.k, P);
    const char* w = static_cast<const char*>(d.w) + panel * panel_bytes;
    constexpr std::size_t row_bytes = Weights::packed_bytes(Weights::k_step, P);

    // The panel after this one, on its way from the third-level cache while this one is worked on.
    // Of several groups of rows the first two fetch half each; the others repeat what is there.
    const char* ahead = NP > 1 || group > 1 ? w : w + panel_bytes + group * (panel_bytes / 2);
    const std::size_t ahead_step = NP == 1 && groups == 1 ? 2 * kLine : kLine;

    for (int k = 0; k < d.k; k += Weights::k_step) {
      // Into the first level, eight lines before use: without it matrix-vector products over weights
      // in the second level ran at 73 GB/s, with it at 87 (read limit 92). Non-temporal fetches sent
      // the lines back to memory (10 GB/s); demoting or re-touching lines to keep part of a model
      // larger than the second level there cost more than it saved.
#pragma GCC unroll 64
      for (int p = 0; p < NP; ++p)
#pragma GCC unroll 64
        for (std::size_t b = 0; b < row_bytes; b += kLine) V::prefetch(w + p * panel_bytes + b + 8 * kLine);
      if constexpr (R >= 4) {
        V::prefetch_second(ahead);
        V::prefetch_second(ahead + kLine);
        ahead += ahead_step;
      }
      if constexpr (Weights::k_step == 1) {
        f weights[NP * VP];
#pragma GCC unroll 64
        for (int v = 0; v < NP * VP; ++v)
          weights[v] = V::load(reinterpret_cast<const float*>(
              w + (v / VP) * panel_bytes + (v % VP) * W * sizeof(float)));
#pragma GCC unroll 64
        for (int r = 0; r < R; ++r) {
          const f value = V::set(reinterpret_cast<const float*>(x[r / 5] + (r % 5) * stride)[0]);
#pragma GCC unroll 64
          for (int v = 0; v < NP * VP; ++v) acc[r][v] = V::fma(value, weights[v], acc[r][v]);
        }
      } else {
        f low[NP * VP], high[NP * VP];
#pragma GCC unroll 64
        for (int v = 0; v < NP * VP; ++v) {
          const auto words = V::load_words(w + (v / VP) * panel_bytes +
                                           (v % VP) * W * sizeof(float));
          low[v] = V::low(words);
          high[v] = V::high(words);
        }
#pragma GCC unroll 64
        for (int r = 0; r < R; ++r) {
          const auto* values = reinterpret_cast<const float*>(x[r / 5] + (r % 5) * stride);
          const f even = V::set(values[0]), odd = V::set(values[1]);
#pragma GCC unroll 64
          for (int v = 0; v < NP * VP; ++v) acc[r][v] = V::fma(even, low[v], acc[r][v]);
#pragma GCC unroll 64
          for (int v = 0; v < NP * VP; ++v) acc[r][v] = V::fma(odd, high[v], acc[r][v]);
        }
      }
      w += row_bytes;
#pragma GCC unroll 64
      for (int b = 0; b < (R + 4) / 5; ++b) x[b] += Weights::k_step * sizeof(float);
    }

#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) {
      float* y = offset(static_cast<float*>(d.y), (row + r) * d.y_stride) + panel * P;
#pragma GCC unroll 64
      for (int v = 0; v < NP * VP; ++v) {
        const f sum = acc[r][v];
        V::store(y + v * W, d.output == Output::linear ? sum : gelu<V>(sum));
      }
    }
  }

  // Panels side by side so that at least eight chains hide the latency of a multiply-add.
  static constexpr int side_by_side(int rows) {
    return rows * VP >= 8 ? 1 : rows * VP >= 4 ? 2 : 4;
  }

  template <int R>
  static void rows(const Dense& d, int rows_here, int row, int panel, int panels, int group,
                   int groups) {
    if constexpr (R == 0) {
      (void)d, (void)rows_here, (void)row, (void)panel, (void)panels, (void)group, (void)groups;
    } else if (rows_here != R) {
      rows<R - 1>(d, rows_here, row, panel, panels, group, groups);
    } else if (panels == side_by_side(R) && panels > 1) {
      tile<R, side_by_side(R)>(d, row, panel, group, groups);
    } else {
      for (int p = 0; p < panels; ++p) tile<R, 1>(d, row, panel + p, group, groups);
    }
  }

  static void run(const Dense& d) noexcept {
    const int groups = (d.rows + Weights::max_rows - 1) / Weights::max_rows;
    const int together = d.rows <= Weights::max_rows ? side_by_side(d.rows) : 1;
    for (int panel = d.panel_begin; panel < d.panel_end; panel += together) {
      const int here = panel + together <= d.panel_end ? together : d.panel_end - panel;
      for (int g = 0; g < groups; ++g) {
        const int from = static_cast<int>(static_cast<std::int64_t>(d.rows) * g / groups);
        const int to = static_cast<int>(static_cast<std::int64_t>(d.rows) * (g + 1) / groups);
        rows<Weights::max_rows>(d, to - from, from, panel, here, g, groups);
      }
    }
  }
};

// Where activations are fp32, an input row is a copy.
inline void input_f32(const float* x, std::size_t x_stride, int rows, int n, int k, void* y,
                      std::size_t y_stride) noexcept {
  for (int r = 0; r < rows; ++r) {
    const float* from = offset(x, r * x_stride);
    float* to = offset(static_cast<float*>(y), r * y_stride);
    for (int i = 0; i < n; ++i) to[i] = from[i];
    for (int i = n; i < k; ++i) to[i] = 0.0f;
  }
}

// Writes W floats of activations at column `column`.
template <class V>
struct StoreF32 {
  static void store(void* y, int column, typename V::f x) {
    V::store(static_cast<float*>(y) + column, x);
  }
};

constexpr int kChains = 4;  // sums kept apart, to hide latency

// body(v, v % kChains) for v from 0 to n, the second known to the compiler, so that sums lie in registers.
template <class Body>
inline __attribute__((always_inline)) void in_chains(int n, Body body) {
  int v = 0;
  for (; v + kChains <= n; v += kChains)
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) body(v + chain, chain);
#pragma GCC unroll 4
  for (int chain = 0; chain < kChains - 1; ++chain)
    if (v + chain < n) body(v + chain, chain);
}

template <class V>
inline float sum_of_chains(const typename V::f (&sums)[kChains]) {
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}

struct Moments {
  float mean, inverse;  // inverse: 1 / sqrt(variance + 1e-6)
};

// Of `width` columns. Those of padding, up to `padded`, a multiple of 32, hold zero: only the variance has
// to leave them out.
template <class V>
inline Moments moments(const float* x, int width, int padded) {
  using f = typename V::f;
  constexpr int W = V::W;
  static_assert(kWidthAlign % W == 0, "a padded row is whole vectors");
  alignas(64) float mask[W];
  const float per = 1.0f / static_cast<float>(width);
  f sums[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
  in_chains(padded / W, [&](int v, int chain) { sums[chain] = V::add(sums[chain], V::load(x + v * W)); });
  const float mean = sum_of_chains<V>(sums) * per;
  const f centre = V::set(mean);
  for (f& s : sums) s = V::zero();
  const int whole = width / W;
  in_chains(whole, [&](int v, int chain) {
    const f e = V::sub(V::load(x + v * W), centre);
    sums[chain] = V::fma(e, e, sums[chain]);
  });
  if (whole * W < width) {
    for (int i = 0; i < W; ++i) mask[i] = whole * W + i < width ? 1.0f : 0.0f;
    const f e = V::mul(V::sub(V::load(x + whole * W), centre), V::load(mask));
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain)
      if (chain == whole % kChains) sums[chain] = V::fma(e, e, sums[chain]);
  }
  const float variance = sum_of_chains<V>(sums) * per;
  return {mean, 1.0f / std::sqrt(variance + 1e-6f)};
}

// One row stays in the first-level cache over the three passes. Gain and offset of padding are zero.
template <class V, class Store>
inline void norm(const Norm& d) noexcept {
  using f = typename V::f;
  constexpr int W = V::W;
  const int vectors = d.padded / W;
  for (int r = 0; r < d.rows; ++r) {
    const float* x = offset(d.x, r * d.x_stride);
    const Moments m = moments<V>(x, d.width, d.padded);
    const f centre = V::set(m.mean), inverse = V::set(m.inverse);
    if (d.y != nullptr) {
      void* y = offset(static_cast<char*>(d.y), r * d.y_stride);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const f e = V::mul(V::sub(V::load(x + v * W), centre), inverse);
        Store::store(y, v * W, V::fma(e, V::load(d.g + v * W), V::load(d.c + v * W)));
      }
    } else {
      f sums[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
      in_chains(vectors, [&](int v, int chain) {
        const f e = V::mul(V::sub(V::load(x + v * W), centre), inverse);
        const f n = V::fma(e, V::load(d.g + v * W), V::load(d.c + v * W));
        sums[chain] = V::fma(n, V::load(d.head_w + v * W), sums[chain]);
      });
      d.q[r] = sum_of_chains<V>(sums) + d.head_b;
    }
  }
}

template <class V>
inline void head(const Head& d) noexcept {
  constexpr int W = V::W;
  for (int r = 0; r < d.rows; ++r) {
    const float* x = offset(d.x, r * d.x_stride);
    float* y = offset(d.y, r * d.y_stride);
    for (int a = 0; a < d.outputs; ++a) {
      const float* w = d.w + static_cast<std::size_t>(a) * d.width;
      typename V::f sums[kChains] = {V::zero(), V::zero(), V::zero(), V::zero()};
      in_chains(d.width / W,
                [&](int v, int chain) { sums[chain] = V::fma(V::load(x + v * W), V::load(w + v * W), sums[chain]); });
      y[a] = sum_of_chains<V>(sums) + d.b[a];
    }
  }
}

}  // namespace
}  // namespace sorl
