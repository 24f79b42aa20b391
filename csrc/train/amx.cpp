// bf16 on AMX tiles: a block's sums are four tiles, and the epilogue of the block before runs between
// the products of the next, so that tiles and vectors work at the same time.
#include "../tiles.hpp"
#include "bf16.hpp"

namespace sorl::train {
namespace {

struct Amx : Bf16 {
  static void begin() { configure_tiles(sorl::kTileRows); }
  static void end() { _tile_release(); }

  // The products of a block. The operand that passes through once for each block of the other is read as a stream
  // (tileloaddt1), so that the other, which is read again, stays in the first-level cache.
  template <bool stream_left, class Epilogue>
  SORL_INLINE void products(int nk, const T* x, std::size_t a_k, const T* w, std::size_t b_k, int r, int c, int r_before,
                            int c_before, const float* before, Epilogue& epilogue) {
    constexpr int kPairs = kBlock / 2, kTileRow = 64;
    constexpr int kHalf = kArea / 2;  // elements of a tile
    int j = r_before < 0 ? kPairs : 0;
    for (int k = 0; k < nk; ++k, x += a_k, w += b_k) {
      epilogue.ahead(r, c, k * kShares / nk, (k + 1) * kShares / nk);
      const int due = (k + 1) * kPairs / nk, half = (j + due) / 2;
      if constexpr (stream_left) {
        _tile_stream_loadd(4, x, kTileRow);
        _tile_loadd(6, w, kTileRow);
      } else {
        _tile_loadd(4, x, kTileRow);
        _tile_stream_loadd(6, w, kTileRow);
      }
      _tile_dpbf16ps(0, 4, 6);
      for (; j < half; ++j) epilogue.pair(r_before, c_before, j, before);
      if constexpr (stream_left) {
        _tile_loadd(7, w + kHalf, kTileRow);
        _tile_stream_loadd(5, x + kHalf, kTileRow);
      } else {
        _tile_stream_loadd(7, w + kHalf, kTileRow);
        _tile_loadd(5, x + kHalf, kTileRow);
      }
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      for (; j < due; ++j) epilogue.pair(r_before, c_before, j, before);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  template <bool, class Epilogue>
  static void gemm(int nrb, int ncb, int nk, const T* a, std::size_t a_rb, std::size_t a_k, const T* b,
                   std::size_t b_cb, std::size_t b_k, const float* init, std::size_t init_rb,
                   std::size_t init_cb, Epilogue epilogue, Last = {}) {
    alignas(64) float sums[2][kArea];
    constexpr int kPairs = kBlock / 2, kSumRow = kBlock * sizeof(float);
    constexpr int kHalf = kArea / 2;  // a half block of sums
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
        if (nrb > 1)
          products<true>(nk, x, a_k, w, b_k, r, c, r_before, c_before, before, epilogue);
        else
          products<false>(nk, x, a_k, w, b_k, r, c, r_before, c_before, before, epilogue);
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
