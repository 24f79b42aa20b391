// Vectors in plain C++: four floats in an array, which a compiler may keep in whatever its baseline has.
#pragma once

#include "int8.hpp"

namespace sorl {
namespace {

struct Scalar {
  static constexpr int W = 4, panel_vectors = 2, max_rows = 2, max_rows_bf16 = 2;
  struct f {
    float v[W];
  };
  struct u {
    std::uint32_t v[W];
  };

  template <class Op>
  static f each(Op op) {
    f r;
    for (int i = 0; i < W; ++i) r.v[i] = op(i);
    return r;
  }
  static f zero() { return set(0.0f); }
  static f set(float x) {
    return each([&](int) { return x; });
  }
  static f load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static void store(float* p, f a) {
    for (int i = 0; i < W; ++i) p[i] = a.v[i];
  }
  static f add(f a, f b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static f sub(f a, f b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static f mul(f a, f b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static f fma(f a, f b, f c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static f recip(f a) {
    return each([&](int i) { return 1.0f / a.v[i]; });
  }
  static f clamp(f a) {
    return each([&](int i) {
      const float low = a.v[i] > -126.0f ? a.v[i] : -126.0f;  // NaN: -126
      return low < 64.0f ? low : 64.0f;
    });
  }
  // |a| < 2^22: adding 1.5 * 2^23 leaves no bits for the fraction.
  static f round(f a) {
    return each([&](int i) {
      const float shifted = a.v[i] + 12582912.0f;
      return shifted - 12582912.0f;
    });
  }
  static f scale(f a, f n) {
    return each([&](int i) {
      const auto e = static_cast<std::uint32_t>(static_cast<std::int32_t>(n.v[i]));
      return float_of(bits_of(a.v[i]) + (e << 23));
    });
  }
  static float sum(f a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }
  static u load_words(const void* p) {
    u r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static f low(u a) {
    return each([&](int i) { return float_of(a.v[i] << 16); });
  }
  static f high(u a) {
    return each([&](int i) { return float_of(a.v[i]); });
  }
  static void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
  static void prefetch_second(const void* p) { __builtin_prefetch(p, 0, 2); }
};

struct ScalarInt8 : Scalar {
  static constexpr int tile_rows = 1;
  static constexpr int tile_vectors(int) { return kInt8Group / W; }
  struct i {
    std::int32_t v[W];
  };

  static i zero_words() { return {}; }
  static i load_words(const void* p) {
    i r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static i spread(const void* p) {
    i r;
    for (std::int32_t& word : r.v) word = four_bytes(p);
    return r;
  }
  static i dot(i sum, i x, i w) {
    unsigned char values[4 * W];
    signed char weights[4 * W];
    std::memcpy(values, x.v, sizeof values);
    std::memcpy(weights, w.v, sizeof weights);
    for (int j = 0; j < 4 * W; ++j) sum.v[j / 4] += values[j] * weights[j];
    return sum;
  }
  static f to_float(i a) {
    return each([&](int j) { return static_cast<float>(a.v[j]); });
  }
  static f max(f a, f b) {
    return each([&](int j) { return a.v[j] > b.v[j] ? a.v[j] : b.v[j]; });
  }
  static float highest(f a) {
    float most = a.v[0];
    for (int j = 1; j < W; ++j) most = a.v[j] > most ? a.v[j] : most;
    return most;
  }
  // Of a NaN any byte: its group's step says that it was one.
  static void to_bytes(unsigned char* p, f a) {
    const f whole = round(each([&](int j) { return a.v[j] > 0.0f ? (a.v[j] < 255.0f ? a.v[j] : 255.0f) : 0.0f; }));
    for (int j = 0; j < W; ++j) p[j] = static_cast<unsigned char>(whole.v[j]);
  }
};

}  // namespace
}  // namespace sorl
