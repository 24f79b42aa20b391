// What a product does with a block of its sums while they are near, and what it fetches meanwhile.
//
// An epilogue's pair(r, c, j, x) takes rows 2j and 2j + 1 of the block (r, c), x its 32 x 32 sums.
// During that block's product ahead(r, c, i, n) is called for shares i to n of kShares, to fetch a part of
// what pair will read or write beyond the second-level cache: a store waits for its line as a load does. A thread's
// own memory is in that cache.
// Included by the instruction sets' files only; P is mlp.hpp's policy.
#pragma once

#include "train.hpp"
#include "vec.hpp"

namespace sorl::train {
namespace {

constexpr int kShares = 32;  // parts in which a block is fetched

// Rows, columns and depth of a product that are there in its last block; for what lies beyond, a policy
// may hand the epilogue anything.
struct Last {
  int rows = kBlock, columns = kBlock, depth = kBlock;
};
constexpr int last_of(int n) { return (n - 1) % kBlock + 1; }  // of n > 0 elements

// Whether lines that a product will write are fetched. Beside tiles, whose products leave few slots, it costs more than
// the stores wait; what is read is fetched there too.
#if defined(__AMX_TILE__)
constexpr bool kFetchOutputs = false;
#else
constexpr bool kFetchOutputs = true;
#endif

// Brings shares i to n of a block near.
template <Fetch how, class T>
SORL_INLINE void fetch(const T* block, int i, int n) {
  if constexpr (how == Fetch::write && !kFetchOutputs) return;
  constexpr int kBytes = kArea * int(sizeof(T)) / kShares;
  const char* p = reinterpret_cast<const char*>(block);
  for (int at = i * kBytes; at < n * kBytes; at += 64) prefetch<how>(p + at);
}

// What a product fetches while it computes some columns of blocks, spread over all of it so that no line is
// waited for: the blocks of its epilogue, and the next columns of its right operand. Called `calls` times.
template <class T, class Epilogue>
class Ahead {
 public:
  // nrb rows of blocks, in the columns from c to c + wide; the right operand's next_wide columns from `next`, of nk blocks
  // next_k elements apart, are next_c apart.
  Ahead(const Epilogue& epilogue, int c, int wide, int nrb, const T* next, int next_wide, std::size_t next_c, int nk,
        std::size_t next_k, int calls)
      : epilogue_(epilogue), next_(next), next_c_(next_c), next_k_(next_k), c_(c),
        own_(wide, nrb, calls), right_(next_wide, nk, calls) {}

  void operator()() {
    own_.advance([&](int r, int c, int i, int n) { epilogue_.ahead(r, c_ + c, i, n); });
    right_.advance([&](int k, int c, int i, int n) {
      fetch<Fetch::read_second>(next_ + c * next_c_ + k * next_k_, i, n);
    });
  }

