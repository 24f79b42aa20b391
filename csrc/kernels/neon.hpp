// The vectors of AArch64 NEON, shared by the files that build on it.
#pragma once

#include <arm_neon.h>

#include "dense.hpp"

namespace sorl {
namespace {

// A tile of 6 rows by 16 columns keeps 24 sums in the 32 registers.
struct Neon {
  static constexpr int W = 4, panel_vectors = 4, max_rows = 6, max_rows_bf16 = 5;
  using f = float32x4_t;
  using u = uint32x4_t;

  static f zero() { return vdupq_n_f32(0.0f); }
  static f set(float x) { return vdupq_n_f32(x); }
  static f load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, f a) { vst1q_f32(p, a); }
  static f add(f a, f b) { return vaddq_f32(a, b); }
  static f sub(f a, f b) { return vsubq_f32(a, b); }
  static f mul(f a, f b) { return vmulq_f32(a, b); }
  static f fma(f a, f b, f c) { return vfmaq_f32(c, a, b); }
  static f recip(f a) { return vdivq_f32(set(1.0f), a); }
  // The "number" forms take the other operand where one is NaN, so a NaN becomes -126.
  static f clamp(f a) { return vminnmq_f32(vmaxnmq_f32(a, set(-126.0f)), set(64.0f)); }
  static f round(f a) { return vrndnq_f32(a); }
  static f scale(f a, f n) {
    const int32x4_t e = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), e));
  }
  static float sum(f a) { return vaddvq_f32(a); }
  static u load_words(const void* p) { return vld1q_u32(static_cast<const std::uint32_t*>(p)); }
  static f low(u a) { return vreinterpretq_f32_u32(vshlq_n_u32(a, 16)); }
  static f high(u a) { return vreinterpretq_f32_u32(a); }
  static void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
  static void prefetch_second(const void* p) { __builtin_prefetch(p, 0, 2); }
};

}  // namespace
}  // namespace sorl
