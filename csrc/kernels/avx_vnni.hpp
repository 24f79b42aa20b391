// AVX-VNNI: vpdpbusd in registers of 256 bits, for processors without AVX-512. A tile of 3 rows by 16
// columns keeps 6 sums of integers and 6 of floats in the 16 registers.
#pragma once

#include "avx2.hpp"

namespace sorl {
namespace {

struct AvxVnni : Avx2 {
  static constexpr int tile_rows = 3;
  static constexpr int tile_vectors(int rows) { return rows == 1 ? 4 : 2; }
  using i = u;

  static i dot(i sum, i x, i w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
};

}  // namespace
}  // namespace sorl
