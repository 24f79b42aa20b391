// bf16 on AMX tiles: a block's sums are four tiles, and the epilogue of the block before runs between
// the products of the next, so that tiles and vectors work at the same time. Not yet timed on a machine
// that has tiles.
#include "../tiles.hpp"
#include "bf16.hpp"

namespace sorl::train {
namespace {

struct Amx : Bf16 {
  static void begin() { configure_tiles(sorl::kTileRows); }
  static void end() { _tile_release(); }

  template <bool, class Epilogue>
  static void gemm(int nrb, int ncb, int nk, const T* a, std::size_t a_rb, std::size_t a_k, const T* b,
                   std::size_t b_cb, std::size_t b_k, const float* init, std::size_t init_rb,
                   std::size_t init_cb, Epilogue epilogue, Last = {}) {
    alignas(64) float sums[2][kArea];
    constexpr int kPairs = kBlock / 2, kTileRow = 64, kSumRow = kBlock * sizeof(float);
    constexpr int kHalf = kArea / 2;  // elements of a tile of T; a half block of sums
    int r_before = -1, c_before = 0, s = 0;
    __asm__ volatile("" ::: "memory");  // the compiler doesn't see that tiles are read from memory
    for (int c = 0; c < ncb; ++c)
      for (int r = 0; r < nrb; ++r) {
        if (init != nullptr) {
          const float* from = init + r * init_rb + c * init_cb;
          _tile_loadd(0, from, kSumRow);
          _tile_loadd(1, from + 16, kSumRow);
          _tile_loadd(2, from + kHalf, kSumRow);
          _tile_loadd(3, from + kHalf + 16, kSumRow);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        const T *x = a + r * a_rb, *w = b + c * b_cb;
        const float* before = sums[s ^ 1];
        int j = r_before < 0 ? kPairs : 0;
        for (int k = 0; k < nk; ++k, x += a_k, w += b_k) {
          epilogue.ahead(r, c, k * kShares / nk, (k + 1) * kShares / nk);
          _tile_loadd(4, x, kTileRow);
          _tile_loadd(6, w, kTileRow);
          _tile_loadd(5, x + kHalf, kTileRow);
          _tile_loadd(7, w + kHalf, kTileRow);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          for (const int due = (k + 1) * kPairs / nk; j < due; ++j) epilogue.pair(r_before, c_before, j, before);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums[s], kSumRow);
        _tile_stored(1, sums[s] + 16, kSumRow);
        _tile_stored(2, sums[s] + kHalf, kSumRow);
        _tile_stored(3, sums[s] + kHalf + 16, kSumRow);
        r_before = r, c_before = c, s ^= 1;
      }
    if (r_before >= 0)
      for (int j = 0; j < kPairs; ++j) epilogue.pair(r_before, c_before, j, sums[s ^ 1]);
    __asm__ volatile("" ::: "memory");
  }
};

}  // namespace

const Ops* amx_ops(Precision) {
  static const Ops ops = table<Amx>(Isa::amx, Precision::bf16);
  return &ops;
}

}  // namespace sorl::train
