// Products of 8-bit integers, for the hidden layers: four times as many multiply-adds as in float32 where
// a processor has them (VNNI), over a quarter of the bytes everywhere. First and last layers are as in bf16.
//
// A weight is q s with q in [-127, 127] and one s a column. What a hidden layer reads is the output of GELU: a
// value is floor + q s with q in [0, 255] and one s for each kInt8Group values of a row. The actor's floor is
// GELU's. So a thread can quantise the columns that it owns without asking for the others', and one large
// value costs only its neighbours precision.
//
// A critic's LayerNorm lies between GELU and the product. It commutes with it: with weights g w, summed over
// the inputs to S, ((x - mean) r g + c) w = r (x (g w) - mean S) + c w, so that both networks' products read
// GELU's output, and a row's mean and r come in at the end. Before LayerNorm a layer may have any scale, so a
// critic's row has its own least value for a floor: each thread has whole rows of it.
//
// A row of activations: one byte a value, then one float for each group.
// Weights [K][N] lie in panels of kInt8Group columns: [K/4][kInt8Group][4], then the columns' s, then their sums.
//
// V, beside what dense.hpp asks for: type i (W words); dot (to each word the products of its four unsigned
// by its four signed bytes), zero_words, spread (four bytes to all words), to_float, to_bytes (rounded, of
// values in [0, 255]), max, highest (of a vector), tile_rows (at most), tile_vectors(rows).
//
// Included by kernels/*.cpp only, like dense.hpp.
#pragma once

#include "dense.hpp"

namespace sorl {
namespace {

constexpr float kFloor = -0.17005f;    // GELU's least value is -0.170041
constexpr float kLeastRange = 1e-30f;  // of a group whose values are all the floor: 255 over it is finite

constexpr std::size_t int8_panel_bytes(int k) {
  return static_cast<std::size_t>(k) * kInt8Group + 2 * kInt8Group * sizeof(float);
}

inline std::size_t int8_packed_bytes(int k, int n) { return int8_panel_bytes(k) * (n / kInt8Group); }

// gain [in] (or null: ones) times w [in][out] -> panels over padded k x n. place(i, j): where in a panel the
// weight of input i and the panel's column j lies.
template <class Place>
inline void int8_pack_placed(const float* w, const float* gain, int in, int out, int k, int n, void* packed,
                             Place place) {
  for (int column = 0; column < n; ++column) {
    auto* panel = static_cast<char*>(packed) + int8_panel_bytes(k) * (column / kInt8Group);
    const auto at = [&](int i) {
      if (i >= in || column >= out) return 0.0f;
      return w[static_cast<std::size_t>(i) * out + column] * (gain == nullptr ? 1.0f : gain[i]);
    };
    float most = 0;
    for (int i = 0; i < in; ++i) most = std::fmax(most, std::fabs(at(i)));
    const double step = static_cast<double>(most) / 127;
    std::int64_t sum = 0;
    for (int i = 0; i < k; ++i) {
      // A product with a gain may overflow; then the step is infinite, and every result not finite.
      const double steps = static_cast<double>(at(i)) / step;
      const auto q = static_cast<std::int8_t>(std::fabs(steps) < 128 ? std::nearbyint(steps) : 0);
      sum += q;
      panel[place(i, column % kInt8Group)] = static_cast<char>(q);
    }
    auto* tail = reinterpret_cast<float*>(panel + static_cast<std::size_t>(k) * kInt8Group) + column % kInt8Group;
    tail[0] = static_cast<float>(step);
    tail[kInt8Group] = static_cast<float>(step * static_cast<double>(sum));
  }
}

inline void int8_pack(const float* w, const float* gain, int in, int out, int k, int n, void* packed) {
  int8_pack_placed(w, gain, in, out, k, n, packed,
                   [](int i, int j) { return i / 4 * (4 * kInt8Group) + j * 4 + i % 4; });
}

// One group of kInt8Group floats to `bytes` and its step. A value that is not finite makes the step a NaN, and
// so all that is computed from it.
template <class V>
inline void quantise_group(const float* x, float floor, unsigned char* bytes, float* step) {
  constexpr int n = kInt8Group / V::W;
  typename V::f v[n];
  typename V::f top = V::load(x), wrong = V::zero();
#pragma GCC unroll 64
  for (int i = 0; i < n; ++i) {
    v[i] = V::load(x + i * V::W);
    top = V::max(top, v[i]);
    wrong = V::fma(v[i], V::zero(), wrong);
  }
  float range = V::highest(top) - floor;
  range = range > kLeastRange ? range : kLeastRange;
  *step = range * (1.0f / 255) + V::sum(wrong);
  const auto per = V::set(255.0f / range), base = V::set(floor);
#pragma GCC unroll 64
  for (int i = 0; i < n; ++i) V::to_bytes(bytes + i * V::W, V::mul(V::sub(v[i], base), per));
}

template <class V>
inline void int8_quantise(const float* x, std::size_t x_stride, const RowAffine* affine, int rows, int width, int begin,
                          int end, void* y, std::size_t y_stride) noexcept {
  for (int r = 0; r < rows; ++r) {
    const float* from = offset(x, r * x_stride);
    auto* to = static_cast<unsigned char*>(y) + r * y_stride;
    auto* steps = reinterpret_cast<float*>(to + width);
    const float floor = affine == nullptr ? kFloor : affine[r].floor;
    for (int c = begin; c < end; c += kInt8Group) quantise_group<V>(from + c, floor, to + c, steps + c / kInt8Group);
  }
}

// Of `width` values.
template <class V>
inline float lowest(const float* x, int width) {
  float least = x[0];
  int i = 0;
  if (width >= V::W) {
    typename V::f most = V::sub(V::zero(), V::load(x));
    for (; i + V::W <= width; i += V::W) most = V::max(most, V::sub(V::zero(), V::load(x + i)));
    least = -V::highest(most);
  }
  for (; i < width; ++i) least = x[i] < least ? x[i] : least;
  return least;
}

template <class V>
inline void int8_affine(const float* x, std::size_t x_stride, int rows, int width, int padded, RowAffine* to) noexcept {
  for (int r = 0; r < rows; ++r) {
    const float* row = offset(x, r * x_stride);
    const Moments m = moments<V>(row, width, padded);
    to[r] = {m.inverse, -m.mean, lowest<V>(row, width)};
  }
}

template <class V>
struct Int8Layer {
  using f = typename V::f;
  static constexpr int W = V::W, kVectors = kInt8Group / W;  // of a panel

