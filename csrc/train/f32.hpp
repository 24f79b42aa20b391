// The policy of fp32: both layouts are row-major, and a left operand may be read transposed in place.
// A part of a block, or of two beside each other, of R rows by 16 N columns keeps its sums in registers.
#pragma once

#include <type_traits>

#include "mlp.hpp"

namespace sorl::train {
namespace {

template <int R, int N>
struct F32 {
  using T = float;
  static constexpr bool precise = true, split = false, transposes = false;

  // Blocks of depth that all rows go through before the next ones: as much of the right operand as the first
  // level of cache keeps while the left one passes.
  static constexpr int kDeep = 4;

  static void begin() {}
  static void end() {}

  static float narrow(float x) { return x; }
  static float widen(float x) { return x; }
  SORL_INLINE void store_row(float* to, int r, v16 a, v16 b) {
    store(to + r * kBlock, a), store(to + r * kBlock + 16, b);
  }
  SORL_INLINE void load_row(const float* from, int r, v16& a, v16& b) {
    a = load(from + r * kBlock), b = load(from + r * kBlock + 16);
  }
  SORL_INLINE void store_pair(float* to, int j, v16 a, v16 b, v16 c, v16 d) {
    store_row(to, 2 * j, a, b), store_row(to, 2 * j + 1, c, d);
  }
  static void store_block(const float* from, float* to) { std::memcpy(to, from, sizeof(float) * kArea); }
  static void store_transposed(const float* from, float* to) {
#if defined(__AVX512F__)
    for (int i = 0; i < kBlock; i += 16)
      for (int j = 0; j < kBlock; j += 16) {
        __m512i r[16];
        for (int k = 0; k < 16; ++k) r[k] = (__m512i)load(from + (i + k) * kBlock + j);
        transpose16(r);
        for (int k = 0; k < 16; ++k) store(to + (j + k) * kBlock + i, (v16)r[k]);
      }
#else
    for (int i = 0; i < kBlock; i += 8)
      for (int j = 0; j < kBlock; j += 8) {
        __m256 r[8];
        for (int k = 0; k < 8; ++k) r[k] = _mm256_loadu_ps(from + (i + k) * kBlock + j);
        transpose8(r);
        for (int k = 0; k < 8; ++k) _mm256_storeu_ps(to + (j + k) * kBlock + i, r[k]);
      }
#endif
  }
  static void transpose(const float*, float*) {}
  static void column_sums(const float* from, int n, float* sums) {
    v16 a{}, b{};
    for (int k = 0; k < n; ++k, from += kPitch)
      for (int r = 0; r < kBlock; ++r) a += load(from + r * kBlock), b += load(from + r * kBlock + 16);
    store(sums, a), store(sums + 16, b);
  }

  // Adds to `rows` rows from `row`, 16 `vectors` columns from `column`, of which those beyond a block are the next
  // one's: b_c elements further on; the sums begin as `init`, whose and whose own blocks are as far as `init_c` and kArea
  // apart; `last` elements of the last of the nk blocks of depth are there.
  template <bool transposed, int rows, int vectors, class AheadOf>
  static void part(int row, int column, int nk, int last, const float* a, std::size_t a_k, const float* b,
                   std::size_t b_k, std::size_t b_c, const float* init, std::size_t init_c, float* to, AheadOf& ahead) {
    v16 s[rows][vectors];
    const auto at = [&](int i, int n, std::size_t block) {
      return (n / 2) * block + (row + i) * kBlock + column + n % 2 * 16;
    };
    for (int i = 0; i < rows; ++i)
      for (int n = 0; n < vectors; ++n) s[i][n] = init != nullptr ? load(init + at(i, n, init_c)) : v16{};
    a += transposed ? row : row * kBlock;
    b += column;
    for (int kb = 0; kb < nk; ++kb, a += a_k, b += b_k) {
      const float *x = a, *w = b, *v = b + b_c;
      const int depth = kb + 1 < nk ? kBlock : last;
      ahead();
#pragma GCC unroll 2
      for (int k = 0; k < depth; ++k, x += transposed ? kBlock : 1, w += kBlock, v += kBlock) {
        v16 y[vectors];
        for (int n = 0; n < vectors; ++n) y[n] = load((n < 2 ? w : v) + n % 2 * 16);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
          const v16 f = set(x[transposed ? i : i * kBlock]);
          for (int n = 0; n < vectors; ++n) s[i][n] += f * y[n];
        }
      }
    }
    for (int i = 0; i < rows; ++i)
      for (int n = 0; n < vectors; ++n) store(to + at(i, n, kArea), s[i][n]);
  }

