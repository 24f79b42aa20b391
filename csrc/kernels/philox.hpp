// Philox4x32-10 and its normals, written as loops over lanes that the compiler turns into vectors of
// whatever the including file is compiled for. Included by kernels/*.cpp only, hence the unnamed
// namespace: each instruction set has its own copy.
//
// A normal is float64 arithmetic rounded once to float32: in float32 the tail (up to 5.8, where one
// unit in the last place is 4.8e-7) would miss the promised 5e-7.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace sorl {
namespace {

constexpr int kLanes = 16;

struct PhiloxBlock {
  std::uint32_t w[4][kLanes];
};

// w holds the counters on entry and the random words on return.
inline void philox(PhiloxBlock& block, std::uint32_t key0, std::uint32_t key1) {
  auto& w = block.w;
  for (int round = 0; round < 10; ++round) {
    for (int l = 0; l < kLanes; ++l) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * w[0][l];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * w[2][l];
      const std::uint32_t a = static_cast<std::uint32_t>(p1 >> 32) ^ w[1][l] ^ key0;
      const std::uint32_t c = static_cast<std::uint32_t>(p0 >> 32) ^ w[3][l] ^ key1;
      w[1][l] = static_cast<std::uint32_t>(p1);
      w[3][l] = static_cast<std::uint32_t>(p0);
      w[0][l] = a;
      w[2][l] = c;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Box-Muller of the definition: u = ((w0 >> 8) + 1) 2^-24, v = (w1 >> 8) 2^-24,
// sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v). Both series are good to 1e-13.
inline void box_muller(const std::uint32_t* w0, const std::uint32_t* w1, float* first,
                       float* second) {
  double x[kLanes], exponent[kLanes], m[kLanes], radius[kLanes];
  std::int64_t bits[kLanes];
  for (int l = 0; l < kLanes; ++l) x[l] = static_cast<std::int32_t>((w0[l] >> 8) + 1);
  std::memcpy(bits, x, sizeof bits);
  for (int l = 0; l < kLanes; ++l) {
    // The mantissa's top decides whether m lies in [1, 1.41) or, halved, in [0.71, 1).
    const std::int64_t halve = (bits[l] & 0xFFFFFFFFFFFFF) >= 0x6A09E667F3BCD ? 1 : 0;
    exponent[l] = static_cast<double>(static_cast<std::int32_t>((bits[l] >> 52) - 1023 - 24 + halve));
    bits[l] = (bits[l] & 0xFFFFFFFFFFFFF) | ((1023 - halve) << 52);
  }
  std::memcpy(m, bits, sizeof bits);
  for (int l = 0; l < kLanes; ++l) {
    const double s = (m[l] - 1) / (m[l] + 1), t = s * s;
    double p = 1.0 / 17;
    p = p * t + 1.0 / 15;
    p = p * t + 1.0 / 13;
    p = p * t + 1.0 / 11;
    p = p * t + 1.0 / 9;
    p = p * t + 1.0 / 7;
    p = p * t + 1.0 / 5;
    p = p * t + 1.0 / 3;
    const double log_u = exponent[l] * 0.693147180559945309417 + 2 * s * (p * t + 1);
    radius[l] = std::sqrt(-2 * log_u);
  }
  for (int l = 0; l < kLanes; ++l) {
    const std::int32_t k = static_cast<std::int32_t>(w1[l] >> 8);
    const std::int32_t quadrant = (k + (1 << 21)) >> 22;
    const double a = (k - (quadrant << 22)) * (1.57079632679489661923 / (1 << 22)), t = a * a;
    double sine = 1.0 / 6227020800;
    sine = sine * t - 1.0 / 39916800;
    sine = sine * t + 1.0 / 362880;
    sine = sine * t - 1.0 / 5040;
    sine = sine * t + 1.0 / 120;
    sine = sine * t - 1.0 / 6;
    sine = a * (sine * t + 1);
    double cosine = -1.0 / 87178291200;
    cosine = cosine * t + 1.0 / 479001600;
    cosine = cosine * t - 1.0 / 3628800;
    cosine = cosine * t + 1.0 / 40320;
    cosine = cosine * t - 1.0 / 720;
    cosine = cosine * t + 1.0 / 24;
    cosine = cosine * t - 1.0 / 2;
    cosine = cosine * t + 1;
    const bool odd = (quadrant & 1) != 0;
    const double c = odd ? sine : cosine, s = odd ? cosine : sine;
    first[l] = static_cast<float>(radius[l] * (((quadrant + 1) & 2) != 0 ? -c : c));
    second[l] = static_cast<float>(radius[l] * ((quadrant & 2) != 0 ? -s : s));
  }
}

// Normals of rows first .. first + count - 1 of the linear index row * candidates + candidate.
inline void philox_normals(std::uint64_t seed, std::uint32_t call, std::uint32_t row_offset,
                           int candidates, int act_dim, int first, int count, int draw, float* z) noexcept {
  const std::uint32_t drawn = static_cast<std::uint32_t>(draw) << 24;
  const int quads = (act_dim + 3) / 4;
  const std::int64_t blocks = static_cast<std::int64_t>(count) * quads;
  int row = first / candidates, candidate = first % candidates, quad = 0;
  float* out = z;
  for (std::int64_t done = 0; done < blocks; done += kLanes) {
    PhiloxBlock block;
    float normal[4][kLanes];
    float* place[kLanes];
    int keep[kLanes];
    const int live = blocks - done < kLanes ? static_cast<int>(blocks - done) : kLanes;
    for (int l = 0; l < kLanes; ++l) {
      block.w[0][l] = drawn + static_cast<std::uint32_t>(quad);
      block.w[1][l] = static_cast<std::uint32_t>(candidate);
      block.w[2][l] = static_cast<std::uint32_t>(row) + row_offset;
      block.w[3][l] = call;
      if (l >= live) continue;
      place[l] = out;
      keep[l] = act_dim - 4 * quad < 4 ? act_dim - 4 * quad : 4;
      out += keep[l];
      if (++quad == quads) {
        quad = 0;
        if (++candidate == candidates) {
          candidate = 0;
          ++row;
        }
      }
    }
    philox(block, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
    box_muller(block.w[0], block.w[1], normal[0], normal[1]);
    box_muller(block.w[2], block.w[3], normal[2], normal[3]);
    for (int l = 0; l < live; ++l)
      for (int a = 0; a < keep[l]; ++a) place[l][a] = normal[a][l];
  }
}

}  // namespace
}  // namespace sorl