  // R rows by NV vectors of columns, as floats. Each output is one chain over the groups in the order of k,
  // and a group's sum of integers is exact, so no split of rows or columns changes a bit.
  template <int R, int NV>
  __attribute__((noinline)) static void tile(const Dense& d, const RowAffine* affine, int row, int column, float* y,
                                             std::size_t y_stride) {
    f sums[R][NV];
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 64
      for (int v = 0; v < NV; ++v) sums[r][v] = V::zero();
    const std::size_t stride = d.x_stride, panel_bytes = int8_panel_bytes(d.k);
    const char* x[(R + 4) / 5];
#pragma GCC unroll 64
    for (int b = 0; b < (R + 4) / 5; ++b) x[b] = static_cast<const char*>(d.x) + (row + 5 * b) * stride;
    const char* panel = static_cast<const char*>(d.w) + column / kInt8Group * panel_bytes;
    const char* w = panel + column % kInt8Group * 4;
    const auto next = [&](int v) { return (v / kVectors) * panel_bytes + (v % kVectors) * W * 4; };
    const char* steps = static_cast<const char*>(d.x) + row * stride + d.k;
    for (int k = 0; k < d.k; k += kInt8Group, steps += sizeof(float)) {
      typename V::i acc[R][NV];
#pragma GCC unroll 64
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 64
        for (int v = 0; v < NV; ++v) acc[r][v] = V::zero_words();
#pragma GCC unroll 8
      for (int i = 0; i < kInt8Group; i += 4) {
        typename V::i weights[NV];
#pragma GCC unroll 64
        for (int v = 0; v < NV; ++v) {
          weights[v] = V::load_words(w + next(v));
          if (v * W * 4 % int(kLine) == 0) V::prefetch(w + next(v) + 16 * kLine);
        }
#pragma GCC unroll 64
        for (int r = 0; r < R; ++r) {
          const auto values = V::spread(x[r / 5] + (r % 5) * stride + i);
#pragma GCC unroll 64
          for (int v = 0; v < NV; ++v) acc[r][v] = V::dot(acc[r][v], values, weights[v]);
        }
        w += kInt8Group * 4;
      }
#pragma GCC unroll 64
      for (int b = 0; b < (R + 4) / 5; ++b) x[b] += kInt8Group;
#pragma GCC unroll 64
      for (int r = 0; r < R; ++r) {
        float step;
        std::memcpy(&step, steps + r * stride, sizeof step);
        const f s = V::set(step);
#pragma GCC unroll 64
        for (int v = 0; v < NV; ++v) sums[r][v] = V::fma(V::to_float(acc[r][v]), s, sums[r][v]);
      }
    }
    const auto* tail = reinterpret_cast<const float*>(panel + static_cast<std::size_t>(d.k) * kInt8Group) + column % kInt8Group;
#pragma GCC unroll 64
    for (int r = 0; r < R; ++r) {
      float* to = offset(y, (row + r) * y_stride) + column;
      const RowAffine own = affine == nullptr ? RowAffine{1.0f, 0.0f, kFloor} : affine[row + r];
      const f scale = V::set(own.scale), shift = V::set(own.shift + own.floor);
#pragma GCC unroll 64
      for (int v = 0; v < NV; ++v) {
        const float* at = offset(tail, (v / kVectors) * panel_bytes) + (v % kVectors) * W;
        const f sum = V::fma(sums[r][v], V::load(at), V::mul(shift, V::load(at + kInt8Group)));
        V::store(to + v * W, gelu<V>(V::fma(sum, scale, V::load(d.bias + column + v * W))));
      }
    }
  }

