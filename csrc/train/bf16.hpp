// What bf16 policies share: conversions, the paired layout, and the transposition that weight gradients
// need. For AVX512_BF16 and above.
#pragma once

#include "mlp.hpp"

namespace sorl::train {
namespace {

struct Bf16 {
  using T = std::uint16_t;
  static constexpr bool precise = false, split = true, transposes = true;

  static T narrow(float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    if (x != x) return static_cast<T>(u >> 16 | 0x40);  // rounding could carry a NaN into infinity
    return static_cast<T>((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
  }
  static float widen(T x) {
    const std::uint32_t u = std::uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &u, sizeof y);
    return y;
  }

  SORL_INLINE __m512i both(v16 low, v16 high) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  }
  SORL_INLINE void store_row(T* to, int r, v16 a, v16 b) { _mm512_storeu_si512(to + r * kBlock, both(a, b)); }
  SORL_INLINE void load_row(const T* from, int r, v16& a, v16& b) {
    const __m512i x = _mm512_loadu_si512(from + r * kBlock);
    a = (v16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16);
    b = (v16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16);
  }
  // [a0 a1 ... | b0 b1 ...] -> a0 b0 a1 b1 ...
  SORL_INLINE __m512i interleave(__m512i x) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, x);
  }
  // Columns 0-15 and 16-31 of rows 2j (a, b) and 2j + 1 (c, d).
  SORL_INLINE void store_pair(T* to, int j, v16 a, v16 b, v16 c, v16 d) {
    _mm512_storeu_si512(to + j * kBlock, interleave(both(a, c)));
    _mm512_storeu_si512(to + kArea / 2 + j * kBlock, interleave(both(b, d)));
  }
  static void store_block(const float* from, T* to) {
    for (int j = 0; j < kBlock / 2; ++j, from += 2 * kBlock)
      store_pair(to, j, load(from), load(from + 16), load(from + 32), load(from + 48));
  }
  // The transposed block, paired: its pairs of rows are pairs of columns of `from`.
  static void store_transposed(const float* from, T* to) {
    for (int half = 0; half < 2; ++half) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i, from += kBlock) r[i] = both(load(from), load(from + 16));
      transpose16(r);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + half * kArea / 2 + i * kBlock, r[i]);
    }
  }
  static void transpose(const T* from, T* to) {
    __m512i low[16], high[16];
    const __m512i columns = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39,
                                             7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i upper = _mm512_add_epi16(columns, _mm512_set1_epi16(16));
    for (int i = 0; i < 16; ++i) {
      const __m512i a = _mm512_loadu_si512(from + 2 * i * kBlock), b = _mm512_loadu_si512(from + (2 * i + 1) * kBlock);
      low[i] = _mm512_permutex2var_epi16(a, columns, b);
      high[i] = _mm512_permutex2var_epi16(a, upper, b);
    }
    transpose16(low);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kBlock, low[i]);
    transpose16(high);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (16 + i) * kBlock, high[i]);
  }
  static void column_sums(const T* from, int n, float* sums) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
    __m512 a[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, b[2] = {a[0], a[0]};
    for (int k = 0; k < n; ++k, from += kPitch)
      for (int j = 0; j < kBlock / 2; ++j) {
        a[j % 2] = _mm512_dpbf16_ps(a[j % 2], (__m512bh)_mm512_loadu_si512(from + j * kBlock), ones);
        b[j % 2] = _mm512_dpbf16_ps(b[j % 2], (__m512bh)_mm512_loadu_si512(from + kArea / 2 + j * kBlock), ones);
      }
    store(sums, (v16)_mm512_add_ps(a[0], a[1])), store(sums + 16, (v16)_mm512_add_ps(b[0], b[1]));
  }
};

}  // namespace
}  // namespace sorl::train
