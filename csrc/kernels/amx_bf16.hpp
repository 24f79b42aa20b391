// Products of bf16 on AMX tiles: tdpbf16ps multiplies a tile of 16 rows x 32 bf16 by one of 16 pairs x 16
// columns into 16 x 16 fp32 sums. A block is two by two tiles of sums: 32 rows by a panel of 32 columns.
//
// The tile unit and the vector unit work at once only if both have something to do, so the epilogue (bias, GELU,
// rounding) of a finished block runs in slices between the products of the next one.
//
// Tiles of weights lie in one piece, 1 KiB each. What passes through a block's loop once is read by
// tileloaddt1, which does not push out of the first-level cache what is read again.
//
// Included by kernels/amx.cpp only.
#pragma once

#include <algorithm>

#include "../tiles.hpp"
#include "bf16.hpp"

namespace sorl {
namespace {

constexpr int kTileK = 32;      // bf16 inputs of one product
constexpr int kBlockRows = 32;  // of a block; as many columns as a panel
constexpr int kBlockColumns = 32;
constexpr std::size_t kTileBytes = std::size_t{kTileRows} * kTileRowBytes;

using BlockSums = float[kBlockRows][kBlockColumns];
constexpr int kSumsBytes = sizeof(float) * kBlockColumns;  // of a row

// As gelu_for_bf16 of bf16.hpp, to 1.1e-5 in all: 2^f of a fraction f in [0, 1), which one instruction takes
// off, to 7.5e-5 of itself; scalef finds the whole part by itself. NaN and infinities come out as there.
// Instruction by instruction for all n: one's wait for the last is then filled by another's.
template <int n>
inline __attribute__((always_inline)) void gelu_of_tiles(__m512 (&x)[n]) {
  using V = Avx512;
  __m512 e[n], f[n], p[n];
#define SORL_EACH _Pragma("GCC unroll 4") for (int i = 0; i < n; ++i)
  SORL_EACH e[i] = V::mul(x[i], x[i]);
  SORL_EACH e[i] = V::fma(e[i], V::set(-0.10294324f), V::set(-2.3022082f));
  SORL_EACH e[i] = _mm512_min_ps(V::mul(x[i], e[i]), V::set(126.0f));
  SORL_EACH f[i] = _mm512_reduce_ps(e[i], _MM_FROUND_TO_NEG_INF);
  SORL_EACH p[i] = V::fma(V::set(0.078024491f), f[i], V::set(0.22606727f));
  SORL_EACH p[i] = V::fma(p[i], f[i], V::set(0.69583346f));
  SORL_EACH p[i] = V::fma(p[i], f[i], V::set(0.99992523f));
  SORL_EACH p[i] = V::add(V::scale(p[i], e[i]), V::set(1.0f));
  SORL_EACH x[i] = V::mul(x[i], _mm512_rcp14_ps(p[i]));
#undef SORL_EACH
}

inline __m512 gelu_of_tiles(__m512 x) {
  __m512 one[1] = {x};
  gelu_of_tiles(one);
  return one[0];
}

// A panel is its tiles one after another: for each 32 inputs the 16 left columns', then the 16 right ones'.
struct WeightsTiles {
  static constexpr int panel = kBlockColumns;

  static constexpr std::size_t packed_bytes(int k, int n) { return sizeof(std::uint16_t) * k * n; }

  static void pack(const float* w, int in, int out, int k, int n, bool input_split, void* packed) {
    const auto at = [&](int i, int j) -> std::uint32_t {
      if (input_split) i /= 2;
      return i < in && j < out ? to_bf16(w[static_cast<std::size_t>(i) * out + j]) : 0;
    };
    auto* to = static_cast<std::uint32_t*>(packed);
    for (int first = 0; first < n; first += panel)
      for (int slice = 0; slice < k; slice += kTileK)
        for (int left = first; left < first + panel; left += 16)
          for (int i = slice; i < slice + kTileK; i += 2)
            for (int j = left; j < left + 16; ++j) *to++ = at(i, j) | at(i + 1, j) << 16;
  }
};

// A row of activations (bf16) or of floats, from column `column` on.
template <Output output>
inline void store_columns(char* y, int column, const __m512 (&x)[2]) {
  if constexpr (output == Output::gelu) {
    _mm512_storeu_si512(y + column * 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x[1], x[0])));
  } else {
    Avx512::store(reinterpret_cast<float*>(y) + column, x[0]);
    Avx512::store(reinterpret_cast<float*>(y) + column + 16, x[1]);
  }
}

// What is still to be done to a block whose sums lie in memory, a row at a time. in_step: a row's two vectors go through
// GELU side by side, not one after the other; that is faster only where the vector unit has more to do than the caches.
template <Output output, bool has_init, bool in_step>
class Epilogue {
  using V = Avx512;