 private:
  // Shares of the blocks of some columns in `calls` parts, without a division a part.
  struct Progress {
    int height, row = 0, column = 0, share = 0;  // blocks of a column; the next share to fetch
    std::int64_t all, step, at = 0;  // in shares, 2^-16 of one; rounded up, so that the last part is not forgotten
    Progress(int columns, int height, int calls)
        : height(height), all(std::int64_t(columns) * height * kShares), step((all << 16) / calls + 1) {}
    template <class Visit>
    void advance(Visit visit) {
      const int from = static_cast<int>(at >> 16);
      at += step;
      int left = static_cast<int>(at >> 16 < all ? at >> 16 : all) - from;
      while (left > 0) {
        const int n = left < kShares - share ? left : kShares - share;
        visit(row, column, share, share + n);
        left -= n, share += n;
        if (share < kShares) continue;
        share = 0;
        if (++row == height) row = 0, ++column;
      }
    }
  };
  const Epilogue& epilogue_;
  const T* next_;
  std::size_t next_c_, next_k_;
  int c_;
  Progress own_, right_;
};

// y = gelu(x + bias); with `save` the derivative too.
template <class P, bool save>
struct HiddenForward {
  using T = typename P::T;
  T* act;
  T* slope;
  std::size_t stride;  // elements between row blocks
  const float* bias;
  void ahead(int r, int c, int i, int n) const {
    if constexpr (!save) return;  // the caller's own memory, in the second-level cache
    const std::size_t at = r * stride + c * kPitch;
    fetch<Fetch::write>(act + at, i, n), fetch<Fetch::write>(slope + at, i, n);
  }
  void pair(int r, int c, int j, const float* x) const {
    x += 64 * j;
    const v16 b0 = load(bias + c * kBlock), b1 = load(bias + c * kBlock + 16);
    const std::size_t at = r * stride + c * kPitch;
    v16 d[4];
    const v16 y0 = gelu<P::precise, save>(load(x) + b0, d[0]);
    const v16 y1 = gelu<P::precise, save>(load(x + 16) + b1, d[1]);
    const v16 y2 = gelu<P::precise, save>(load(x + 32) + b0, d[2]);
    const v16 y3 = gelu<P::precise, save>(load(x + 48) + b1, d[3]);
    P::store_row(act + at, 2 * j, y0, y1);
    P::store_row(act + at, 2 * j + 1, y2, y3);
    if constexpr (save) {
      P::store_row(slope + at, 2 * j, d[0], d[1]);
      P::store_row(slope + at, 2 * j + 1, d[2], d[3]);
    }
  }
};

// gelu(x + bias) as float blocks, for LayerNorm to read; with `save` the derivative.
template <class P, bool save>
struct NormForward {
  using T = typename P::T;
  float* y;
  T* slope;
  std::size_t stride;  // elements between row blocks, of both
  const float* bias;
  void ahead(int r, int c, int i, int n) const {
    if constexpr (save) fetch<Fetch::write>(slope + r * stride + c * kPitch, i, n);
  }
  void pair(int r, int c, int j, const float* x) const {
    x += 64 * j;
    const v16 b0 = load(bias + c * kBlock), b1 = load(bias + c * kBlock + 16);
    const std::size_t at = r * stride + c * kPitch;
    v16 d[4];
    float* to = y + at + 64 * j;
    store(to, gelu<P::precise, save>(load(x) + b0, d[0]));
    store(to + 16, gelu<P::precise, save>(load(x + 16) + b1, d[1]));
    store(to + 32, gelu<P::precise, save>(load(x + 32) + b0, d[2]));
    store(to + 48, gelu<P::precise, save>(load(x + 48) + b1, d[3]));
    if constexpr (save) {
      P::store_row(slope + at, 2 * j, d[0], d[1]);
      P::store_row(slope + at, 2 * j + 1, d[2], d[3]);
    }
  }
};

// Float blocks, plus a bias where there is one.
struct Plain {
  float* y;
  std::size_t stride;
  const float* bias;  // or null
  void ahead(int, int, int, int) const {}
  void pair(int r, int c, int j, const float* x) const {
    x += 64 * j;
    float* to = y + r * stride + c * kPitch + 64 * j;
    v16 b0{}, b1{};
    if (bias != nullptr) b0 = load(bias + c * kBlock), b1 = load(bias + c * kBlock + 16);
    store(to, load(x) + b0);
    store(to + 16, load(x + 16) + b1);
    store(to + 32, load(x + 32) + b0);
    store(to + 48, load(x + 48) + b1);
  }
};

// dx^ as float blocks; what normalise_backward reads beside them is brought near meanwhile.
template <class P>
struct NormBackward : Plain {
  using T = typename P::T;
  const T *xhat, *slope;
  void ahead(int r, int c, int i, int n) const {
    const std::size_t at = r * stride + c * kPitch;
    fetch<Fetch::read_second>(xhat + at, i, n);
    fetch<Fetch::read_second>(slope + at, i, n);
  }
};

// dz = dy * slope: natural for the next product down, paired for the weights, summed over steps.
template <class P>
struct HiddenBackward {
  using T = typename P::T;
  const T* slope;
  T* natural;
  std::size_t stride;  // elements between row blocks, of both
  T* paired;           // or null
  std::size_t column;  // elements between its column blocks
  float* total;        // or null: float blocks as `natural`
  bool first;
  void ahead(int r, int c, int i, int n) const {
    const std::size_t at = r * stride + c * kPitch;
    fetch<Fetch::read>(slope + at, i, n);
    if (paired != nullptr) fetch<Fetch::write>(paired + r * kPitch + c * column, i, n);
  }
  void pair(int r, int c, int j, const float* x) const {
    x += 64 * j;
    const std::size_t at = r * stride + c * kPitch;
    v16 d[4];
    P::load_row(slope + at, 2 * j, d[0], d[1]);
    P::load_row(slope + at, 2 * j + 1, d[2], d[3]);
    for (int i = 0; i < 4; ++i) d[i] *= load(x + 16 * i);
    P::store_row(natural + at, 2 * j, d[0], d[1]);
    P::store_row(natural + at, 2 * j + 1, d[2], d[3]);
    if (paired != nullptr) P::store_pair(paired + r * kPitch + c * column, j, d[0], d[1], d[2], d[3]);
    if (total != nullptr) {
      float* to = total + at + 64 * j;
      for (int i = 0; i < 4; ++i) store(to + 16 * i, first ? d[i] : load(to + 16 * i) + d[i]);
    }
  }
};

// Adds to, or writes, rows [0, rows) and columns [0, columns) of a weight gradient G. Where LayerNorm's
// gain and shift were folded into the weights, W' = g W and b' = b + c W, the last addition turns G into
// dW = g G + c s, s being the column sums of dz, and collects dg = sum of W G and dc = sum of W s by row.
struct Gradient {
  float* w;
  int rows, columns;
  bool add;
  const float* weights;  // W at the same place, or null: nothing folded, or more to add
  const float *sums, *gain, *shift;
  v16 (*along)[2];  // [rows]
  void ahead(int r, int c, int i, int n) const {
    static_assert(kShares == kBlock, "a share is a row");
    for (; i < n && r * kBlock + i < rows; ++i) {
      const std::size_t at = std::size_t(r * kBlock + i) * columns + c * kBlock;
      prefetch<Fetch::write>(w + at), prefetch<Fetch::write>(w + at + 16);
      if (weights != nullptr) prefetch<Fetch::read>(weights + at), prefetch<Fetch::read>(weights + at + 16);
    }
  }
  void pair(int r, int c, int j, const float* x) const {
    x += 64 * j;
    for (int i = 0; i < 2; ++i, x += 32) {
      const int row = r * kBlock + 2 * j + i, left = columns - c * kBlock;
      if (row >= rows) return;
      const std::size_t at = std::size_t(row) * columns + c * kBlock;
      float* to = w + at;
      if (left >= kBlock) {
        v16 a = load(x), b = load(x + 16);
        if (add) a += load(to), b += load(to + 16);
        if (weights != nullptr) {
          const v16 w0 = load(weights + at), w1 = load(weights + at + 16);
          const v16 s0 = load(sums + c * kBlock), s1 = load(sums + c * kBlock + 16);
          along[row][0] += w0 * a + w1 * b;
          along[row][1] += w0 * s0 + w1 * s1;
          a = a * gain[row] + s0 * shift[row], b = b * gain[row] + s1 * shift[row];
        }
        store(to, a), store(to + 16, b);
        continue;
      }
      alignas(64) float dg[16] = {}, dc[16] = {};
      for (int n = 0; n < left; ++n) {
        float a = add ? to[n] + x[n] : x[n];
        if (weights != nullptr) {
          const float s = sums[c * kBlock + n];
          dg[n % 16] += weights[at + n] * a, dc[n % 16] += weights[at + n] * s;
          a = a * gain[row] + s * shift[row];
        }
        to[n] = a;
      }
      if (weights != nullptr) along[row][0] += load(dg), along[row][1] += load(dc);
    }
  }
};

}  // namespace
}  // namespace sorl::train
