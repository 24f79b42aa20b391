// Sixteen floats as one value: one register with AVX-512, two with AVX2.
// Included by the instruction sets' files only; everything is in an unnamed namespace, since the same
// code compiled for two instruction sets must never meet in the linker.
#pragma once

#include <immintrin.h>

#include <cstring>

namespace sorl::train {
namespace {

#define SORL_INLINE static inline __attribute__((always_inline))

// Brings a line near, to be written or read: to the first level of cache, or to the second. Not
// __builtin_prefetch: to GCC a function that does nothing else is without effect, and it drops its calls.
enum class Fetch { write, read, read_second };
template <Fetch how>
SORL_INLINE void prefetch(const void* p) {
  const char& line = *static_cast<const char*>(p);
  if constexpr (how == Fetch::write)
    __asm__ volatile("prefetchw %0" ::"m"(line));
  else if constexpr (how == Fetch::read)
    __asm__ volatile("prefetcht0 %0" ::"m"(line));
  else
    __asm__ volatile("prefetcht1 %0" ::"m"(line));
}

#if defined(__AVX512F__)

typedef float v16 __attribute__((vector_size(64)));

SORL_INLINE v16 load(const float* p) { return (v16)_mm512_loadu_ps(p); }
SORL_INLINE void store(float* p, v16 a) { _mm512_storeu_ps(p, (__m512)a); }
SORL_INLINE v16 set(float x) { return (v16)_mm512_set1_ps(x); }  // `v16{} + x` would add in a register

#else

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4), may_alias));

struct v16 {
  v8 a, b;
};

SORL_INLINE v16 load(const float* p) {
  return {*reinterpret_cast<const v8u*>(p), *reinterpret_cast<const v8u*>(p + 8)};
}
SORL_INLINE void store(float* p, v16 x) {
  *reinterpret_cast<v8u*>(p) = x.a;
  *reinterpret_cast<v8u*>(p + 8) = x.b;
}
SORL_INLINE v16 set(float x) {
  const v8 v = (v8)_mm256_set1_ps(x);
  return {v, v};
}
SORL_INLINE v16 operator+(v16 x, v16 y) { return {x.a + y.a, x.b + y.b}; }
SORL_INLINE v16 operator-(v16 x, v16 y) { return {x.a - y.a, x.b - y.b}; }
SORL_INLINE v16 operator*(v16 x, v16 y) { return {x.a * y.a, x.b * y.b}; }
SORL_INLINE v16 operator/(v16 x, v16 y) { return {x.a / y.a, x.b / y.b}; }
SORL_INLINE v16 operator+(v16 x, float y) { return x + set(y); }
SORL_INLINE v16 operator-(v16 x, float y) { return x - set(y); }
SORL_INLINE v16 operator*(v16 x, float y) { return x * set(y); }
SORL_INLINE v16 operator*(float x, v16 y) { return set(x) * y; }
SORL_INLINE v16 operator-(float x, v16 y) { return set(x) - y; }
SORL_INLINE v16 operator/(float x, v16 y) { return set(x) / y; }
SORL_INLINE v16& operator+=(v16& x, v16 y) { return x = x + y; }
SORL_INLINE v16& operator-=(v16& x, v16 y) { return x = x - y; }
SORL_INLINE v16& operator*=(v16& x, v16 y) { return x = x * y; }
SORL_INLINE v16& operator*=(v16& x, float y) { return x = x * y; }

#endif

#if defined(__AVX512F__)

// Transposes 16 x 16 words.
SORL_INLINE void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int j = i / 4 * 8 + i % 4;
    t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
    t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

#else

// Transposes 8 x 8 words.
SORL_INLINE void transpose8(__m256 (&r)[8]) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

#endif

SORL_INLINE float sum(v16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  const v8 s = x.a + x.b;
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
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
  return {(v8)_mm256_sqrt_ps((__m256)a.a), (v8)_mm256_sqrt_ps((__m256)a.b)};
#endif
}

// 2^e for e in [-126, 126].
template <bool precise>
SORL_INLINE v16 exp2(v16 e) {
#if defined(__AVX512F__)
  const v16 n = (v16)_mm512_roundscale_ps((__m512)e, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const v16 n{(v8)_mm256_round_ps((__m256)e.a, kNearest), (v8)_mm256_round_ps((__m256)e.b, kNearest)};
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
  const auto power = [](v8 x) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32((__m256)x), _mm256_set1_epi32(127));
    return (v8)_mm256_slli_epi32(biased, 23);
  };
  return p * v16{power(n.a), power(n.b)};
#endif
}

// GELU, tanh form, as x s with s = 1/(1 + e^-w), w = 2 sqrt(2/pi) (x + 0.044715 x^3), and its
// derivative s (1 + x (1 - s) w'); 1 - s is e^-w s, exact where s is near 1.
template <bool precise, bool derivative>
SORL_INLINE v16 gelu(v16 x, v16& slope) {
  const v16 square = x * x;
  v16 e = x * (square * -0.10294324f + -2.3022082f);
#if defined(__AMX_TILE__)
  if constexpr (!precise) {
    // As the sampler's on tiles (kernels/amx_bf16.hpp), to 1e-5: one instruction takes off the fraction, scalef finds the
    // whole part by itself, and 14 bits of a reciprocal are six more than bf16 has.
    e = (v16)_mm512_min_ps((__m512)e, _mm512_set1_ps(126.0f));
    const v16 f = (v16)_mm512_reduce_ps((__m512)e, _MM_FROUND_TO_NEG_INF);
    v16 p = set(0.078024491f);
    p = p * f + 0.22606727f;
    p = p * f + 0.69583346f;
    p = p * f + 0.99992523f;
    const v16 t = (v16)_mm512_scalef_ps((__m512)p, (__m512)e);
    const v16 s = (v16)_mm512_rcp14_ps((__m512)(t + 1.0f));
    const v16 y = x * s;
    if constexpr (derivative) slope = s + y * (t * s) * (square * 0.21406445f + 1.5957691f);
    return y;
  }
#endif
  // keeps the reciprocal of a huge sum from a NaN; a NaN in x comes back out through the last product
#if defined(__AVX512F__)
  e = (v16)_mm512_max_ps(_mm512_min_ps((__m512)e, _mm512_set1_ps(64.0f)), _mm512_set1_ps(-126.0f));
#else
  const auto clamp = [](v8 x) {
    return (v8)_mm256_max_ps(_mm256_min_ps((__m256)x, _mm256_set1_ps(64.0f)), _mm256_set1_ps(-126.0f));
  };
  e = v16{clamp(e.a), clamp(e.b)};
#endif
  const v16 t = exp2<precise>(e);
  const v16 s = recip(t + 1.0f);
  const v16 y = x * s;
  if constexpr (derivative) slope = s + y * (t * s) * (square * 0.21406445f + 1.5957691f);
  return y;
}

}  // namespace
}  // namespace sorl::train