  // A block's rows in strips of `rows`, and beyond the first `tall` of them of one less: as even as can be, for one of
  // few rows would wait for its own sums.
  template <int V>
  struct Strips {
    static constexpr int most = R * N / V < 12 ? R * N / V : 12;  // as many sums, as far as they need be
    static constexpr int count = (kBlock + most - 1) / most, rows = (kBlock + count - 1) / count;
    static constexpr int tall = kBlock - count * (rows - 1);
    static_assert(tall > 0);
  };

  template <bool transposed, class Epilogue>
  static void gemm(int nrb, int ncb, int nk, const float* a, std::size_t a_rb, std::size_t a_k,
                   const float* b, std::size_t b_cb, std::size_t b_k, const float* init,
                   std::size_t init_rb, std::size_t init_cb, Epilogue epilogue, Last last = {}) {
    constexpr int kWide = N > 2 ? 2 : 1;  // blocks of columns that go together
    alignas(64) float sums[kMaxChunk][kWide * kArea];
    for (int c = 0; c < ncb; c += kWide) {
      const int wide = ncb - c < kWide ? ncb - c : kWide;
      const int columns = c + wide < ncb ? wide * kBlock : (wide - 1) * kBlock + last.columns;
      const int beyond = ncb - c - wide, next_wide = beyond < kWide ? beyond : kWide;
      const int strips = wide == kWide ? Strips<N>::count * (kWide * kBlock / (16 * N)) : Strips<2>::count;
      Ahead<float, Epilogue> ahead(epilogue, c, wide, nrb, b + (c + wide) * b_cb, next_wide, b_cb, nk, b_k,
                                   nrb * nk * strips);
      for (int k0 = 0; k0 < nk; k0 += kDeep) {
        const int deep = nk - k0 < kDeep ? nk - k0 : kDeep, depth = k0 + deep < nk ? kBlock : last.depth;
        const auto strip = [&](auto vectors, int column) {
          constexpr int V = decltype(vectors)::value, kRows = Strips<V>::rows;
          const int block = column / kBlock;
          for (int r = 0; r < nrb; ++r) {
            const int rows = r + 1 < nrb ? kBlock : last.rows;
            const float* start = k0 > 0 ? sums[r] : init != nullptr ? init + r * init_rb + c * init_cb : nullptr;
            if (start != nullptr) start += block * (k0 > 0 ? std::size_t(kArea) : init_cb);
            const auto some = [&](auto count, int row) {
              part<transposed, decltype(count)::value, V>(row, column % kBlock, deep, depth, a + r * a_rb + k0 * a_k, a_k,
                                                          b + (c + block) * b_cb + k0 * b_k, b_k, b_cb, start,
                                                          k0 > 0 ? std::size_t(kArea) : init_cb, sums[r] + block * kArea, ahead);
            };
            int row = 0;
            for (; row < Strips<V>::tall * kRows && row < rows; row += kRows) some(std::integral_constant<int, kRows>{}, row);
            if constexpr (Strips<V>::tall < Strips<V>::count)
              for (; row < rows; row += kRows - 1) some(std::integral_constant<int, kRows - 1>{}, row);
          }
        };
        int column = 0;
        while (column < columns) {
          const int left = columns - column;
          if (N > 2 && left > 32) {
            strip(std::integral_constant<int, N>{}, column), column += 16 * N;
          } else if (N > 1 && left > 16) {
            strip(std::integral_constant<int, N < 2 ? N : 2>{}, column), column += 32;
          } else {
            strip(std::integral_constant<int, 1>{}, column), column += 16;
          }
        }
      }
      for (int r = 0; r < nrb; ++r)
        for (int w = 0; w < wide; ++w)
          for (int j = 0; j < kBlock / 2; ++j) epilogue.pair(r, c + w, j, sums[r] + w * kArea);
    }
  }
};

}  // namespace
}  // namespace sorl::train