 public:
  explicit Epilogue(const Dense& d) : init_(d.init), y_stride_(d.y_stride) {}

  void begin(const Dense& d, const BlockSums& sums, int row, int panel, int rows) {
    sums_ = &sums;
    column_ = panel * kBlockColumns;
    bias_ = d.bias + column_;
    if constexpr (has_init) init_ = d.init + row;
    y_ = static_cast<char*>(d.y) + row * y_stride_;
    rows_ = rows;
    done_ = 0;
  }
  int left() const { return rows_ - done_; }
  void some(int n) {
    for (const int end = std::min(done_ + n, rows_); done_ < end; ++done_) one();
  }
  void next() {  // one, if any is left
    if (done_ == rows_) return;
    one();
    ++done_;
  }
  void rest() { some(left()); }

 private:
  void one() const {
    const float* sums = (*sums_)[done_];
    __m512 x[2] = {V::add(V::load(sums), V::load(bias_)), V::add(V::load(sums + 16), V::load(bias_ + 16))};
    if constexpr (has_init) {
      const float* init = init_[done_] + column_;
      x[0] = V::add(x[0], V::load(init));
      x[1] = V::add(x[1], V::load(init + 16));
    }
    if constexpr (output != Output::linear && in_step) {
      gelu_of_tiles(x);
    } else if constexpr (output != Output::linear) {
      x[0] = gelu_of_tiles(x[0]);
      x[1] = gelu_of_tiles(x[1]);
    }
    store_columns<output>(y_ + done_ * y_stride_, column_, x);
  }

  const BlockSums* sums_ = nullptr;
  const float* bias_ = nullptr;
  const float* const* init_;
  char* y_ = nullptr;
  std::size_t y_stride_;
  int column_ = 0, rows_ = 0, done_ = 0;
};

// GCC pastes a tile's number into the instruction: it must be a literal. `once`: what is read passes through once.
#define SORL_LOAD_TILE(once, tile, from, stride) \
  do {                                           \
    if constexpr (once)                          \
      _tile_stream_loadd(tile, from, stride);    \
    else                                         \
      _tile_loadd(tile, from, stride);           \
  } while (false)

