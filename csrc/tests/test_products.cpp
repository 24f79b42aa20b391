// The products of every instruction set and precision against float64: counts of rows and columns that fill no
// tile, columns of a part of the panels, rows that are not finite, and int8 in the format of its instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../kernels.hpp"
#include "check.hpp"

namespace {

using sorl::Dense;
using sorl::Kernels;
using sorl::kInt8Group;
using sorl::kLine;
using sorl::Output;
using sorl::RowAffine;

const std::vector<int> kRows = {1, 2, 16, 17, 33, 64, 65, 70};
constexpr int kMostRows = 70;

std::size_t size(int n) { return static_cast<std::size_t>(n); }
double wide(float x) { return static_cast<double>(x); }

// The next of a sequence, in [0, 1).
double draw() {
  static std::uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53;
}
int draw(int below) { return static_cast<int>(draw() * below); }

double gelu(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

// Memory as Pages gives it: whole lines.
class Lines {
 public:
  explicit Lines(std::size_t n) : all_(n + kLine) {}
  Lines(const Lines&) = delete;
  char* get() {
    const auto at = reinterpret_cast<std::uintptr_t>(all_.data());
    return reinterpret_cast<char*>((at + kLine - 1) / kLine * kLine);
  }

 private:
  std::vector<char> all_;
};

// Rows of bf16 (values that it has) or of floats, and those that tiles read beyond.
class Rows {
 public:
  const std::size_t stride;

  Rows(int width, bool bf16, int most = kMostRows)
      : stride(((size(width) * (bf16 ? 2 : 4) / kLine + 1) | 1) * kLine), bf16_(bf16), most_(most), bytes_(all()) {
    std::memset(bytes_.get(), 0x55, all());
  }
  char* row(int r) { return bytes_.get() + stride * size(r); }
  void put(int r, int i, float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    const auto half = static_cast<std::uint16_t>(u >> 16);
    if (bf16_)
      std::memcpy(row(r) + i * 2, &half, sizeof half);
    else
      std::memcpy(row(r) + i * 4, &x, sizeof x);
  }
  float at(int r, int i) {
    std::uint16_t half;
    float x;
    std::memcpy(&half, row(r) + i * 2, sizeof half);
    std::memcpy(&x, row(r) + i * 4, sizeof x);
    const std::uint32_t u = static_cast<std::uint32_t>(half) << 16;
    if (bf16_) std::memcpy(&x, &u, sizeof x);
    return x;
  }
  bool same(Rows& other, int r, int begin, int end) {
    const std::size_t each = bf16_ ? 2 : 4;
    return std::memcmp(row(r) + size(begin) * each, other.row(r) + size(begin) * each, size(end - begin) * each) == 0;
  }
  // Whether columns [begin, end) of the first rows, and nothing else, were written.
  bool only(int rows, int begin, int end) {
    const std::size_t from = size(begin) * (bf16_ ? 2 : 4), to = size(end) * (bf16_ ? 2 : 4);
    for (std::size_t i = 0; i < all(); ++i) {
      const std::size_t column = i % stride;
      if ((i / stride >= size(rows) || column < from || column >= to) && bytes_.get()[i] != 0x55) return false;
    }
    return true;
  }

 private:
  std::size_t all() const { return stride * size(most_ + 32); }
  bool bf16_;
  int most_;
  Lines bytes_;
};

void check_near(const Kernels& k, const char* what, double got, double expected, double bound, int r, int column) {
  if (std::fabs(got - expected) <= bound) return;
  std::fprintf(stderr, "%s/%s, %s: row %d, column %d: %.9g, not %.9g +- %.2g\n", sorl::name(k.isa), sorl::name(k.precision),
               what, r, column, got, expected, bound);
  std::exit(1);
}

// A call with its machine state; `product` writes rows to the y that it is given.
template <class Product>
void call(const Kernels& k, Dense d, int rows, Rows& y, Product product) {
  d.rows = rows;
  d.y = y.row(0);
  d.y_stride = y.stride;
  if (k.enter != nullptr) k.enter();
  product(d);
  if (k.leave != nullptr) k.leave();
}

// What holds whatever a product's numbers are, for each count of rows; check(y, r, column) compares a result.
template <class Product, class Check>
void rows_stand_alone(const Kernels& k, const Dense& d, Rows& x, int width, int begin, int end, bool halves, Product product,
                      Check check) {
  Rows whole(end, halves);
  call(k, d, kMostRows, whole, product);
  for (int r = 0; r < kMostRows; ++r)
    for (int column = begin; column < end; ++column) check(whole.at(r, column), r, column);
  for (const int rows : kRows) {
    Rows y(end, halves);
    call(k, d, rows, y, product);
    CHECK(y.only(rows, begin, end));
    for (int r = 0; r < rows; ++r) CHECK(y.same(whole, r, begin, end));
    const int bad = rows - 1;
    const float good = x.at(bad, width - 1);
    for (const float wrong : {NAN, -INFINITY}) {  // seen in its own row, and nowhere else
      x.put(bad, width - 1, wrong);
      Rows other(end, halves);
      call(k, d, rows, other, product);
      int seen = 0;
      for (int column = begin; column < end; ++column) seen += !std::isfinite(other.at(bad, column));
      CHECK(seen > 0 && (!std::isnan(wrong) || seen == end - begin));
      for (int r = 0; r < bad; ++r) CHECK(other.same(y, r, begin, end));
    }
    x.put(bad, width - 1, good);
  }
}

// `in` inputs, padded, and whole panels: weights, activations and starts that bf16 has.
void products_are_close(const Kernels& k, int in, int panels) {
  const bool bf16 = k.bf16_activations, widened = k.precision != sorl::Precision::fp32 && !bf16;
  const int depth = sorl::round_up(in, k.k_align), n = panels * k.panel, panel_begin = panels > 2 ? 1 : 0;
  std::vector<float> w(size(in * n)), bias(size(n)), init(size(kMostRows * n));
  std::vector<const float*> inits;
  for (float& each : w) each = static_cast<float>(draw(65) - 32) / 64;
  for (float& each : bias) each = static_cast<float>(draw() - 0.5);
  for (float& each : init) each = static_cast<float>(draw() - 0.5);
  for (int r = 0; r < kMostRows; ++r) inits.push_back(init.data() + size(r * n));
  Rows x(depth, bf16);
  for (int r = 0; r < kMostRows; ++r)
    for (int i = 0; i < depth; ++i) x.put(r, i, i < in ? static_cast<float>(draw(129) - 64) / 32 : 0);
  Lines packed(k.packed_bytes(depth, n));
  k.pack(w.data(), in, n, depth, n, false, packed.get());
  std::vector<double> sums(size(kMostRows * n)), terms(sums.size());
  for (int r = 0; r < kMostRows; ++r)
    for (int column = 0; column < n; ++column)
      for (int i = 0; i < in; ++i) {
        const double term = wide(x.at(r, i)) * wide(w[size(i * n + column)]);
        sums[size(r * n + column)] += term;
        terms[size(r * n + column)] += std::fabs(term);
      }
  for (const Output output : {Output::linear, Output::gelu, Output::gelu_float})
    for (const bool from_init : {false, true}) {
      const bool halves = bf16 && output == Output::gelu;
      Dense d{};
      d.x = x.row(0);
      d.x_stride = x.stride;
      d.k = depth;
      d.w = packed.get();
      d.panel_begin = panel_begin;
      d.panel_end = panels;
      d.bias = bias.data();
      d.init = from_init ? inits.data() : nullptr;
      d.output = output;
      rows_stand_alone(k, d, x, in, panel_begin * k.panel, n, halves, k.dense, [&](float got, int r, int column) {
        const std::size_t at = size(r * n + column);
        const double sum = sums[at] + wide(bias[size(column)]) + (from_init ? wide(init[at]) : 0);
        const double expected = output == Output::linear ? sum : gelu(sum);
        double bound = (1 + terms[at]) * (widened ? 1.0 / 256 : 1e-6);
        if (output != Output::linear && bf16) bound += 2e-5 + std::fabs(expected) * (1e-4 + (halves ? 1.0 / 256 : 0));
        check_near(k, "product", wide(got), expected, bound, r, column);
      });
    }
}

// GELU by way of the bias of a product with zero: everywhere, at what is not finite too.
void gelu_is_close(const Kernels& k) {
  const int n = 2048 * k.panel;
  std::vector<float> w(size(n)), bias(size(n));
  for (int i = 0; i < n; ++i) {
    const double u = 2.0 * i / (n - 1) - 1;  // dense at 0, to +-100
    bias[size(i)] = static_cast<float>(std::copysign(std::pow(std::fabs(u), 3), u) * 100);
  }
  const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, 1e10f, -1e10f, 1e-30f, 0.0f};
  std::copy(std::begin(odd), std::end(odd), bias.begin());
  Lines packed(k.packed_bytes(k.k_align, n));
  k.pack(w.data(), 1, n, k.k_align, n, false, packed.get());
  Rows x(k.k_align, k.bf16_activations);
  for (int i = 0; i < k.k_align; ++i) x.put(0, i, 0);
  Dense d{};
  d.x = x.row(0);
  d.x_stride = x.stride;
  d.k = k.k_align;
  d.w = packed.get();
  d.panel_end = n / k.panel;
  d.bias = bias.data();
  d.output = Output::gelu_float;
  std::vector<float> y(size(n));
  d.rows = 1;
  d.y = y.data();
  d.y_stride = y.size() * sizeof(float);
  if (k.enter != nullptr) k.enter();
  k.dense(d);
  if (k.leave != nullptr) k.leave();
  CHECK(std::isnan(y[0]) && y[1] == INFINITY && y[2] == -INFINITY);
  const double relative = k.bf16_activations ? 1e-4 : 1e-6;
  for (int i = 3; i < n; ++i) {
    const double at = wide(bias[size(i)]), expected = gelu(at);
    check_near(k, "GELU", wide(y[size(i)]), expected, 1e-6 + (at > 0 ? relative * expected : relative), 0, i);
  }
}

// int8 of inputs that lie a third of a step from where they round to, so that none rounds the other way: a step a
// group, or a row where the product quantises.
void bytes_are_as_defined(const Kernels& k, int in, int groups) {
  const bool bytes = k.int8->quantise != nullptr;
  const int n = groups * kInt8Group, unit = bytes ? kInt8Group : n;
  std::vector<float> w(size(in * n)), gain(size(in)), bias(size(n));
  std::vector<double> rounded(w.size());
  for (float& each : gain) each = draw(2) == 0 ? 0.5f : 2.0f;
  for (int column = 0; column < n; ++column) {
    const double step = 0x1p-12 * (1 + draw(3));
    bias[size(column)] = static_cast<float>(draw() - 0.5);
    for (int i = 0; i < in; ++i) {
      const int q = i == column % in ? 127 : draw(255) - 127;
      const double off = std::abs(q) == 127 ? 0 : (draw() - 0.5) * 2 / 3;
      rounded[size(i * n + column)] = q * step;
      w[size(i * n + column)] = static_cast<float>((q + off) * step / wide(gain[size(i)]));
    }
  }
  Lines packed(k.int8->packed_bytes(n, n));
  k.int8->pack(w.data(), gain.data(), in, n, n, n, packed.get());
  for (const bool critic : {false, true}) {
    std::vector<RowAffine> affine(size(kMostRows + 1), RowAffine{1, 0, -0.17005f});
    std::vector<double> values(size(kMostRows * n));
    Rows x(n, false), quantised(n, false);
    for (int r = 0; r < kMostRows; ++r) {
      RowAffine& own = affine[size(r)];
      if (critic) own = {static_cast<float>(0.5 + draw()), static_cast<float>(draw() - 0.5), static_cast<float>(draw() - 2)};
      double step = 0;
      for (int i = 0; i < n; ++i) {
        if (i % unit == 0) step = (0.5 + draw()) / 64;
        const int q = i % unit == 3 ? 255 : draw(256);
        const double off = q == 255 ? 0 : (draw() - 0.5) * 2 / 3;
        values[size(r * n + i)] = i < in ? (wide(own.floor) + q * step + wide(own.shift)) * wide(own.scale) : 0;
        x.put(r, i, static_cast<float>(wide(own.floor) + (q + off) * step));
      }
    }
    Dense d{};
    d.x = bytes ? quantised.row(0) : x.row(0);
    d.x_stride = bytes ? quantised.stride : x.stride;
    d.k = n;
    d.w = packed.get();
    d.panel_begin = groups > 2 ? 1 : 0;
    d.panel_end = groups;
    d.bias = bias.data();
    const RowAffine* const of = critic ? affine.data() : nullptr;
    Lines spare(size((kMostRows + 32) * n) * sizeof(float));
    const auto product = [&](const Dense& each) {
      const auto* floats = reinterpret_cast<const float*>(x.row(0));
      if (bytes) k.int8->quantise(floats, x.stride, of, each.rows, n, 0, n, quantised.row(0), quantised.stride);
      k.int8->dense(each, of, reinterpret_cast<float*>(spare.get()));
    };
    for (const Output output : {Output::gelu, Output::gelu_float}) {
      if (critic && output == Output::gelu) continue;
      const bool halves = k.bf16_activations && output == Output::gelu;
      d.output = output;
      rows_stand_alone(k, d, x, in, d.panel_begin * kInt8Group, n, halves, product, [&](float got, int r, int column) {
        double sum = wide(bias[size(column)]), terms = 1;
        for (int i = 0; i < in; ++i) {
          const double term = values[size(r * n + i)] * rounded[size(i * n + column)];
          sum += term;
          terms += std::fabs(term);
        }
        const double expected = gelu(sum);
        const double bound = terms * 1e-6 + 2e-5 + std::fabs(expected) * (1e-4 + (halves ? 1.0 / 256 : 0));
        check_near(k, "bytes", wide(got), expected, bound, r, column);
      });
    }
  }
}

}  // namespace

// test_products [ISA]
int main(int count, char** arguments) {
  std::string ran;
  for (const sorl::Precision p : sorl::kPrecisions)
    for (const sorl::Isa isa : sorl::available_isas(p)) {
      if (count > 1 && std::strcmp(arguments[1], sorl::name(isa)) != 0) continue;
      const Kernels& k = *sorl::find_kernels(isa, p);
      gelu_is_close(k);
      products_are_close(k, 1, 1);
      products_are_close(k, 32, 3);
      products_are_close(k, 33, 5);
      products_are_close(k, 70, 2);
      products_are_close(k, 520, 1);
      if (k.int8 != nullptr)
        for (const int groups : {1, 2, 3, 5}) bytes_are_as_defined(k, groups * kInt8Group - groups % 2, groups);
      ran += std::string(" ") + sorl::name(isa) + "/" + sorl::name(p);
    }
  CHECK(!ran.empty());
  std::printf("products:%s: all passed\n", ran.c_str());
}
