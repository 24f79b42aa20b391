// The shapes of AMX tiles. They are constants, and what the instruction reads is all 64 bytes of one:
// _tile_loadconfig of GCC 12 names 8 of them to the compiler, which then dropped the stores of the others as
// dead wherever it was inlined. tests/native/test_tile_config.py looks at the machine code.
//
// Included by kernels/amx.cpp and train/amx.cpp only.
#pragma once

#include <array>
#include <cstdint>

namespace sorl {
namespace {

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

constexpr int kTileRows = 16, kTileRowBytes = 64;

// By the rows of activations; of none, there are tiles of weights alone.
constexpr std::array<TileConfig, kTileRows + 1> kTileConfigs = [] {
  std::array<TileConfig, kTileRows + 1> all{};
  for (int rows = 0; rows <= kTileRows; ++rows)
    for (int t = rows == 0 ? 6 : 0; t < 8; ++t) {
      all[rows].row_bytes[t] = kTileRowBytes;
      all[rows].rows[t] = static_cast<std::uint8_t>(t < 6 ? rows : kTileRows);
    }
  return all;
}();

// Sums in tiles 0 to 3, activations in 4 and 5, weights in 6 and 7. A product takes as many cycles as its
// activations have rows.
inline void configure_tiles(int rows) { __asm__ volatile("ldtilecfg %0" : : "m"(kTileConfigs[rows])); }

}  // namespace
}  // namespace sorl
