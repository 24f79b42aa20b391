// AMX: tdpbf16ps multiplies a tile of 16 rows x 32 bf16 by one of 16 pairs x 16 columns into 16 x 16
// fp32 sums. A panel of 32 columns is two such tiles side by side, 128 bytes from pair to pair.
//
// The tile unit and the vector unit work at once only if both have something to do, so the epilogue
// (bias, GELU, rounding) of a finished block runs in slices between the tile products of the next one.
// Not yet timed on a machine that has tiles.
#include "../tiles.hpp"
#include "bf16.hpp"
#include "choosing.hpp"
#include "philox.hpp"

namespace sorl {
namespace {

using V = Avx512;

// A block whose sums lie in memory and wait for their epilogue: units of 32 columns of one row, all of
// `pairs` pairs of tiles, `rows` units to a pair.
struct Pending {
  const Dense* d = nullptr;
  const float (*sums)[16][16] = nullptr;  // tiles, two to a pair
  int rows = 0, units = 0, done = 0;
  int row_step = 0, panel_step = 0;  // what the next pair of tiles is further on
  int row = 0, panel = 0;            // of the pair at hand
  int r = 0;                         // next row of that pair

  void one() {
    const int here = r, at = row + here, column = panel * 32;
    const float(*pair)[16][16] = sums;
    ++done;
    if (++r == rows) {
      r = 0;
      row += row_step;
      panel += panel_step;
      sums += 2;
    }
    if (at >= d->rows) return;
    __m512 a = V::add(V::load(pair[0][here]), V::load(d->bias + column));
    __m512 b = V::add(V::load(pair[1][here]), V::load(d->bias + column + 16));
    if (d->init != nullptr) {
      a = V::add(a, V::load(d->init[at] + column));
      b = V::add(b, V::load(d->init[at] + column + 16));
    }
    char* y = static_cast<char*>(d->y) + at * d->y_stride;
    if (d->output != Output::linear) {
      a = gelu_for_bf16(a);
      b = gelu_for_bf16(b);
    }
    if (d->output == Output::gelu) {
      _mm512_storeu_si512(y + column * 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
    } else {
      V::store(reinterpret_cast<float*>(y) + column, a);
      V::store(reinterpret_cast<float*>(y) + column + 16, b);
    }
  }
  void some(int n) {
    for (int i = 0; i < n && done < units; ++i) one();
  }
  void rest() {
    while (done < units) one();
  }
};

constexpr int kTileK = 32;  // bf16 inputs of one product

// More than 16 rows: 32 rows by one panel, the panel staying in the first-level cache over all rows.
void many_rows(const Dense& d) {
  configure_tiles(kTileRows);
  alignas(64) float sums[2][4][16][16];
  Pending pending;
  int turn = 0;
  const std::size_t panel_bytes = WeightsPairs::packed_bytes(d.k, 32);
  const int slices = d.k / kTileK, slice = (32 + slices - 1) / slices;
  const int blocks = (d.rows + 31) / 32;
  for (int panel = d.panel_begin; panel < d.panel_end; ++panel) {
    const char* panel_w = static_cast<const char*>(d.w) + panel * panel_bytes;
    for (int block = 0; block < blocks; ++block) {
      const int row = block * 32;
      const char* x = static_cast<const char*>(d.x) + row * d.x_stride;
      const char* x_second = x + 16 * d.x_stride;
      const char* w = panel_w;
      const auto stride = static_cast<long>(d.x_stride);
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int k = 0; k < d.k; k += kTileK) {
        _tile_loadd(4, x + k * 2, stride);
        _tile_loadd(6, w, 128);
        _tile_loadd(5, x_second + k * 2, stride);
        _tile_loadd(7, w + 64, 128);
        w += kTileK * 64;
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        pending.some(slice / 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        pending.some(slice - slice / 2);
        if (d.far) {
          // The next panel, from the third-level cache to the second, spread over this one's blocks.
          for (int line = block; line < 32; line += blocks)
            V::prefetch_second(w + panel_bytes - kTileK * 64 + line * kLine);
        }
      }
      pending.rest();
      float(*to)[16][16] = sums[turn ^= 1];
      _tile_stored(0, to[0], 64);
      _tile_stored(1, to[1], 64);
      _tile_stored(2, to[2], 64);
      _tile_stored(3, to[3], 64);
      pending = Pending{};
      pending.d = &d;
      pending.sums = to;
      pending.rows = 16;
      pending.units = 32;
      pending.row_step = 16;
      pending.row = row;
      pending.panel = panel;
    }
  }
  pending.rest();
}

// Up to 16 rows: tiles of just these rows by two panels. Weights pass through once, at the speed of the
// cache that holds them, hence the fetch a little ahead.
void few_rows(const Dense& d) {
  configure_tiles(d.rows);
  alignas(64) float sums[2][4][16][16];
  Pending pending;
  int turn = 0;
  const std::size_t panel_bytes = WeightsPairs::packed_bytes(d.k, 32);
  const auto* x = static_cast<const char*>(d.x);
  const auto stride = static_cast<long>(d.x_stride);
  const int slices = d.k / kTileK, slice = (2 * d.rows + slices - 1) / slices;
  const auto fetch = [](const char* w) {
    for (std::size_t b = 0; b < kTileK * 64; b += kLine) V::prefetch(w + b);
  };
  for (int panel = d.panel_begin; panel < d.panel_end; panel += 2) {
    const char* w = static_cast<const char*>(d.w) + panel * panel_bytes;
    const bool two = panel + 1 < d.panel_end;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < d.k; k += kTileK) {
      _tile_loadd(4, x + k * 2, stride);
      _tile_loadd(6, w, 128);
      _tile_loadd(7, w + 64, 128);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      fetch(w + kTileK * 64);
      if (two) {
        _tile_loadd(6, w + panel_bytes, 128);
        _tile_loadd(7, w + panel_bytes + 64, 128);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 7);
        fetch(w + panel_bytes + kTileK * 64);
      }
      w += kTileK * 64;
      pending.some(slice);
    }
    pending.rest();
    float(*to)[16][16] = sums[turn ^= 1];
    _tile_stored(0, to[0], 64);
    _tile_stored(1, to[1], 64);
    if (two) {
      _tile_stored(2, to[2], 64);
      _tile_stored(3, to[3], 64);
    }
    pending = Pending{};
    pending.d = &d;
    pending.sums = to;
    pending.rows = d.rows;
    pending.units = two ? 2 * d.rows : d.rows;
    pending.panel_step = 1;
    pending.panel = panel;
  }
  pending.rest();
}

void dense(const Dense& d) noexcept {
  if (d.rows == 0 || d.panel_begin == d.panel_end) return;
  d.rows <= 16 ? few_rows(d) : many_rows(d);
}

void enter() noexcept { configure_tiles(kTileRows); }
void leave() noexcept { _tile_release(); }

Kernels make() {
  Kernels k{};
  k.isa = Isa::amx;
  k.precision = Precision::bf16;
  k.panel = WeightsPairs::panel;
  k.k_align = kTileK;
  k.bf16_activations = true;
  k.together_rows = 63;  // bound by the weights' way in, which two cores share
  k.block_rows = 256;
  k.packed_bytes = WeightsPairs::packed_bytes;
  k.pack = WeightsPairs::pack;
  k.input = input_bf16;
  k.dense = dense;
  k.norm = norm<V, StoreBf16>;
  k.tanh = tanh<V>;
  k.normals = philox_normals;
  k.distance_sums = distance_sums;
  k.uniform = philox_uniform;
  k.enter = enter;
  k.leave = leave;
  k.few = avx512_kernels(Precision::bf16);
  return k;
}

}  // namespace

const Kernels* amx_kernels(Precision) {
  static const Kernels kernels = make();
  return &kernels;
}

}  // namespace sorl
