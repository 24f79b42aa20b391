// Products of 8-bit integers on AMX tiles: tdpbusd multiplies a tile of 16 rows x 64 unsigned bytes by one of 16
// fours x 16 columns of signed ones into 16 x 16 sums.
//
// The format is that of int8.hpp but for one step a row instead of one a group: a step a group would take the
// sums out of the tiles after every half of a product. A row's step needs all of the row, of which a thread may
// own a few columns only. So hidden layers are floats in memory, and a product quantises what it reads.
// What is between the last hidden layer and the head is bf16, as in all products of bf16 on tiles, but where the head
// is products of rows by vectors.
//
// Weights [K][N], K padded to whole tiles, lie in panels of 32 columns: tiles one after another as WeightsTiles
// has them, then the columns' s, then their sums.
//
// Included by kernels/amx.cpp only.
#pragma once

#include "amx_bf16.hpp"
#include "int8.hpp"

namespace sorl {
namespace {

constexpr int kByteTileK = 64;  // inputs of one product
static_assert(kInt8Group == kBlockColumns, "a panel of weights is a block's columns");

inline std::size_t tiles_int8_packed_bytes(int k, int n) { return int8_packed_bytes(round_up(k, kByteTileK), n); }

inline void tiles_int8_pack(const float* w, const float* gain, int in, int out, int k, int n, void* packed) {
  int8_pack_placed(w, gain, in, out, round_up(k, kByteTileK), n, packed, [](int i, int j) {
    const int tile = i / kByteTileK * 2 + j / 16;
    return tile * static_cast<int>(kTileBytes) + i % kByteTileK / 4 * kTileRowBytes + j % 16 * 4 + i % 4;
  });
}

// A row of floats, `width` of them, a multiple of 32, to bytes; returns its step, a NaN if any value is not finite.
inline float quantise_row(const float* x, float floor, int width, unsigned char* bytes) {
  using V = Avx512;
  __m512 top[2] = {V::load(x), V::load(x)}, wrong[2] = {V::zero(), V::zero()};
  for (int i = 0; i < width; i += 32)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 v = V::load(x + i + half * 16);
      top[half] = V::max(top[half], v);
      wrong[half] = V::fma(v, V::zero(), wrong[half]);
    }
  float range = V::highest(V::max(top[0], top[1])) - floor;
  range = range > kLeastRange ? range : kLeastRange;
  const __m512 per = V::set(255.0f / range), base = V::set(floor);
  for (int i = 0; i < width; i += 16) V::to_bytes(bytes + i, V::mul(V::sub(V::load(x + i), base), per));
  return range * (1.0f / 255) + V::sum(V::add(wrong[0], wrong[1]));
}

using ByteSums = std::int32_t[kBlockRows][kBlockColumns];

// Up to 32 rows of a product, as bytes: x = times q + plus, of which a row's LayerNorm is a part.
struct ByteRows {
  float times[kBlockRows], plus[kBlockRows];

  void quantise(const Dense& d, const RowAffine* affine, int row, int rows, char* bytes, std::size_t stride) {
    for (int r = 0; r < rows; ++r) {
      const RowAffine own = affine == nullptr ? RowAffine{1.0f, 0.0f, kFloor} : affine[row + r];
      const float* x = offset(static_cast<const float*>(d.x), (row + r) * d.x_stride);
      const float step = quantise_row(x, own.floor, d.k, reinterpret_cast<unsigned char*>(bytes + r * stride));
      times[r] = step * own.scale;
      plus[r] = (own.shift + own.floor) * own.scale;
    }
    __asm__ volatile("" ::: "memory");  // the compiler doesn't see that tiles are read from memory
  }
};

// A panel's steps lie behind its tiles, and its columns' sums behind those.
inline const float* steps_of(const char* panel, int k) {
  return reinterpret_cast<const float*>(panel + static_cast<std::size_t>(k) * kBlockColumns);
}

// GELU of 16 columns' sums of row r: `bias` and `steps` point at the first of them.
inline __m512 gelu_of_bytes(__m512i sums, const ByteRows& x, int r, const float* bias, const float* steps) {
  using V = Avx512;
  const __m512 zero = V::fma(V::set(x.plus[r]), V::load(steps + kBlockColumns), V::load(bias));
  return gelu_of_tiles(V::fma(V::mul(V::to_float(sums), V::set(x.times[r])), V::load(steps), zero));
}

// As Epilogue of amx_bf16.hpp.
template <Output output>
class ByteEpilogue {
  using V = Avx512;

