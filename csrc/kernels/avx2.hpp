// The vectors of AVX2 with FMA, shared by the files that build on it.
#pragma once

#include <immintrin.h>

#include "dense.hpp"

namespace sorl {
namespace {

// A tile of 6 rows by 16 columns keeps 12 sums in the 16 registers.
struct Avx2 {
  static constexpr int W = 8, panel_vectors = 2, max_rows = 6, max_rows_bf16 = 5;
  using f = __m256;
  using u = __m256i;

  static f zero() { return _mm256_setzero_ps(); }
  static f set(float x) { return _mm256_set1_ps(x); }
  static f load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, f a) { _mm256_storeu_ps(p, a); }
  static f add(f a, f b) { return _mm256_add_ps(a, b); }
  static f sub(f a, f b) { return _mm256_sub_ps(a, b); }
  static f mul(f a, f b) { return _mm256_mul_ps(a, b); }
  static f fma(f a, f b, f c) { return _mm256_fmadd_ps(a, b, c); }
  static f recip(f a) { return _mm256_div_ps(set(1.0f), a); }
  static f clamp(f a) {  // NaN: -126
    return _mm256_min_ps(_mm256_max_ps(a, set(-126.0f)), set(64.0f));
  }
  static f round(f a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static f scale(f a, f n) {
    const __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), e));
  }
  static float sum(f a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  // Of 8-bit products: kernels/int8.hpp.
  static u zero_words() { return _mm256_setzero_si256(); }
  static u spread(const void* four) { return _mm256_set1_epi32(four_bytes(four)); }
  static f max(f a, f b) { return _mm256_max_ps(a, b); }
  static float highest(f a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static f to_float(u a) { return _mm256_cvtepi32_ps(a); }
  static void to_bytes(unsigned char* p, f a) {
    const __m256i words = _mm256_cvtps_epi32(a);
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(halves, halves));
  }
  static u load_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static f low(u a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
  static f high(u a) { return _mm256_castsi256_ps(a); }
  static void prefetch(const void* p) { _mm_prefetch(p, _MM_HINT_T0); }
  static void prefetch_second(const void* p) { _mm_prefetch(p, _MM_HINT_T1); }
};

// 8-bit products by way of 16-bit ones: as many multiply-adds as in float32, over a quarter of the bytes.
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
}  // namespace sorl
