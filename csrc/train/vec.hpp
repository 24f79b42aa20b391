// Sixteen floats as one value, in the compiler's own vectors: one register with AVX-512, two with AVX2.
// Included by the instruction sets' files only; everything is in an unnamed namespace, since the same
// code compiled for two instruction sets must never meet in the linker.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sorl::train {
namespace {

typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::int32_t i16 __attribute__((vector_size(64)));

#define SORL_INLINE static inline __attribute__((always_inline))

SORL_INLINE v16 load(const float* p) { return *reinterpret_cast<const v16u*>(p); }
SORL_INLINE void store(float* p, v16 a) { *reinterpret_cast<v16u*>(p) = a; }
SORL_INLINE v16 set(float x) { return v16{} + x; }

SORL_INLINE float sum(v16 a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)a);
#else
  float s[16];
  store(s, a);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) s[i] += s[i + n];
  return s[0];
#endif
}

SORL_INLINE v16 recip(v16 a) {
#if defined(__AVX512F__)
  // 14 bits and one Newton step; a division would take the port for 16 cycles.
  const v16 r = (v16)_mm512_rcp14_ps((__m512)a);
  return r * (2.0f - a * r);
#else
  return 1.0f / a;
#endif
}

SORL_INLINE v16 root(v16 a) {
#if defined(__AVX512F__)
  return (v16)_mm512_sqrt_ps((__m512)a);
#else
  v16 r;
  for (int i = 0; i < 16; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
#endif
}

// 2^e for e in [-126, 126].
template <bool precise>
SORL_INLINE v16 exp2(v16 e) {
#if defined(__AVX512F__)
  const v16 n = (v16)_mm512_roundscale_ps((__m512)e, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const v16 magic = set(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer
  const v16 n = (e + magic) - magic;
#endif
  const v16 f = e - n;
  v16 p;
  if constexpr (precise) {
    p = set(0.00015345813f);
    p = p * f + 0.0013399931f;
    p = p * f + 0.0096184891f;
    p = p * f + 0.055503286f;
    p = p * f + 0.24022646f;
    p = p * f + 0.69314718f;
    p = p * f + 1.0f;
  } else {  // relative error 3e-6, far below bf16's 2e-3
    p = set(0.00958285f);
    p = p * f + 0.05590643f;
    p = p * f + 0.24024099f;
    p = p * f + 0.69312419f;
    p = p * f + 1.0f;
  }
#if defined(__AVX512F__)
  return (v16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const i16 shift = (__builtin_convertvector(n, i16) + 127) << 23;
  v16 scale;
  std::memcpy(&scale, &shift, sizeof scale);
  return p * scale;
#endif
}

// GELU, tanh form, as x s with s = 1/(1 + e^-w), w = 2 sqrt(2/pi) (x + 0.044715 x^3), and its
// derivative s (1 + x (1 - s) w'); 1 - s is e^-w s, exact where s is near 1.
template <bool precise, bool derivative>
SORL_INLINE v16 gelu(v16 x, v16& slope) {
  const v16 square = x * x;
  v16 e = x * (square * -0.10294324f + -2.3022082f);
  // keeps the reciprocal of a huge sum from a NaN; a NaN in x comes back out through the last product
#if defined(__AVX512F__)
  e = (v16)_mm512_max_ps(_mm512_min_ps((__m512)e, _mm512_set1_ps(64.0f)), _mm512_set1_ps(-126.0f));
#else
  e = e < 64.0f ? e : set(64.0f);
  e = e > -126.0f ? e : set(-126.0f);
#endif
  const v16 t = exp2<precise>(e);
  const v16 s = recip(t + 1.0f);
  const v16 y = x * s;
  if constexpr (derivative) slope = s + y * (t * s) * (square * 0.21406445f + 1.5957691f);
  return y;
}

}  // namespace
}  // namespace sorl::train
