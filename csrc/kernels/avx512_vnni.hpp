// AVX512_VNNI: vpdpbusd adds to a 32-bit word the products of its four unsigned by its four signed bytes.
// A tile of 7 rows by 32 columns keeps 14 sums of integers and 14 of floats in the 32 registers.
#pragma once

#include "avx512.hpp"

namespace sorl {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr int tile_rows = 7;
  // A sum waits 5 cycles for the one before it: eight chains or more.
  static constexpr int tile_vectors(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }
  using i = __m512i;

  static i zero_words() { return _mm512_setzero_si512(); }
  static i spread(const void* p) { return _mm512_set1_epi32(four_bytes(p)); }
  static i dot(i sum, i x, i w) { return _mm512_dpbusd_epi32(sum, x, w); }
};

}  // namespace
}  // namespace sorl
