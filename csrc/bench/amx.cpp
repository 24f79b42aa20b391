#include "../kernels/bf16.hpp"
#include "../tiles.hpp"
#include "loops.hpp"

namespace sorl::bench {
namespace {

// Some slices of activations and weights, which fit the first-level cache.
struct BurnSlices {
  static constexpr int slices = 8, tile = kTileRows * kTileRowBytes / 2;  // bf16 of a tile
  alignas(64) std::uint16_t x[slices][2 * tile], w[slices][2 * tile];

  BurnSlices() {
    for (int s = 0; s < slices; ++s)
      for (int i = 0; i < 2 * tile; ++i) {
        x[s][i] = static_cast<std::uint16_t>(to_bf16(burn_activation(s * 2 * tile + i)));
        w[s][i] = static_cast<std::uint16_t>(to_bf16(burn_weight(s * 2 * tile + i)));
      }
  }
};

// As many_rows of kernels/amx.cpp with all in the first-level cache and nothing done to sums. Eight tiles are too few for a product
// of matrices that loads less than a tile a product, so that these loads, too, are part of the limit.
double burn_tiles(long n) noexcept {
  static const BurnSlices data;
  configure_tiles(kTileRows);
  __asm__ volatile("" ::: "memory");  // the compiler doesn't see that tiles are read from memory
  for (long i = 0; i < n; ++i) {
    if (i % 16 == 0) {  // 512 inputs
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const std::uint16_t *x = data.x[i % BurnSlices::slices], *w = data.w[i % BurnSlices::slices];
    _tile_loadd(4, x, kTileRowBytes);
    _tile_loadd(6, w, kTileRowBytes);
    _tile_loadd(5, x + BurnSlices::tile, kTileRowBytes);
    _tile_loadd(7, w + BurnSlices::tile, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return 4.0 * 16 * 16 * 32 * 2 * static_cast<double>(n);
}

void enter() noexcept { configure_tiles(kTileRows); }
void leave() noexcept { _tile_release(); }

}  // namespace

const Loops* amx_loops(Precision) {
  static constexpr Loops loops{burn_tiles, read_all<Avx512>, enter, leave};
  return &loops;
}

}  // namespace sorl::bench
