// AVX512_BF16: vdpbf16ps adds the products of a pair of bf16 to an fp32 sum.
#include "bf16.hpp"
#include "choosing.hpp"
#include "philox.hpp"
#include "whitening.hpp"

namespace sorl {
namespace {

using V = Avx512;

// R rows by NP panels of two vectors; the chains are in the order of k, as in dense.hpp.
template <int R, int NP>
__attribute__((noinline)) void tile(const Dense& d, int row, int panel) {
  __m512 acc[R][2 * NP];
#pragma GCC unroll 64
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 64
    for (int v = 0; v < 2 * NP; ++v) {
      acc[r][v] = V::load(d.bias + panel * 32 + v * 16);
      if (d.init != nullptr) acc[r][v] = V::add(acc[r][v], V::load(d.init[row + r] + panel * 32 + v * 16));
    }
  const std::size_t stride = d.x_stride;
  const char* x[(R + 4) / 5];
#pragma GCC unroll 64
  for (int b = 0; b < (R + 4) / 5; ++b) x[b] = static_cast<const char*>(d.x) + (row + 5 * b) * stride;
  const std::size_t panel_bytes = WeightsPairs::packed_bytes(d.k, 32);
  const char* w = static_cast<const char*>(d.w) + panel * panel_bytes;
  for (int k = 0; k < d.k; k += 2) {
    __m512bh weights[2 * NP];
#pragma GCC unroll 64
    for (int v = 0; v < 2 * NP; ++v) {
      const char* at = w + (v / 2) * panel_bytes + (v % 2) * kLine;
      weights[v] = reinterpret_cast<__m512bh>(V::load_words(at));
      V::prefetch(at + 8 * kLine);
    }
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) {
      int pair;
      std::memcpy(&pair, x[r / 5] + (r % 5) * stride, sizeof pair);
      const auto values = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 64
      for (int v = 0; v < 2 * NP; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], weights[v], values);
    }
    w += 2 * kLine;
#pragma GCC unroll 64
    for (int b = 0; b < (R + 4) / 5; ++b) x[b] += sizeof(int);
  }
#pragma GCC unroll 64
  for (int r = 0; r < R; ++r) {
    char* y = static_cast<char*>(d.y) + (row + r) * d.y_stride;
#pragma GCC unroll 64
    for (int v = 0; v < 2 * NP; ++v) {
      const int column = panel * 32 + v * 16;
      const __m512 sum = acc[r][v];
      if (d.output == Output::gelu)
        StoreBf16::store(y, column, gelu_for_bf16(sum));
      else
        V::store(reinterpret_cast<float*>(y) + column,
                 d.output == Output::linear ? sum : gelu_for_bf16(sum));
    }
  }
}

// A sum waits 7 cycles for the one before it: eight chains or more.
constexpr int side_by_side(int rows) { return rows >= 4 ? 1 : rows >= 2 ? 2 : 4; }

template <int R>
void rows(const Dense& d, int here, int row, int panel, int panels) {
  if constexpr (R > 0) {
    if (here != R) {
      rows<R - 1>(d, here, row, panel, panels);
    } else if (panels == side_by_side(R)) {
      tile<R, side_by_side(R)>(d, row, panel);
    } else {
      for (int p = 0; p < panels; ++p) tile<R, 1>(d, row, panel + p);
    }
  } else {
    (void)d, (void)here, (void)row, (void)panel, (void)panels;
  }
}

void dense(const Dense& d) noexcept {
  const int groups = (d.rows + V::max_rows - 1) / V::max_rows;
  const int together = groups == 1 ? side_by_side(d.rows) : 1;
  for (int panel = d.panel_begin; panel < d.panel_end; panel += together) {
    const int here = panel + together <= d.panel_end ? together : d.panel_end - panel;
    for (int g = 0; g < groups; ++g) {
      const int from = static_cast<int>(static_cast<std::int64_t>(d.rows) * g / groups);
      const int to = static_cast<int>(static_cast<std::int64_t>(d.rows) * (g + 1) / groups);
      rows<V::max_rows>(d, to - from, from, panel, here);
    }
  }
}

Kernels make() {
  Kernels k{};
  k.isa = Isa::avx512_bf16;
  k.precision = Precision::bf16;
  k.panel = WeightsPairs::panel;
  k.k_align = 2;
  k.bf16_activations = true;
  k.together_rows = k.together_rows_with_q = 15;
  k.block_rows = 128;
  k.packed_bytes = WeightsPairs::packed_bytes;
  k.pack = WeightsPairs::pack;
  k.input = input_bf16;
  k.dense = dense;
  k.norm = norm<V, StoreBf16>;
  k.tanh = tanh<V>;
  k.normals = philox_normals;
  k.distance_sums = distance_sums;
  k.whiten = whiten;
  k.uniform = philox_uniform;
  return k;
}

}  // namespace

const Kernels* avx512_bf16_kernels(Precision) {
  static const Kernels kernels = make();
  return &kernels;
}

}  // namespace sorl
