#include "../kernels/bf16.hpp"
#include "../tiles.hpp"
#include "loops.hpp"

namespace sorl::bench {
namespace {

struct Bf16 {
  using x = std::uint16_t;
  using w = std::uint16_t;
  static x activation(int i) { return static_cast<x>(to_bf16(burn_activation(i))); }
  static w weight(int i) { return static_cast<w>(to_bf16(burn_weight(i))); }
};

struct Bytes {
  using x = std::uint8_t;
  using w = std::int8_t;
  static x activation(int i) { return burn_byte(i); }
  static w weight(int i) { return burn_signed_byte(i); }
};

// Some slices of activations and weights, which fit the first-level cache.
template <class T>
struct BurnSlices {
  static constexpr int slices = 8, tile = kTileRows * kTileRowBytes / int{sizeof(typename T::x)};  // values of a tile
  alignas(64) typename T::x x[slices][2 * tile];
  alignas(64) typename T::w w[slices][2 * tile];

  BurnSlices() {
    for (int s = 0; s < slices; ++s)
      for (int i = 0; i < 2 * tile; ++i) {
        x[s][i] = T::activation(s * 2 * tile + i);
        w[s][i] = T::weight(s * 2 * tile + i);
      }
  }
};

// As many_rows of kernels/amx_bf16.hpp with all in the first-level cache and nothing done to sums. Eight tiles are too few for a
// product of matrices that loads less than a tile a product, so that these loads, too, are part of the limit.
template <class T>
double burn_tiles(long n) noexcept {
  static const BurnSlices<T> data;
  configure_tiles(kTileRows);
  __asm__ volatile("" ::: "memory");  // the compiler doesn't see that tiles are read from memory
  for (long i = 0; i < n; ++i) {
    if (i % 16 == 0) {  // 512 inputs of bf16
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const auto* x = data.x[i % data.slices];
    const auto* w = data.w[i % data.slices];
    _tile_loadd(4, x, kTileRowBytes);
    _tile_loadd(6, w, kTileRowBytes);
    _tile_loadd(5, x + data.tile, kTileRowBytes);
    _tile_loadd(7, w + data.tile, kTileRowBytes);
    if constexpr (sizeof *x == 1) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  return 4.0 * kTileRows * data.tile * 2 * static_cast<double>(n);
}

void enter() noexcept { configure_tiles(kTileRows); }
void leave() noexcept { _tile_release(); }

}  // namespace

const Loops* amx_loops(Precision precision) {
  static constexpr Loops bf16{burn_tiles<Bf16>, read_all<Avx512>, enter, leave};
  static constexpr Loops int8{burn_tiles<Bytes>, read_all<Avx512>, enter, leave};
  return precision == Precision::int8 ? &int8 : &bf16;
}

}  // namespace sorl::bench
