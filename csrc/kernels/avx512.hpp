// The vectors of AVX-512 F, BW, DQ, VL, shared by the files that build on it.
#pragma once

// GCC 12 warns of the undefined operands in its own intrinsics wherever they are inlined (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "dense.hpp"

namespace sorl {
namespace {

// A tile of 14 rows by 32 columns keeps 28 sums in registers and reads 16 values for 28 multiply-adds;
// its weights come from the second-level cache at 9 bytes a cycle.
struct Avx512 {
  static constexpr int W = 16, panel_vectors = 2, max_rows = 14, max_rows_bf16 = 12;
  using f = __m512;
  using u = __m512i;

  static f zero() { return _mm512_setzero_ps(); }
  static f set(float x) { return _mm512_set1_ps(x); }
  static f load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, f a) { _mm512_storeu_ps(p, a); }
  static f add(f a, f b) { return _mm512_add_ps(a, b); }
  static f sub(f a, f b) { return _mm512_sub_ps(a, b); }
  static f mul(f a, f b) { return _mm512_mul_ps(a, b); }
  static f fma(f a, f b, f c) { return _mm512_fmadd_ps(a, b, c); }
  // 14 bits and one Newton step; a division would take the port for 16 cycles.
  static f recip(f a) {
    const f r = _mm512_rcp14_ps(a);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(a, r, set(2.0f)));
  }
  static f clamp(f a) { return _mm512_min_ps(a, set(64.0f)); }  // NaN: 64
  static f round(f a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static f scale(f a, f n) { return _mm512_scalef_ps(a, n); }
  static float sum(f a) { return _mm512_reduce_add_ps(a); }
  static f max(f a, f b) { return _mm512_max_ps(a, b); }
  static float highest(f a) { return _mm512_reduce_max_ps(a); }
  static f to_float(u a) { return _mm512_cvtepi32_ps(a); }
  // Rounded, of values in [0, 255].
  static void to_bytes(unsigned char* p, f a) {
    const u words = _mm512_max_epi32(_mm512_cvtps_epi32(a), _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(words));
  }
  static u load_words(const void* p) { return _mm512_loadu_si512(p); }
  static f low(u a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
  static f high(u a) { return _mm512_castsi512_ps(a); }
  static void prefetch(const void* p) { _mm_prefetch(p, _MM_HINT_T0); }
  static void prefetch_second(const void* p) { _mm_prefetch(p, _MM_HINT_T1); }
};

}  // namespace
}  // namespace sorl
