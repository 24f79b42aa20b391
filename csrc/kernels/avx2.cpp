// AVX2 with FMA, and its 8-bit products by way of 16-bit ones: as many multiply-adds as in float32, over a
// quarter of the bytes.
#include "avx2.hpp"

#include "int8.hpp"
#include "table.hpp"

namespace sorl {
namespace {

struct Avx2Int8 : Avx2 {
  static constexpr int tile_rows = 2;
  static constexpr int tile_vectors(int rows) { return rows == 1 ? 4 : 2; }
  using i = u;

  // vpmaddubsw would saturate: two products of 255 by 127 are more than 16 bits hold.
  static i dot(i sum, i x, i w) {
    const i x_even = _mm256_and_si256(x, _mm256_set1_epi16(0x00FF)), x_odd = _mm256_srli_epi16(x, 8);
    const i w_even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), w_odd = _mm256_srai_epi16(w, 8);
    return _mm256_add_epi32(
        sum, _mm256_add_epi32(_mm256_madd_epi16(x_even, w_even), _mm256_madd_epi16(x_odd, w_odd)));
  }
};

}  // namespace

const Kernels* avx2_kernels(Precision precision) {
  if (precision != Precision::int8) return tables<Avx2>(Isa::avx2, precision, 96);
  static const Kernels int8 = int8_table<Avx2Int8>(*avx2_kernels(Precision::bf16), Isa::avx2);
  return &int8;
}

}  // namespace sorl