 public:
  void begin(const Dense& d, const ByteRows& x, const ByteSums& sums, int row, int panel, int rows) {
    x_ = &x;
    sums_ = &sums;
    column_ = panel * kBlockColumns;
    bias_ = d.bias + column_;
    const int k = round_up(d.k, kByteTileK);
    const char* w = static_cast<const char*>(d.w) + panel * int8_panel_bytes(k);
    steps_ = steps_of(w, k);
    y_stride_ = d.y_stride;
    y_ = static_cast<char*>(d.y) + row * y_stride_;
    rows_ = rows;
    done_ = 0;
  }
  void some(int n) {
    for (const int end = std::min(done_ + n, rows_); done_ < end; ++done_)
      store_columns<output>(y_ + done_ * y_stride_, column_, {half(0), half(16)});
  }
  void rest() { some(rows_ - done_); }

 private:
  __m512 half(int from) const {
    return gelu_of_bytes(V::load_words((*sums_)[done_] + from), *x_, done_, bias_ + from, steps_ + from);
  }

  const ByteRows* x_ = nullptr;
  const ByteSums* sums_ = nullptr;
  const float *bias_ = nullptr, *steps_ = nullptr;  // steps: of the columns, then their sums
  char* y_ = nullptr;
  std::size_t y_stride_ = 0;
  int column_ = 0, rows_ = 0, done_ = 0;
};

// 32 rows by one panel after another: the rows stay in the first-level cache, the weights pass through.
template <Output output>
__attribute__((noinline)) void int8_rows(const Dense& d, const RowAffine* affine, char* bytes) {
  configure_tiles(std::min(d.rows, kTileRows));
  alignas(64) ByteSums sums[2];
  ByteRows x;
  ByteEpilogue<output> before;
  int turn = 0;
  const int k = round_up(d.k, kByteTileK), slices = k / kByteTileK;
  const std::size_t panel_bytes = int8_panel_bytes(k);
  // An odd number of lines, so that rows of a tile fall into different cache sets; 32 of them fit `spare`.
  const auto stride = static_cast<long>((k / kByteTileK | 1) * kLine);
  for (int row = 0; row < d.rows; row += kBlockRows) {
    const int rows = std::min(d.rows - row, kBlockRows), share = (rows + slices - 1) / slices;
    const bool second = rows > kTileRows;
    x.quantise(d, affine, row, rows, bytes, stride);
    for (int panel = d.panel_begin; panel < d.panel_end; ++panel) {
      const char* w = static_cast<const char*>(d.w) + panel * panel_bytes;
      const char* at = bytes;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int slice = 0; slice < slices; ++slice) {
        _tile_loadd(4, at, stride);
        _tile_stream_loadd(6, w, kTileRowBytes);
        _tile_dpbusd(0, 4, 6);
        before.some(share / 2);
        _tile_stream_loadd(7, w + kTileBytes, kTileRowBytes);
        _tile_dpbusd(1, 4, 7);
        if (second) {
          _tile_loadd(5, at + kTileRows * stride, stride);
          _tile_dpbusd(2, 5, 6);
        }
        before.some(share - share / 2);
        if (second) _tile_dpbusd(3, 5, 7);
        at += kByteTileK;
        w += 2 * kTileBytes;
      }
      before.rest();
      ByteSums& to = sums[turn ^= 1];
      _tile_stored(0, to[0], kSumsBytes);
      _tile_stored(1, to[0] + 16, kSumsBytes);
      if (second) {
        _tile_stored(2, to[16], kSumsBytes);
        _tile_stored(3, to[16] + 16, kSumsBytes);
      }
      before.begin(d, x, to, row, panel, rows);
    }
    before.rest();  // y may be x, and the next rows are made into bytes where these were
  }
}

