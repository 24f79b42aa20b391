// bf16 on AVX512_BF16, where there are no tiles: a pair of inputs is broadcast as one word.
#include "bf16.hpp"

namespace sorl::train {
namespace {

struct Avx512Bf16 : Bf16 {
  static void begin() {}
  static void end() {}

  template <int rows, class AheadOf>
  static void part(int row, int nk, const T* a, std::size_t a_k, const T* b, std::size_t b_k,
                   const float* init, float* to, AheadOf& ahead) {
    __m512 s[rows][2];
    for (int i = 0; i < rows; ++i)
      for (int n = 0; n < 2; ++n)
        s[i][n] = init != nullptr ? _mm512_loadu_ps(init + (row + i) * kBlock + 16 * n) : _mm512_setzero_ps();
    a += row * kBlock;
    for (int kb = 0; kb < nk; ++kb, a += a_k, b += b_k) {
      ahead();
      for (int k = 0; k < kBlock / 2; ++k) {
        const __m512bh w0 = (__m512bh)_mm512_loadu_si512(b + k * kBlock);
        const __m512bh w1 = (__m512bh)_mm512_loadu_si512(b + kArea / 2 + k * kBlock);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
          std::int32_t pair;
          std::memcpy(&pair, a + i * kBlock + 2 * k, sizeof pair);
          const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
          s[i][0] = _mm512_dpbf16_ps(s[i][0], x, w0);
          s[i][1] = _mm512_dpbf16_ps(s[i][1], x, w1);
        }
      }
    }
    for (int i = 0; i < rows; ++i)
      for (int n = 0; n < 2; ++n) _mm512_storeu_ps(to + (row + i) * kBlock + 16 * n, s[i][n]);
  }

  template <bool, class Epilogue>
  static void gemm(int nrb, int ncb, int nk, const T* a, std::size_t a_rb, std::size_t a_k, const T* b,
                   std::size_t b_cb, std::size_t b_k, const float* init, std::size_t init_rb,
                   std::size_t init_cb, Epilogue epilogue, Last = {}) {
    alignas(64) float block[kArea];
    for (int c = 0; c < ncb; ++c) {
      Ahead<T, Epilogue> ahead(epilogue, c, 1, nrb, b + (c + 1) * b_cb, c + 1 < ncb, b_cb, nk, b_k, 3 * nrb * nk);
      for (int r = 0; r < nrb; ++r) {
        const float* start = init != nullptr ? init + r * init_rb + c * init_cb : nullptr;
        const T *x = a + r * a_rb, *w = b + c * b_cb;
        part<11>(0, nk, x, a_k, w, b_k, start, block, ahead);
        part<11>(11, nk, x, a_k, w, b_k, start, block, ahead);
        part<10>(22, nk, x, a_k, w, b_k, start, block, ahead);
        for (int j = 0; j < kBlock / 2; ++j) epilogue.pair(r, c, j, block);
      }
    }
  }
};

}  // namespace

const Ops* avx512_bf16_ops(Precision) {
  static const Ops ops = table<Avx512Bf16>(Isa::avx512_bf16, Precision::bf16);
  return &ops;
}

}  // namespace sorl::train