  template <int R>
  static void rows(const Dense& d, const RowAffine* affine, int here, int row, int column, int end, float* y,
                   std::size_t y_stride) {
    if constexpr (R > 0) {
      if (here != R) return rows<R - 1>(d, affine, here, row, column, end, y, y_stride);
      constexpr int many = V::tile_vectors(R), few = many < kVectors ? many : kVectors;
      for (; column + many * W <= end; column += many * W) tile<R, many>(d, affine, row, column, y, y_stride);
      for (; column < end; column += few * W) tile<R, few>(d, affine, row, column, y, y_stride);
    } else {
      (void)d, (void)affine, (void)here, (void)row, (void)column, (void)end, (void)y, (void)y_stride;
    }
  }

  static void run(const Dense& d, const RowAffine* affine, float* spare) noexcept {
    const int begin = d.panel_begin * kInt8Group, end = d.panel_end * kInt8Group;
    const bool floats = d.output != Output::gelu_next;
    float* y = floats ? static_cast<float*>(d.y) : spare;
    const std::size_t y_stride = floats ? d.y_stride : static_cast<std::size_t>(d.k) * sizeof(float);
    const int groups = (d.rows + V::tile_rows - 1) / V::tile_rows;
    // One panel at a time for all rows: it stays in the first-level cache.
    const int step = groups == 1 ? end - begin : kInt8Group;
    for (int column = begin; column < end; column += step)
      for (int g = 0; g < groups; ++g) {
        const int from = static_cast<int>(static_cast<std::int64_t>(d.rows) * g / groups);
        const int to = static_cast<int>(static_cast<std::int64_t>(d.rows) * (g + 1) / groups);
        rows<V::tile_rows>(d, affine, to - from, from, column, column + step < end ? column + step : end, y, y_stride);
      }
    if (!floats) int8_quantise<V>(y, y_stride, nullptr, d.rows, d.k, begin, end, d.y, d.y_stride);
  }
};

// `base`, the bf16 table of the same vectors, with the hidden layers in int8.
template <class V>
inline Kernels int8_table(Kernels base, Isa isa) {
  static_assert(kWidthAlign % kInt8Group == 0 && kInt8Group % (V::W * V::panel_vectors) == 0,
                "a thread's columns are whole groups, and a group is whole panels of the first layer");
  static const Int8 int8{int8_packed_bytes, int8_pack, int8_affine<V>, int8_quantise<V>, Int8Layer<V>::run};
  base.isa = isa;
  base.precision = Precision::int8;
  base.int8 = &int8;
  base.together_rows = base.together_rows_with_q = 7;  // the weights fit one core's cache: from 8 rows on, apart is faster
  return base;
}

}  // namespace
}  // namespace sorl