// A block's sums, of 32 rows from `row` or fewer by a panel, into `to`; how many rows it has. between(half) is
// called at each 32 inputs twice, while products are under way. x_once: activations pass through once, and
// weights are read again; else the other way round.
template <bool x_once, class Between>
inline __attribute__((always_inline)) int block_sums(const Dense& d, int panel, int row, BlockSums& to, Between between) {
  const std::size_t panel_bytes = WeightsTiles::packed_bytes(d.k, kBlockColumns);
  const auto stride = static_cast<long>(d.x_stride);
  const int slices = d.k / kTileK;
  const char* w = static_cast<const char*>(d.w) + panel * panel_bytes;
  const char* x = static_cast<const char*>(d.x) + row * d.x_stride;
  const char* x_second = x + kTileRows * d.x_stride;
  const int rows = std::min(d.rows - row, kBlockRows);
  const bool second = rows > kTileRows;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int k = 0; k < slices; ++k) {
    SORL_LOAD_TILE(x_once, 4, x, stride);
    SORL_LOAD_TILE(!x_once, 6, w, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    between(0);
    SORL_LOAD_TILE(!x_once, 7, w + kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    if (second) {
      SORL_LOAD_TILE(x_once, 5, x_second, stride);
      _tile_dpbf16ps(2, 5, 6);
    }
    between(1);
    if (second) _tile_dpbf16ps(3, 5, 7);
    x += kTileRowBytes;
    x_second += kTileRowBytes;
    w += 2 * kTileBytes;
  }
  _tile_stored(0, to[0], kSumsBytes);
  _tile_stored(1, to[0] + 16, kSumsBytes);
  if (second) {
    _tile_stored(2, to[16], kSumsBytes);
    _tile_stored(3, to[16] + 16, kSumsBytes);
  }
  return rows;
}

// What each half of an interval between products does of `rows` rows of epilogues, spread over k inputs.
struct Shares {
  int half[2];
  Shares(int rows, int k) {
    const int slices = k / kTileK, share = (rows + slices - 1) / slices;
    half[0] = share / 2;
    half[1] = share - share / 2;
  }
};

// More than 16 rows. rows_outer: 32 rows by one panel after another, the rows staying in the first-level cache;
// else a panel stays there while all rows pass by.
template <Output output, bool has_init, bool rows_outer>
__attribute__((noinline)) void many_rows(const Dense& d) {
  configure_tiles(kTileRows);
  alignas(64) BlockSums sums[2];
  Epilogue<output, has_init, !rows_outer> before(d);
  const Shares shares(kBlockRows, d.k);
  const bool one_each = shares.half[0] == 1 && shares.half[1] == 1;  // then without a loop
  int turn = 0;
  const auto block = [&](int panel, int row) {
    BlockSums& to = sums[turn ^= 1];
    const int rows =
        one_each ? block_sums<!rows_outer>(d, panel, row, to, [&](int) { before.next(); })
                 : block_sums<!rows_outer>(d, panel, row, to, [&](int i) { before.some(shares.half[i]); });
    before.rest();
    before.begin(d, to, row, panel, rows);
  };
  if constexpr (rows_outer) {
    for (int row = 0; row < d.rows; row += kBlockRows)
      for (int panel = d.panel_begin; panel < d.panel_end; ++panel) block(panel, row);
  } else {
    for (int panel = d.panel_begin; panel < d.panel_end; ++panel)
      for (int row = 0; row < d.rows; row += kBlockRows) block(panel, row);
  }
  before.rest();
}

// Up to 16 rows: tiles of just these rows by two panels. Weights pass through once, at the speed of the cache
// that holds them; whether they leave the first level alone made no difference there.
template <Output output, bool has_init>
__attribute__((noinline)) void few_rows(const Dense& d) {
  configure_tiles(d.rows);
  alignas(64) BlockSums sums[2][2];  // by turns; of the left panel, of the right one
  Epilogue<output, has_init, false> before(d), before_right(d);
  int turn = 0;
  const std::size_t panel_bytes = WeightsTiles::packed_bytes(d.k, kBlockColumns);
  const auto stride = static_cast<long>(d.x_stride);
  const int slices = d.k / kTileK, share = (2 * d.rows + slices - 1) / slices;
  for (int panel = d.panel_begin; panel < d.panel_end; panel += 2) {
    const char* x = static_cast<const char*>(d.x);
    const char* w = static_cast<const char*>(d.w) + panel * panel_bytes;
    const bool two = panel + 1 < d.panel_end;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < slices; ++k) {
      _tile_loadd(4, x, stride);
      _tile_loadd(6, w, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w + kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      if (two) {
        _tile_loadd(6, w + panel_bytes, kTileRowBytes);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, w + panel_bytes + kTileBytes, kTileRowBytes);
        _tile_dpbf16ps(3, 4, 7);
      }
      const int of_left = std::min(share, before.left());
      before.some(of_left);
      before_right.some(share - of_left);
      x += kTileRowBytes;
      w += 2 * kTileBytes;
    }
    before.rest();
    before_right.rest();
    BlockSums(&to)[2] = sums[turn ^= 1];
    _tile_stored(0, to[0][0], kSumsBytes);
    _tile_stored(1, to[0][0] + 16, kSumsBytes);
    before.begin(d, to[0], 0, panel, d.rows);
    if (two) {
      _tile_stored(2, to[1][0], kSumsBytes);
      _tile_stored(3, to[1][0] + 16, kSumsBytes);
      before_right.begin(d, to[1], 0, panel + 1, d.rows);
    }
  }
  before.rest();
  before_right.rest();
}

template <Output output, bool has_init>
void dense_of(const Dense& d) {
  if (d.rows <= kTileRows)
    few_rows<output, has_init>(d);
  else if (d.rows <= 2 * kBlockRows)
    many_rows<output, has_init, true>(d);
  else
    many_rows<output, has_init, false>(d);
}

void dense_bf16(const Dense& d) noexcept {
  if (d.rows == 0 || d.panel_begin == d.panel_end) return;
  const bool init = d.init != nullptr;
  switch (d.output) {
    case Output::linear: return init ? dense_of<Output::linear, true>(d) : dense_of<Output::linear, false>(d);
    case Output::gelu: return init ? dense_of<Output::gelu, true>(d) : dense_of<Output::gelu, false>(d);
    case Output::gelu_next:
    case Output::gelu_float: return init ? dense_of<Output::gelu_float, true>(d) : dense_of<Output::gelu_float, false>(d);
  }
}

// A first layer of few rows by vectors: a tile of its own would be stored for each of them.
inline void first_of_few(const First& d) noexcept {
  for (int r = 0; r < d.rows; ++r) {
    const float* z = d.z + static_cast<std::size_t>(r) * d.inputs;
    char* y = static_cast<char*>(d.y) + r * d.y_stride;
    for (int n = d.begin; n < d.end; n += 16) {
      __m512 sum = _mm512_add_ps(_mm512_loadu_ps(d.b + n), _mm512_loadu_ps(d.init[r] + n));
      for (int i = 0; i < d.inputs; ++i)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(z[i]), _mm512_loadu_ps(d.w + static_cast<std::size_t>(i) * d.width + n), sum);
      sum = gelu_of_tiles(sum);
      if (d.floats)
        _mm512_storeu_ps(reinterpret_cast<float*>(y) + n, sum);
      else
        StoreBf16::store(y, n, sum);
    }
  }
}

}  // namespace
}  // namespace sorl