// Rows so few that tiles of them would be nearly empty.
constexpr int kVectorRows = 2;

// R rows by P panels in registers: a line of a tile of weights is what vpdpbusd multiplies by four bytes of a row. The
// sums of integers are the same in any order, so a row's bits are those that it has among many.
template <Output output, int R, int P>
inline void int8_panels(const Dense& d, const ByteRows& x, const char* bytes, std::size_t stride, int panel) {
  using V = Avx512;
  const int k = round_up(d.k, kByteTileK);
  const std::size_t panel_bytes = int8_panel_bytes(k);
  const char* const w = static_cast<const char*>(d.w) + panel * panel_bytes;
  __m512i sums[R][2 * P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * P; ++v) sums[r][v] = _mm512_setzero_si512();
  const char* at = w;
  for (int slice = 0; slice < k / kByteTileK; ++slice, at += 2 * kTileBytes, bytes += kByteTileK)
#pragma GCC unroll 4
    for (int line = 0; line < kTileRows; ++line) {
      __m512i values[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        std::int32_t four;
        std::memcpy(&four, bytes + r * stride + line * 4, sizeof four);
        values[r] = _mm512_set1_epi32(four);
      }
#pragma GCC unroll 8
      for (int v = 0; v < 2 * P; ++v) {
        const __m512i weights = V::load_words(at + v / 2 * panel_bytes + v % 2 * kTileBytes + line * kLine);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], values[r], weights);
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const int column = (panel + p) * kBlockColumns;
      const float *bias = d.bias + column, *steps = steps_of(w + p * panel_bytes, k);
      store_columns<output>(static_cast<char*>(d.y) + r * d.y_stride, column,
                            {gelu_of_bytes(sums[r][2 * p], x, r, bias, steps),
                             gelu_of_bytes(sums[r][2 * p + 1], x, r, bias + 16, steps + 16)});
    }
}

template <Output output, int R>
__attribute__((noinline)) void int8_few_rows(const Dense& d, const RowAffine* affine, char* bytes) {
  if constexpr (R > 0) {
    if (d.rows != R) return int8_few_rows<output, R - 1>(d, affine, bytes);
    const std::size_t stride = round_up(d.k, kByteTileK);
    ByteRows x;
    x.quantise(d, affine, 0, R, bytes, stride);
    constexpr int together = R == 1 ? 4 : 2;  // a sum waits for the one before it: eight chains or more
    int panel = d.panel_begin;
    for (; panel + together <= d.panel_end; panel += together)
      int8_panels<output, R, together>(d, x, bytes, stride, panel);
    for (; panel < d.panel_end; ++panel) int8_panels<output, R, 1>(d, x, bytes, stride, panel);
  } else {
    (void)d, (void)affine, (void)bytes;
  }
}

template <Output output>
inline void int8_any_rows(const Dense& d, const RowAffine* affine, char* bytes) {
  if (d.rows <= kVectorRows)
    int8_few_rows<output, kVectorRows>(d, affine, bytes);
  else
    int8_rows<output>(d, affine, bytes);
}

inline void tiles_int8_dense(const Dense& d, const RowAffine* affine, float* spare) noexcept {
  if (d.rows == 0 || d.panel_begin == d.panel_end) return;
  if (d.output == Output::gelu)
    int8_any_rows<Output::gelu>(d, affine, reinterpret_cast<char*>(spare));
  else
    int8_any_rows<Output::gelu_float>(d, affine, reinterpret_cast<char*>(spare));
}

}  // namespace
}  // namespace sorl
