// Inputs and weights into the blocks that the products read.
//
// Included by the instruction sets' files only; P is mlp.hpp's policy.
#pragma once

#include <cstring>

#include "../denormals.hpp"
#include "epilogues.hpp"
#include "plan.hpp"
#include "vec.hpp"

namespace sorl::train {
namespace {

// Columns `n` of `rows` rows into natural blocks, value(row, column); rows to the end of the block are 0.
template <class P, class Value>
void pack_rows(typename P::T* to, int row_blocks, int column_blocks, int rows, int n, Value value) {
  using T = typename P::T;
  std::memset(to, 0, sizeof(T) * row_blocks * column_blocks * kPitch);
  for (int r = 0; r < rows; ++r) {
    T* row = to + std::size_t(r / kBlock) * column_blocks * kPitch + r % kBlock * kBlock;
    for (int c = 0; c < n; ++c) {
      const float x = value(r, c);
      if constexpr (P::split) {
        const T high = P::narrow(x);
        const int low = n + c;
        row[c / kBlock * kPitch + c % kBlock] = high;
        row[low / kBlock * kPitch + low % kBlock] = P::narrow(x - P::widen(high));
      } else {
        row[c / kBlock * kPitch + c % kBlock] = x;
      }
    }
  }
}

// 32 columns of one row of w [rows][columns] into `to`; zeros where there is none.
inline void gather_row(const float* w, int rows, int columns, int row, int column, float* to) {
  const float* from = w + std::size_t(row) * columns + column;
  if (row >= rows)
    store(to, v16{}), store(to + 16, v16{});
  else if (column + kBlock <= columns)
    store(to, load(from)), store(to + 16, load(from + 16));
  else
    for (int n = 0; n < kBlock; ++n) to[n] = column + n < columns ? from[n] : 0.0f;
}

// The 32 x 32 block at (row, column) of w [rows][columns], into `to`; with LayerNorm each row
// times its gain, and the sum of the rows, each times its shift, is added to `shifted`.
inline void gather(const float* w, int rows, int columns, int row, int column, const float* gain, const float* shift,
                   float* to, v16 (&shifted)[2]) {
  for (int i = 0; i < kBlock; ++i, to += kBlock) {
    gather_row(w, rows, columns, row + i, column, to);
    if (row + i >= rows || gain == nullptr) continue;
    const v16 a = load(to), b = load(to + 16);
    shifted[0] += a * shift[row + i], shifted[1] += b * shift[row + i];
    store(to, a * gain[row + i]), store(to + 16, b * gain[row + i]);
  }
}

// One row of blocks of layer l >= 1 of member e.
template <class P>
void pack_hidden(const Plan<P>& p, const Net& net, int e, int l, int kb, bool forward, bool backward) {
  using T = typename P::T;
  const Shape& s = p.s;
  const int in = s.in(l), out = s.width(l), NB = l == s.depth ? p.OB : p.HB;
  const float* w = net.layers[l].w + std::size_t(e) * in * out;
  const float* gain = s.norm ? net.layers[l - 1].g + std::size_t(e) * in : nullptr;
  const float* shift = s.norm ? net.layers[l - 1].c + std::size_t(e) * in : nullptr;
  T* fwd = static_cast<T*>(net.forward) + e * p.fwd_size() + p.fwd(l);
  T* bwd = static_cast<T*>(net.backward) + e * p.bwd_size() + p.bwd(l);
  alignas(64) float block[kArea];
  // Nothing of all this is near, and the rows of a block lie too far apart for the processor to guess.
  const auto ahead = [&](int nb) {
    for (int i = 0; i < kBlock && kb * kBlock + i < in; ++i) {
      const float* row = w + std::size_t(kb * kBlock + i) * out + nb * kBlock;
      prefetch<Fetch::read>(row), prefetch<Fetch::read>(row + 16);
    }
    if (forward) fetch<Fetch::write>(fwd + (std::size_t(nb) * p.HB + kb) * kPitch, 0, kShares);
    if (backward) fetch<Fetch::write>(bwd + (std::size_t(kb) * NB + nb) * kPitch, 0, kShares);
  };
  for (int nb = 0; nb < NB; ++nb) {
    if (nb + 1 < NB) ahead(nb + 1);
    v16 shifted[2] = {};
    gather(w, in, out, kb * kBlock, nb * kBlock, gain, shift, block, shifted);
    if (forward) P::store_block(block, fwd + (std::size_t(nb) * p.HB + kb) * kPitch);
    if (forward && s.norm) {
      float* to = net.bias + p.shifts(e, l, kb) + nb * kBlock;
      store(to, shifted[0]), store(to + 16, shifted[1]);
    }
    if (backward) P::store_transposed(block, bwd + (std::size_t(kb) * NB + nb) * kPitch);
  }
}

// Layer 1: rows [0, O) are the observation's, the rest the group's; in bf16 each twice, for the pairs.
template <class P>
void pack_first(const Plan<P>& p, const Net& net, int e, bool forward, bool backward) {
  using T = typename P::T;
  const Shape& s = p.s;
  const float* w = net.layers[0].w + std::size_t(e) * s.inputs() * s.hidden;
  T* fwd = static_cast<T*>(net.forward) + e * p.fwd_size();
  T* bwd = static_cast<T*>(net.backward) + e * p.bwd_size();
  alignas(64) float block[kArea];
  v16 none[2];
  const float* group = w + std::size_t(s.obs) * s.hidden;
  const auto part = [&](const float* rows, int n, int KB, T* to) {
    for (int nb = 0; nb < p.HB; ++nb)
      for (int kb = 0; kb < KB; ++kb) {
        for (int i = 0; i < kBlock; ++i) {
          const int k = kb * kBlock + i, row = P::split && k >= n ? k - n : k;
          gather_row(rows, n, s.hidden, row, nb * kBlock, block + i * kBlock);
        }
        P::store_block(block, to + (std::size_t(nb) * KB + kb) * kPitch);
      }
  };
  if (forward) {
    part(w, s.obs, p.XB, fwd + p.fwd_x());
    part(group, s.group(), p.GB, fwd + p.fwd_group());
  }
  if (!backward) return;
  for (int nb = 0; nb < p.HB; ++nb) {
    for (int kb = 0; kb < p.AB; ++kb) {
      gather(group, s.act, s.hidden, kb * kBlock, nb * kBlock, nullptr, nullptr, block, none);
      P::store_transposed(block, bwd + p.bwd_act() + (std::size_t(kb) * p.HB + nb) * kPitch);
    }
    for (int kb = 0; kb < blocks(s.obs); ++kb) {
      gather(w, s.obs, s.hidden, kb * kBlock, nb * kBlock, nullptr, nullptr, block, none);
      P::store_transposed(block, bwd + p.bwd_obs() + (std::size_t(kb) * p.HB + nb) * kPitch);
    }
  }
}

// b' = b + c W, the shift of the layer before folded in; c W is there when all rows of blocks are packed.
template <class P>
void pack_bias(const Plan<P>& p, const Net& net, int e, int l) {
  const Shape& s = p.s;
  const int out = s.width(l), NB = l == s.depth ? p.OB : p.HB;
  float* to = net.bias + p.bias(e, l);
  for (int n = 0; n < NB * kBlock; ++n) to[n] = n < out ? net.layers[l].b[std::size_t(e) * out + n] : 0.0f;
  if (!s.norm || l == 0) return;
  for (int kb = 0; kb < p.HB; ++kb) {
    const float* shifts = net.bias + p.shifts(e, l, kb);
    for (int n = 0; n < NB * kBlock; n += 16) store(to + n, load(to + n) + load(shifts + n));
  }
}

// What is left when all rows of blocks are packed, in items: each member's first layer, and its biases.
template <class P>
void pack_rest(const Plan<P>& p, const Net& net, int item, bool forward, bool backward) {
  const int each = p.s.depth + 2, e = item / each, l = item % each - 1;
  if (l < 0)
    pack_first(p, net, e, forward, backward);
  else if (forward)
    pack_bias(p, net, e, l);
}

template <class P>
void pack(Team& team, const Net& net, bool forward, bool backward) {
  struct Context {
    Team& team;
    const Net& net;
    bool forward, backward;
  } context{team, net, forward, backward};
  team.run(
      [](void* pointer, int t) noexcept {
        const Context& c = *static_cast<Context*>(pointer);
        const FlushDenormals flush;
        const Plan<P> p(c.net.shape);
        const Shape& s = p.s;
        const int T = c.team.size();
        int item = 0;
        for (int e = 0; e < s.members; ++e)
          for (int l = 1; l <= s.depth; ++l)
            for (int kb = 0; kb < p.HB; ++kb)
              if (item++ % T == t) pack_hidden(p, c.net, e, l, kb, c.forward, c.backward);
        if (s.norm) c.team.barrier();
        for (int i = t; i < rest_items(s); i += T) pack_rest(p, c.net, i, c.forward, c.backward);
      },
      &context);
}

}  // namespace
}  // namespace sorl::train
