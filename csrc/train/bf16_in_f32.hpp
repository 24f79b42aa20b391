// The policy of bf16 where fp32 multiply-adds are the fastest: every value that bf16 would store is
// rounded to bf16 but kept in 32 bits, so that nothing is widened again. A product of two such values is
// exact in fp32. It rounds where bf16.hpp does and takes the memory and the time of f32.hpp.
#pragma once

#include "f32.hpp"

namespace sorl::train {
namespace {

// To the nearest bf16, ties to even; a NaN stays one.
SORL_INLINE v16 round_to_bf16(v16 x) {
#if defined(__AVX512F__)
  const __m512i u = (__m512i)x, high = _mm512_set1_epi32(int(0xFFFF0000u));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  return (v16)_mm512_mask_mov_epi32(_mm512_and_si512(up, high), nan, u);
#else
  const auto round = [](v8 y) {
    const __m256i u = (__m256i)y, high = _mm256_set1_epi32(int(0xFFFF0000u));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256 nan = _mm256_cmp_ps((__m256)y, (__m256)y, _CMP_UNORD_Q);
    return (v8)_mm256_blendv_ps((__m256)_mm256_and_si256(up, high), (__m256)y, nan);
  };
  return {round(x.a), round(x.b)};
#endif
}

template <int R, int N>
struct Bf16InF32 : F32<R, N> {
  static constexpr bool precise = false, split = true;

  static float narrow(float x) {
    alignas(64) float out[16];
    store(out, round_to_bf16(set(x)));
    return out[0];
  }
  SORL_INLINE void store_row(float* to, int r, v16 a, v16 b) {
    F32<R, N>::store_row(to, r, round_to_bf16(a), round_to_bf16(b));
  }
  SORL_INLINE void store_pair(float* to, int j, v16 a, v16 b, v16 c, v16 d) {
    store_row(to, 2 * j, a, b), store_row(to, 2 * j + 1, c, d);
  }
  static void store_block(const float* from, float* to) {
    for (int r = 0; r < kBlock; ++r) store_row(to, r, load(from + r * kBlock), load(from + r * kBlock + 16));
  }
  static void store_transposed(const float* from, float* to) {
    alignas(64) float rounded[kArea];
    store_block(from, rounded);
    F32<R, N>::store_transposed(rounded, to);
  }
};

}  // namespace
}  // namespace sorl::train
