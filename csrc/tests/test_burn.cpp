// What the limit of multiply-adds multiplies: values as a policy's, neither zeros, which run at a higher clock,
// nor numbers that grow, vanish or stop being numbers. Vectors that watch their operands stand in for real ones.
#include "../bench/loops.hpp"
#include "check.hpp"

namespace {

long floats = 0;
long odd = 0;  // not a normal number of a policy's size
long alike = 0;  // the product before, again

void watch(float x, float w) {
  static float x_before = 0;
  static float w_before = 0;
  ++floats;
  odd += !(std::fabs(x) >= 1e-6f && std::fabs(x) < 4.0f && std::fabs(w) >= 1e-6f && std::fabs(w) < 1.0f);
  alike += x == x_before && w == w_before;
  x_before = x;
  w_before = w;
}

long dots = 0;
long zeros = 0;
std::int64_t widest = 0;

struct Watched {
  static constexpr int W = 16, panel_vectors = 2, max_rows = 14;
  struct f {
    float v[W];
  };
  struct i {
    std::int32_t v[W];
  };
  template <class Op>
  static f each(Op op) {
    f r;
    for (int j = 0; j < W; ++j) r.v[j] = op(j);
    return r;
  }
  static f set(float x) {
    return each([&](int) { return x; });
  }
  static f load(const float* p) {
    return each([&](int j) { return p[j]; });
  }
  static f add(f a, f b) {
    return each([&](int j) { return a.v[j] + b.v[j]; });
  }
  static float sum(f a) {
    float all = 0;
    for (const float x : a.v) all += x;
    CHECK(std::fabs(all) < 1e6f);  // after a million rounds; a NaN is none
    return all;
  }
  static f fma(f a, f b, f c) {
    return each([&](int j) {
      watch(a.v[j], b.v[j]);
      return std::fma(a.v[j], b.v[j], c.v[j]);
    });
  }
  static i zero_words() { return {}; }
  static i load_words(const void* p) {
    i r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static i spread(const void* p) {
    i r;
    for (std::int32_t& word : r.v) word = sorl::four_bytes(p);
    return r;
  }
  static i dot(i sum, i x, i w) {
    for (int j = 0; j < 4 * W; ++j) {
      const int value = reinterpret_cast<const unsigned char*>(x.v)[j];
      const int weight = reinterpret_cast<const signed char*>(w.v)[j];
      ++dots;
      zeros += value == 0 || weight == 0;
      sum.v[j / 4] += value * weight;
    }
    for (const std::int32_t s : sum.v) widest = std::max(widest, std::abs(static_cast<std::int64_t>(s)));
    return sum;
  }
  static f to_float(i a) {
    return each([&](int j) { return static_cast<float>(a.v[j]); });
  }
};

// The loops of an instruction set, as the benchmarks call them.
void limits(const sorl::bench::Loops& loops) {
  if (loops.enter != nullptr) loops.enter();
  CHECK(loops.burn(40) > 0);
  if (loops.leave != nullptr) loops.leave();
  alignas(64) float ones[640];
  std::fill(std::begin(ones), std::end(ones), 1.0f);
  for (const bool backwards : {false, true}) {
    CHECK(std::fabs(loops.read(ones, sizeof ones, backwards) - 640.0f) < 1e-3f);
    CHECK(std::fabs(loops.read(ones + 64, 256, backwards) - 64.0f) < 1e-3f);
  }
}

}  // namespace

int main() {
  for (const sorl::Precision p : sorl::kPrecisions)
    for (const sorl::Isa isa : sorl::available_isas(p)) limits(sorl::bench::find_loops(isa, p));
  const double flop = sorl::bench::burn<Watched>(20000);
  CHECK(flop == 2.0 * static_cast<double>(floats) && floats > 0);
  CHECK(odd == 0);
  CHECK(alike < floats / 100);
  const double bytes = sorl::bench::int8_burn<Watched>(2000);
  CHECK(bytes == 2.0 * static_cast<double>(dots) && dots > 0);
  CHECK(zeros < dots / 5);  // activations near GELU's least value, which a policy has too
  CHECK(widest < 1 << 20);  // however many rounds
  std::printf("burn: %.3g multiply-adds, sums of bytes up to %ld: all passed\n", flop / 2, static_cast<long>(widest));
}
