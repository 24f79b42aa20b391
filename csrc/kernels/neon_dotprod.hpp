// The dot products of Armv8.2: sdot adds to a 32-bit word the products of its four signed by its four signed
// bytes. Ours are unsigned by signed: x w = (x - 128) w + 127 w + w, of which the last two are the same for
// both rows of a tile, and with one row two thirds of the work: that is bound by the weights' way in. Not yet
// timed. A tile of 2 rows by 16 columns keeps 8 sums of integers and 8 of floats in the 32 registers.
#pragma once

#include "neon.hpp"

namespace sorl {
namespace {

struct NeonDotprod : Neon {
  static constexpr int tile_rows = 2;
  static constexpr int tile_vectors(int rows) { return rows == 1 ? 8 : 4; }
  using i = int32x4_t;

  static i zero_words() { return vdupq_n_s32(0); }
  static i load_words(const void* p) { return vreinterpretq_s32_s8(vld1q_s8(static_cast<const std::int8_t*>(p))); }
  static i spread(const void* p) { return vdupq_n_s32(four_bytes(p)); }
  static i dot(i sum, i x, i w) {
    const int8x16_t weights = vreinterpretq_s8_s32(w);
    const i of_128 = vdotq_s32(vdotq_s32(zero_words(), weights, vdupq_n_s8(127)), weights, vdupq_n_s8(1));
    const int8x16_t less_128 = veorq_s8(vreinterpretq_s8_s32(x), vdupq_n_s8(-128));
    return vaddq_s32(vdotq_s32(sum, weights, less_128), of_128);
  }
  static f to_float(i a) { return vcvtq_f32_s32(a); }
  static f max(f a, f b) { return vmaxq_f32(a, b); }
  static float highest(f a) { return vmaxvq_f32(a); }
  static void to_bytes(unsigned char* p, f a) {
    const uint16x4_t halves = vqmovun_s32(vcvtnq_s32_f32(a));
    const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(halves, halves))), 0);
    std::memcpy(p, &four, sizeof four);
  }
};

}  // namespace
}  // namespace sorl
