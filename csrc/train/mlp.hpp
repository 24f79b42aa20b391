// The network forward and backward as templates over a policy P, one per instruction set and precision:
//   T            element: float, or std::uint16_t holding bf16
//   precise      whether GELU is to be good to fp32
//   split        inputs of layer 1 enter as pairs (high, low)
//   transposes   a left operand that is read transposed must be transposed first (else: `gemm<true>`)
//   begin, end   machine state around a thread's work
//   store_row(T* natural, row, v16, v16), load_row, store_pair(T* paired, j, 4 v16): rows 2j, 2j + 1
//   store_transposed(const float* rows, T* paired), transpose(const T* natural, T* natural)
//   column_sums(const T* paired, n, float* sums)
//   gemm<transposed>(rows, columns, depth in blocks, ..., epilogue, last)
//
// Included by the instruction sets' files only.
#pragma once

#include <atomic>

#include "../denormals.hpp"
#include "adam.hpp"
#include "epilogues.hpp"
#include "train.hpp"
#include "vec.hpp"

namespace sorl::train {
namespace {

constexpr float kNormEps = 1e-6f;
constexpr int kMaxChunk = 4;     // row blocks that go through the network together, at most
constexpr int kGroup = 4;        // blocks of a weight gradient's rows that one work item covers
constexpr int kSumChunk = 16;    // blocks of rows that it sums at a time

constexpr std::size_t align64(std::size_t n) { return (n + 63) / 64 * 64; }

// ---- Where things lie. All offsets count elements of T or floats. ----

template <class P>
struct Plan {
  using T = typename P::T;
  Shape s;
  int HB, OB, XB, GB, AB;  // blocks of hidden, out, obs input, group input; of the actions
  explicit Plan(const Shape& shape) : s(shape) {
    HB = blocks(s.hidden);
    OB = blocks(s.out);
    XB = blocks(P::split ? 2 * s.obs : s.obs);
    GB = blocks(P::split ? 2 * s.group() : s.group());
    AB = blocks(s.act);
  }
  std::size_t hidden_area() const { return std::size_t(HB) * HB * kPitch; }
  // Forward weights of a member: obs part, group part, hidden layers, last layer.
  std::size_t fwd_x() const { return 0; }
  std::size_t fwd_group() const { return std::size_t(XB) * HB * kPitch; }
  std::size_t fwd(int l) const { return fwd_group() + std::size_t(GB) * HB * kPitch + (l - 1) * hidden_area(); }
  std::size_t fwd_size() const { return fwd(s.depth) + std::size_t(HB) * OB * kPitch; }
  // Backward: transposed weights to the actions, to the observation, hidden layers, last layer.
  std::size_t bwd_act() const { return 0; }
  std::size_t bwd_obs() const { return std::size_t(HB) * AB * kPitch; }
  std::size_t bwd(int l) const { return bwd_obs() + std::size_t(HB) * blocks(s.obs) * kPitch + (l - 1) * hidden_area(); }
  std::size_t bwd_size() const { return bwd(s.depth) + std::size_t(HB) * OB * kPitch; }
  std::size_t bias(int e, int l) const { return (std::size_t(e) * (s.depth * HB + OB) + std::size_t(l) * HB) * kBlock; }
  std::size_t bias_size() const { return bias(s.members, 0); }
};

// What forward keeps for backward.
template <class P>
struct Saved {
  using T = typename P::T;
  const Plan<P>& p;
  std::size_t RB, S;
  char* base;
  Saved(const Plan<P>& plan, int rows, int steps, const void* memory = nullptr)
      : p(plan), RB(blocks(rows)), S(steps), base(static_cast<char*>(const_cast<void*>(memory))) {}
  T* elements(std::size_t n) const { return reinterpret_cast<T*>(base) + n * kPitch; }
  std::size_t x_blocks() const { return RB * p.XB; }
  std::size_t group_blocks() const { return S * RB * p.GB; }
  std::size_t layer_blocks() const { return S * RB * p.HB; }
  T* x(std::size_t rb) const { return elements(rb * p.XB); }                            // [RB][XB]
  T* group(std::size_t s, std::size_t rb) const { return elements(x_blocks() + (s * RB + rb) * p.GB); }
  // [E][depth][S][RB][HB]
  T* act(std::size_t e, std::size_t l, std::size_t s, std::size_t rb) const {
    return elements(x_blocks() + group_blocks() + (e * p.s.depth + l) * layer_blocks() + (s * RB + rb) * p.HB);
  }
  T* slope(std::size_t e, std::size_t l, std::size_t s, std::size_t rb) const {
    return act(p.s.members + e, l, s, rb);
  }
  float* floats() const { return reinterpret_cast<float*>(act(2 * p.s.members, 0, 0, 0)); }
  // [E][depth][S][RB * 32], with LayerNorm only
  float* rstd(std::size_t e, std::size_t l, std::size_t s, std::size_t rb) const {
    return floats() + (((e * p.s.depth + l) * S + s) * RB + rb) * kBlock;
  }
  std::size_t rstd_size() const { return p.s.norm ? std::size_t(p.s.members) * p.s.depth * S * RB * kBlock : 0; }
  float* z(std::size_t row) const { return floats() + rstd_size() + row * p.s.act; }  // z_1 before the clip
  std::size_t bytes() const {
    return reinterpret_cast<char*>(z(RB * kBlock)) - base;
  }
};

// Row blocks of a member that one work item takes: so many that every thread is busy if there are
// enough, and no more than stay in the second-level cache.
inline int chunk_rows(int RB, int members, int threads) {
  int chunks = (RB + kMaxChunk - 1) / kMaxChunk;
  while (chunks < RB && members * chunks % threads != 0) ++chunks;
  return (RB + chunks - 1) / chunks;
}

// Memory handed out from a block, 64-byte aligned.
struct Bump {
  char* p;
  template <class X>
  X* take(std::size_t n) {
    X* q = reinterpret_cast<X*>(p);
    p += align64(n * sizeof(X));
    return q;
  }
};

template <class P>
std::size_t own_bytes(const Shape& shape, int rows, int steps, int threads) {
  using T = typename P::T;
  const Plan<P> p(shape);
  (void)steps;
  (void)threads;
  (void)rows;
  const std::size_t n = kMaxChunk;
  const std::size_t wide = n * p.HB * kPitch;
  const std::size_t forward = sizeof(float) * (2 * wide + n * p.OB * kPitch + n * kBlock * shape.act) +
                              sizeof(T) * (2 * wide + n * (p.XB + p.GB) * kPitch);
  const std::size_t backward =
      sizeof(float) * (3 * wide + n * (p.AB + blocks(shape.obs)) * kPitch + n * kBlock * shape.act) +
      sizeof(T) * (2 * wide + n * p.OB * kPitch);
  const std::size_t weights = sizeof(T) * std::size_t(kGroup) * kSumChunk * kPitch +
                              sizeof(float) * kGroup * kBlock * 2 * 16;
  std::size_t most = forward > backward ? forward : backward;
  if (weights > most) most = weights;
  return most + 4096;
}

// dz of every layer, paired, [E][layer][column block][S * RB], and the sum over steps of layer 1's.
template <class P>
struct Deltas {
  using T = typename P::T;
  const Plan<P>& p;
  std::size_t RB, K;
  T* base;
  Deltas(const Plan<P>& plan, int rows, int steps, void* memory)
      : p(plan), RB(blocks(rows)), K(RB * steps), base(static_cast<T*>(memory)) {}
  std::size_t member() const { return (std::size_t(p.s.depth) * p.HB + p.OB) * K + std::size_t(p.HB) * RB; }
  T* layer(std::size_t e, std::size_t l) const { return base + (e * member() + l * p.HB * K) * kPitch; }
  T* sum(std::size_t e) const {
    return base + (e * member() + (std::size_t(p.s.depth) * p.HB + p.OB) * K) * kPitch;
  }
  std::size_t size() const { return p.s.members * member() * kPitch; }
};

// Behind the deltas: each member's gradients to observations and actions, which are summed in order
// when all are there, and the column sums of every layer's dz.
template <class P>
struct Tail {
  float *inputs, *sums;
  std::size_t bytes;
  Tail(const Plan<P>& p, const Deltas<P>& d, int rows, void* shared) {
    const Shape& s = p.s;
    const std::size_t start = align64(d.size() * sizeof(typename P::T));
    const std::size_t n = std::size_t(s.members) * rows * (s.obs + s.act);
    inputs = reinterpret_cast<float*>(static_cast<char*>(shared) + start);
    sums = inputs + align64(n);
    bytes = start + sizeof(float) * (align64(n) + p.bias_size());
  }
};

template <class P>
std::size_t shared_bytes(const Shape& shape, int rows, int steps, int threads) {
  const Plan<P> p(shape);
  (void)threads;
  const Deltas<P> d(p, rows, steps, nullptr);
  return Tail<P>(p, d, rows, nullptr).bytes + 4096;
}

// ---- Inputs ----

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

// ---- Weights ----

// The 32 x 32 block at (row, column) of w [rows][columns], each row times its gain, into `to`.
inline void gather(const float* w, int rows, int columns, int row, int column, const float* gain, float* to) {
  for (int i = 0; i < kBlock; ++i, to += kBlock) {
    if (row + i >= rows) {
      store(to, v16{}), store(to + 16, v16{});
      continue;
    }
    const float* from = w + std::size_t(row + i) * columns + column;
    const float scale = gain == nullptr ? 1.0f : gain[row + i];
    if (column + kBlock <= columns) {
      store(to, load(from) * scale), store(to + 16, load(from + 16) * scale);
    } else {
      for (int n = 0; n < kBlock; ++n) to[n] = column + n < columns ? from[n] * scale : 0.0f;
    }
  }
}

// One row of blocks of layer l of member e.
template <class P>
void pack_hidden(const Plan<P>& p, const Net& net, int e, int l, int kb, bool forward, bool backward) {
  using T = typename P::T;
  const Shape& s = p.s;
  const int in = s.in(l), out = s.width(l), NB = l == s.depth ? p.OB : p.HB;
  const float* w = net.layers[l].w + std::size_t(e) * in * out;
  const float* gain = s.norm ? net.layers[l - 1].g + std::size_t(e) * in : nullptr;
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
    gather(w, in, out, kb * kBlock, nb * kBlock, gain, block);
    if (forward) P::store_block(block, fwd + (std::size_t(nb) * p.HB + kb) * kPitch);
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
  const auto part = [&](const float* rows, int n, int KB, T* to) {
    for (int nb = 0; nb < p.HB; ++nb)
      for (int kb = 0; kb < KB; ++kb) {
        for (int i = 0; i < kBlock; ++i) {
          const int k = kb * kBlock + i, row = k < n ? k : k - n;
          for (int c = 0; c < kBlock; ++c) {
            const int column = nb * kBlock + c;
            const bool there = column < s.hidden && (k < n || (P::split && k < 2 * n));
            block[i * kBlock + c] = there ? rows[std::size_t(row) * s.hidden + column] : 0.0f;
          }
        }
        P::store_block(block, to + (std::size_t(nb) * KB + kb) * kPitch);
      }
  };
  const float* group = w + std::size_t(s.obs) * s.hidden;
  if (forward) {
    part(w, s.obs, p.XB, fwd + p.fwd_x());
    part(group, s.group(), p.GB, fwd + p.fwd_group());
  }
  if (!backward) return;
  for (int nb = 0; nb < p.HB; ++nb) {
    for (int kb = 0; kb < p.AB; ++kb) {
      gather(group, s.act, s.hidden, kb * kBlock, nb * kBlock, nullptr, block);
      P::store_transposed(block, bwd + p.bwd_act() + (std::size_t(kb) * p.HB + nb) * kPitch);
    }
    for (int kb = 0; kb < blocks(s.obs); ++kb) {
      gather(w, s.obs, s.hidden, kb * kBlock, nb * kBlock, nullptr, block);
      P::store_transposed(block, bwd + p.bwd_obs() + (std::size_t(kb) * p.HB + nb) * kPitch);
    }
  }
}

// b' = b + c W, the shift of the layer before folded in.
template <class P>
void pack_bias(const Plan<P>& p, const Net& net, int e, int l) {
  const Shape& s = p.s;
  const int in = s.in(l), out = s.width(l);
  float* to = net.bias + p.bias(e, l);
  const int padded = (l == s.depth ? p.OB : p.HB) * kBlock;
  for (int n = 0; n < padded; ++n) to[n] = n < out ? net.layers[l].b[std::size_t(e) * out + n] : 0.0f;
  if (!s.norm || l == 0) return;
  const float* w = net.layers[l].w + std::size_t(e) * in * out;
  const float* c = net.layers[l - 1].c + std::size_t(e) * in;
  for (int i = 0; i < in; ++i, w += out) {
    const float shift = c[i];
    if (shift == 0.0f) continue;
    int n = 0;
    for (; n + 16 <= out; n += 16) store(to + n, load(to + n) + load(w + n) * shift);
    for (; n < out; ++n) to[n] += w[n] * shift;
  }
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
        for (int e = 0; e < s.members; ++e) {
          if (item++ % T == t) pack_first(p, c.net, e, c.forward, c.backward);
          for (int l = 1; l <= s.depth; ++l)
            for (int kb = 0; kb < p.HB; ++kb)
              if (item++ % T == t) pack_hidden(p, c.net, e, l, kb, c.forward, c.backward);
          if (c.forward)
            for (int l = 0; l <= s.depth; ++l)
              if (item++ % T == t) pack_bias(p, c.net, e, l);
        }
      },
      &context);
}

// ---- Forward ----

// x^ = (y - mean) / sqrt(var + eps) of every row of a row block; the padding of y is zero.
template <class P>
void normalise(const float* y, int HB, int width, typename P::T* out, float* rstd) {
  const float scale = 1.0f / width, padding = HB * kBlock - width;
  for (int r = 0; r < kBlock; ++r) {
    const float* row = y + r * kBlock;
    v16 s0{}, s1{};
    for (int c = 0; c < HB; ++c) s0 += load(row + c * kPitch), s1 += load(row + c * kPitch + 16);
    const float mean = sum(s0 + s1) * scale;
    v16 q0{}, q1{};
    for (int c = 0; c < HB; ++c) {
      const v16 a = load(row + c * kPitch) - mean, b = load(row + c * kPitch + 16) - mean;
      q0 += a * a, q1 += b * b;
    }
    const float var = (sum(q0 + q1) - padding * mean * mean) * scale;
    const float inverse = 1.0f / __builtin_sqrtf((var > 0.0f ? var : 0.0f) + kNormEps);
    if (rstd != nullptr) rstd[r] = inverse;
    for (int c = 0; c < HB; ++c)
      P::store_row(out + c * kPitch, r, (load(row + c * kPitch) - mean) * inverse,
                   (load(row + c * kPitch + 16) - mean) * inverse);
  }
}

template <class P, bool save>
void forward_rows(const Plan<P>& p, const Forward& f, int e, int rb0, int nrb, void* memory) {
  using T = typename P::T;
  const Shape& s = p.s;
  const Net& net = *f.net;
  const int row0 = rb0 * kBlock, rows = f.rows - row0 < nrb * kBlock ? f.rows - row0 : nrb * kBlock;
  const std::size_t wide = std::size_t(p.HB) * kPitch;
  const Saved<P> saved(p, f.rows, f.steps, f.saved);
  Bump own{static_cast<char*>(memory)};
  float* pre = own.take<float>(nrb * wide);
  float* y = s.norm ? own.take<float>(nrb * wide) : nullptr;
  float* out = own.take<float>(std::size_t(nrb) * p.OB * kPitch);
  float* z = own.take<float>(std::size_t(rows) * s.act);
  T* spare[2] = {own.take<T>(nrb * wide), own.take<T>(nrb * wide)};
  T* x = own.take<T>(std::size_t(nrb) * p.XB * kPitch);
  T* group = own.take<T>(std::size_t(nrb) * p.GB * kPitch);
  const T* w = static_cast<const T*>(net.forward) + e * p.fwd_size();
  const float* bias = net.bias;
  constexpr int kInputs = P::split ? 2 : 1;

  const bool keeper = save && e == 0;  // the inputs are the same for all members: one of them keeps them
  if (keeper) x = saved.x(rb0);
  pack_rows<P>(x, nrb, p.XB, rows, s.obs,
               [&](int r, int c) { return f.obs[std::size_t(row0 + r) * s.obs + c]; });
  P::template gemm<false>(nrb, p.HB, p.XB, x, p.XB * kPitch, kPitch, w + p.fwd_x(), p.XB * kPitch, kPitch,
                          nullptr, 0, 0, Plain{pre, wide, nullptr}, Last{kBlock, kBlock, last_of(kInputs * s.obs)});
  std::memcpy(z, f.act + std::size_t(row0) * s.act, sizeof(float) * rows * s.act);
  for (int step = 0; step < f.steps; ++step) {
    if (keeper) group = saved.group(step, rb0);
    pack_rows<P>(group, nrb, p.GB, rows, s.group(), [&](int r, int c) {
      if (c < s.act) return z[r * s.act + c];
      const int i = c - s.act;
      if (f.rollout && i == 0) return float(step) / float(f.steps);
      return f.extra[i] != nullptr ? f.extra[i][row0 + r] : f.extra_value[i];
    });
    const T* from = nullptr;
    for (int l = 0; l < s.depth; ++l) {
      T* to = save ? saved.act(e, l, step, rb0) : spare[l % 2];
      T* slope = save ? saved.slope(e, l, step, rb0) : nullptr;
      const float* b = bias + p.bias(e, l);
      const auto layer = [&](auto epilogue) {
        if (l == 0)
          P::template gemm<false>(nrb, p.HB, p.GB, group, p.GB * kPitch, kPitch, w + p.fwd_group(),
                                  p.GB * kPitch, kPitch, pre, wide, kPitch, epilogue,
                                  Last{kBlock, kBlock, last_of(kInputs * s.group())});
        else
          P::template gemm<false>(nrb, p.HB, p.HB, from, wide, kPitch, w + p.fwd(l), wide, kPitch, nullptr,
                                  0, 0, epilogue);
      };
      if (s.norm) {
        layer(NormForward<P, save>{y, slope, wide, b});
        for (int r = 0; r < nrb; ++r)
          normalise<P>(y + r * wide, p.HB, s.hidden, to + r * wide,
                       save ? saved.rstd(e, l, step, rb0 + r) : nullptr);
      } else {
        layer(HiddenForward<P, save>{to, slope, wide, b});
      }
      from = to;
    }
    P::template gemm<false>(nrb, p.OB, p.HB, from, wide, kPitch, w + p.fwd(s.depth), wide, kPitch, nullptr,
                            0, 0, Plain{out, std::size_t(p.OB) * kPitch, bias + p.bias(e, s.depth)},
                            Last{kBlock, last_of(s.out), kBlock});
    const auto output = [&](int r, int c) {
      return out[(std::size_t(r / kBlock) * p.OB + c / kBlock) * kPitch + r % kBlock * kBlock + c % kBlock];
    };
    if (f.rollout) {
      const float steps = float(f.steps);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < s.act; ++c) z[r * s.act + c] += output(r, c) / steps;
    } else {
      float* to = f.out + (std::size_t(e) * f.rows + row0) * s.out;
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < s.out; ++c) to[std::size_t(r) * s.out + c] = output(r, c);
    }
  }
  if (!f.rollout) return;
  if (save) std::memcpy(saved.z(row0), z, sizeof(float) * rows * s.act);
  float* to = f.out + std::size_t(row0) * s.act;
  for (int i = 0; i < rows * s.act; ++i) {
    const float v = z[i];
    to[i] = v < -1.0f ? -1.0f : v > 1.0f ? 1.0f : v;  // a NaN stays one
  }
}

template <class P>
void forward(Team& team, const Forward& f) {
  struct Context {
    Team& team;
    const Forward& f;
  } context{team, f};
  team.run(
      [](void* pointer, int t) noexcept {
        const Context& c = *static_cast<Context*>(pointer);
        const FlushDenormals flush;
        const Plan<P> p(c.f.net->shape);
        const int T = c.team.size(), E = p.s.members, RB = blocks(c.f.rows);
        const int chunk = chunk_rows(RB, E, T), chunks = (RB + chunk - 1) / chunk, items = E * chunks;
        P::begin();
        for (int i = items * t / T; i < items * (t + 1) / T; ++i) {
          const int rb0 = i % chunks * chunk, nrb = RB - rb0 < chunk ? RB - rb0 : chunk;
          if (c.f.saved != nullptr)
            forward_rows<P, true>(p, c.f, i / chunks, rb0, nrb, c.f.scratch.own[t]);
          else
            forward_rows<P, false>(p, c.f, i / chunks, rb0, nrb, c.f.scratch.own[t]);
        }
        P::end();
      },
      &context);
}

// ---- Backward ----

// dz of a row block from dx^ (float blocks), through LayerNorm and GELU.
template <class P>
void normalise_backward(const float* dx, const typename P::T* xhat, const typename P::T* slope,
                        const float* rstd, int HB, int width, typename P::T* natural,
                        typename P::T* paired, std::size_t column, float* total) {
  const float scale = 1.0f / width;
  for (int j = 0; j < kBlock / 2; ++j) {
    v16 mean[2], along[2];
    for (int i = 0; i < 2; ++i) {
      const int r = 2 * j + i;
      v16 a{}, b{};
      for (int c = 0; c < HB; ++c) {
        v16 x0, x1;
        P::load_row(xhat + c * kPitch, r, x0, x1);
        const v16 d0 = load(dx + c * kPitch + r * kBlock), d1 = load(dx + c * kPitch + r * kBlock + 16);
        a += d0 + d1;
        b += d0 * x0 + d1 * x1;
      }
      mean[i] = set(sum(a) * scale);
      along[i] = set(sum(b) * scale);
    }
    for (int c = 0; c < HB; ++c) {
      v16 d[4];
      for (int i = 0; i < 2; ++i) {
        const int r = 2 * j + i;
        v16 x0, x1, g0, g1;
        P::load_row(xhat + c * kPitch, r, x0, x1);
        P::load_row(slope + c * kPitch, r, g0, g1);
        const float* from = dx + c * kPitch + r * kBlock;
        d[2 * i] = (load(from) - mean[i] - x0 * along[i]) * rstd[r] * g0;
        d[2 * i + 1] = (load(from + 16) - mean[i] - x1 * along[i]) * rstd[r] * g1;
        P::store_row(natural + c * kPitch, r, d[2 * i], d[2 * i + 1]);
        if (total != nullptr) {
          store(total + c * kPitch + r * kBlock, d[2 * i]);
          store(total + c * kPitch + r * kBlock + 16, d[2 * i + 1]);
        }
      }
      if (paired != nullptr) P::store_pair(paired + c * column, j, d[0], d[1], d[2], d[3]);
    }
  }
}

template <class P>
void backward_rows(const Plan<P>& p, const Backward& b, const Deltas<P>& deltas, float* inputs, int e,
                   int rb0, int nrb, void* memory) {
  using T = typename P::T;
  const Shape& s = p.s;
  const Net& net = *b.net;
  const int row0 = rb0 * kBlock, rows = b.rows - row0 < nrb * kBlock ? b.rows - row0 : nrb * kBlock;
  const int XB = blocks(s.obs), RB = blocks(b.rows), S = b.steps;
  const std::size_t wide = std::size_t(p.HB) * kPitch, K = std::size_t(RB) * S;
  const Saved<P> saved(p, b.rows, S, b.saved);
  const bool weights = b.layers != nullptr;
  const bool summed = S > 1 && (weights || b.grad_obs != nullptr);
  Bump own{static_cast<char*>(memory)};
  float* dx = s.norm ? own.take<float>(nrb * wide) : nullptr;
  float* total = summed ? own.take<float>(nrb * wide) : nullptr;
  float* dact = own.take<float>(std::size_t(nrb) * p.AB * kPitch);
  float* dobs = own.take<float>(std::size_t(nrb) * XB * kPitch);
  float* dz = own.take<float>(std::size_t(rows) * s.act);  // rollout: of z
  T* natural[2] = {own.take<T>(nrb * wide), own.take<T>(nrb * wide)};
  T* last = own.take<T>(std::size_t(nrb) * p.OB * kPitch);
  const T* w = static_cast<const T*>(net.backward) + e * p.bwd_size();

  if (b.rollout)
    for (int i = 0; i < rows * s.act; ++i) {
      const float z = saved.z(row0)[i];
      dz[i] = z < -1.0f || z > 1.0f ? 0.0f : b.grad[std::size_t(row0) * s.act + i];
    }
  for (int step = S - 1; step >= 0; --step) {
    const std::size_t k0 = std::size_t(step) * RB + rb0;
    // The gradient of the last layer's output, in both layouts.
    for (int rb = 0; rb < nrb; ++rb)
      for (int ob = 0; ob < p.OB; ++ob) {
        alignas(64) float block[kArea];
        for (int r = 0; r < kBlock; ++r)
          for (int c = 0; c < kBlock; ++c) {
            const int row = rb * kBlock + r, column = ob * kBlock + c;
            float g = 0.0f;
            if (row < rows && column < s.out)
              g = b.rollout ? dz[row * s.act + column] / float(S)
                            : b.grad[(std::size_t(e) * b.rows + row0 + row) * s.out + column];
            block[r * kBlock + c] = g;
          }
        T* to = last + (std::size_t(rb) * p.OB + ob) * kPitch;
        for (int r = 0; r < kBlock; ++r)
          P::store_row(to, r, load(block + r * kBlock), load(block + r * kBlock + 16));
        if (weights) P::store_block(block, deltas.layer(e, s.depth) + (ob * K + k0 + rb) * kPitch);
      }
    const T* from = last;
    for (int l = s.depth; l >= 1; --l) {
      T* to = natural[l % 2];
      const int KB = l == s.depth ? p.OB : p.HB;
      const T* slope = saved.slope(e, l - 1, step, rb0);
      T* paired = weights ? deltas.layer(e, l - 1) + k0 * kPitch : nullptr;
      float* sums = l == 1 ? total : nullptr;
      const auto layer = [&](auto epilogue) {
        P::template gemm<false>(nrb, p.HB, KB, from, std::size_t(KB) * kPitch, kPitch, w + p.bwd(l),
                                std::size_t(KB) * kPitch, kPitch, nullptr, 0, 0, epilogue,
                                Last{kBlock, kBlock, l == s.depth ? last_of(s.out) : kBlock});
      };
      if (s.norm) {
        const T* xhat = saved.act(e, l - 1, step, rb0);
        layer(NormBackward<P>{{dx, wide, nullptr}, xhat, slope});
        for (int r = 0; r < nrb; ++r)
          normalise_backward<P>(dx + r * wide, xhat + r * wide, slope + r * wide,
                                saved.rstd(e, l - 1, step, rb0 + r), p.HB, s.hidden, to + r * wide,
                                paired == nullptr ? nullptr : paired + r * kPitch, K * kPitch, nullptr);
      } else {
        layer(HiddenBackward<P>{slope, to, wide, paired, K * kPitch, sums, step == S - 1});
      }
      from = to;
    }
    const auto to_inputs = [&](const T* dz1, int n, std::size_t at, float* to) {
      P::template gemm<false>(nrb, blocks(n), p.HB, dz1, wide, kPitch, w + at, wide, kPitch, nullptr, 0, 0,
                              Plain{to, std::size_t(blocks(n)) * kPitch, nullptr}, Last{kBlock, last_of(n), kBlock});
    };
    if (b.grad_act != nullptr || (b.rollout && step > 0)) to_inputs(from, s.act, p.bwd_act(), dact);
    if (b.rollout && (b.grad_act != nullptr || step > 0))
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < s.act; ++c)
          dz[r * s.act + c] +=
              dact[(std::size_t(r / kBlock) * p.AB + c / kBlock) * kPitch + r % kBlock * kBlock + c % kBlock];
    if (step > 0) continue;
    // Layer 1's dz summed over the steps: what the observation's part of its weights, and the
    // observation itself, see.
    T* sum_natural = const_cast<T*>(from);
    if (summed) {
      sum_natural = natural[from == natural[0] ? 1 : 0];
      for (int rb = 0; rb < nrb; ++rb)
        for (int c = 0; c < p.HB; ++c) {
          const float* block = total + rb * wide + c * kPitch;
          for (int r = 0; r < kBlock; ++r)
            P::store_row(sum_natural + rb * wide + c * kPitch, r, load(block + r * kBlock),
                         load(block + r * kBlock + 16));
          if (weights) P::store_block(block, deltas.sum(e) + (std::size_t(c) * RB + rb0 + rb) * kPitch);
        }
    }
    if (b.grad_obs != nullptr) {
      to_inputs(sum_natural, s.obs, p.bwd_obs(), dobs);
      float* to = inputs + (std::size_t(e) * b.rows + row0) * s.obs;
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < s.obs; ++c)
          to[std::size_t(r) * s.obs + c] =
              dobs[(std::size_t(r / kBlock) * XB + c / kBlock) * kPitch + r % kBlock * kBlock + c % kBlock];
    }
    if (b.grad_act != nullptr) {
      float* to = inputs + std::size_t(s.members) * b.rows * s.obs + (std::size_t(e) * b.rows + row0) * s.act;
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < s.act; ++c)
          to[std::size_t(r) * s.act + c] =
              b.rollout ? dz[r * s.act + c]
                        : dact[(std::size_t(r / kBlock) * p.AB + c / kBlock) * kPitch + r % kBlock * kBlock + c % kBlock];
    }
  }
}

// A part of a weight gradient: `count` row blocks from `fb`, of layer `l` of member `e`.
struct WeightItem {
  int e, l;
  bool obs_part;
  int fb, count;
};

// Calls visit(item) for every part, in order.
template <class P, class Visit>
void weight_items(const Plan<P>& p, Visit visit) {
  const Shape& s = p.s;
  for (int e = 0; e < s.members; ++e)
    for (int l = s.depth; l >= 0; --l) {
      const auto part = [&](bool obs_part, int n) {
        for (int fb = 0; fb < n; fb += kGroup)
          visit(WeightItem{e, l, obs_part, fb, n - fb < kGroup ? n - fb : kGroup});
      };
      if (l == 0) part(true, blocks(s.obs));
      part(false, l == 0 ? blocks(s.group()) : p.HB);
    }
}

template <class P>
void weight_gradient(const Plan<P>& p, const Backward& b, const Deltas<P>& deltas, const float* all_sums,
                     const WeightItem& item, void* memory) {
  using T = typename P::T;
  const Shape& s = p.s;
  const int e = item.e, l = item.l, out = s.width(l), NB = l == s.depth ? p.OB : p.HB;
  const std::size_t RB = blocks(b.rows), K = item.obs_part ? RB : RB * b.steps;
  const Saved<P> saved(p, b.rows, b.steps, b.saved);
  Bump own{static_cast<char*>(memory)};
  T* turned = own.take<T>(std::size_t(kGroup) * kSumChunk * kPitch);
  v16(*along)[2] = reinterpret_cast<v16(*)[2]>(own.take<float>(kGroup * kBlock * 2 * 16));
  const float* sums = all_sums + p.bias(e, l);

  // The left operand, to be transposed: blocks [k][fb] of what layer l read.
  const T* left = item.obs_part ? saved.x(0) : l == 0 ? saved.group(0, 0) : saved.act(e, l - 1, 0, 0);
  const std::size_t left_k = std::size_t(item.obs_part ? p.XB : l == 0 ? p.GB : p.HB) * kPitch;
  left += std::size_t(item.fb) * kPitch;
  const T* right = item.obs_part && b.steps > 1 ? deltas.sum(e) : deltas.layer(e, l);
  const LayerGrad& grad = b.layers[l];
  const int rows = l > 0 ? s.hidden : item.obs_part ? s.obs : s.group();
  const std::size_t start = (std::size_t(e) * s.in(l) + (l == 0 && !item.obs_part ? s.obs : 0) +
                             std::size_t(item.fb) * kBlock) * out;
  Gradient epilogue{grad.w + start, rows - item.fb * kBlock, out, false, nullptr, sums, nullptr, nullptr, along};
  const int beyond = epilogue.rows - (item.count - 1) * kBlock;
  const Last last{beyond < kBlock ? beyond : kBlock, last_of(out), kBlock};
  const bool folded = s.norm && l > 0;
  const std::size_t unit = std::size_t(e) * s.hidden + std::size_t(item.fb) * kBlock;
  if (folded) {
    epilogue.gain = b.net->layers[l - 1].g + unit;
    epilogue.shift = b.net->layers[l - 1].c + unit;
    std::memset(along, 0, sizeof(float) * kGroup * kBlock * 2 * 16);
  }

  for (std::size_t k = 0; k < K; k += kSumChunk) {
    const int n = static_cast<int>(K - k < kSumChunk ? K - k : kSumChunk);
    epilogue.add = k > 0;
    if (folded && k + kSumChunk >= K) epilogue.weights = b.net->layers[l].w + start;
    const T* a = left + k * left_k;
    if constexpr (P::transposes) {
      for (int i = 0; i < item.count; ++i)
        for (int q = 0; q < n; ++q)
          P::transpose(a + q * left_k + std::size_t(i) * kPitch, turned + (std::size_t(i) * kSumChunk + q) * kPitch);
      P::template gemm<false>(item.count, NB, n, turned, std::size_t(kSumChunk) * kPitch, kPitch,
                              right + k * kPitch, K * kPitch, kPitch, nullptr, 0, 0, epilogue, last);
    } else {
      P::template gemm<true>(item.count, NB, n, a, kPitch, left_k, right + k * kPitch, K * kPitch, kPitch,
                             nullptr, 0, 0, epilogue, last);
    }
  }
  for (int i = 0; folded && i < item.count * kBlock && item.fb * kBlock + i < s.hidden; ++i) {
    b.layers[l - 1].g[unit + i] = sum(along[i][0]);
    b.layers[l - 1].c[unit + i] = sum(along[i][1]);
  }
}

template <class P>
void backward(Team& team, const Backward& b) {
  struct Context {
    Team& team;
    const Backward& b;
    std::atomic<int> next{0};  // part of the weights' gradients
  } context{team, b};
  team.run(
      [](void* pointer, int t) noexcept {
        Context& c = *static_cast<Context*>(pointer);
        const Backward& b = c.b;
        const FlushDenormals flush;
        const Plan<P> p(b.net->shape);
        const Shape& s = p.s;
        const int T = c.team.size(), E = s.members, RB = blocks(b.rows);
        const Deltas<P> deltas(p, b.rows, b.steps, b.scratch.shared);
        const Tail<P> tail(p, deltas, b.rows, b.scratch.shared);
        float* inputs = tail.inputs;
        const int chunk = chunk_rows(RB, E, T), chunks = (RB + chunk - 1) / chunk, items = E * chunks;
        P::begin();
        for (int i = items * t / T; i < items * (t + 1) / T; ++i) {
          const int rb0 = i % chunks * chunk, nrb = RB - rb0 < chunk ? RB - rb0 : chunk;
          backward_rows<P>(p, b, deltas, inputs, i / chunks, rb0, nrb, b.scratch.own[t]);
        }
        c.team.barrier();
        if (b.layers != nullptr) {
          // Column sums of dz: the biases' gradients, and what a folded shift needs.
          const std::size_t K = std::size_t(RB) * b.steps;
          for (int e = 0, item = 0; e < E; ++e)
            for (int l = 0; l <= s.depth; ++l)
              for (int nb = 0; nb < (l == s.depth ? p.OB : p.HB); ++nb, ++item) {
                if (item % T != t) continue;
                float* to = tail.sums + p.bias(e, l) + nb * kBlock;
                P::column_sums(deltas.layer(e, l) + nb * K * kPitch, static_cast<int>(K), to);
                const int n = s.width(l) - nb * kBlock;
                std::memcpy(b.layers[l].b + std::size_t(e) * s.width(l) + nb * kBlock, to,
                            sizeof(float) * (n < kBlock ? n : kBlock));
              }
          if (s.norm) c.team.barrier();
          // Whoever is free takes the next part. Which thread that is changes no bit: every part writes
          // its own entries, in its own order.
          int index = 0, mine = c.next.fetch_add(1, std::memory_order_relaxed);
          weight_items(p, [&](const WeightItem& item) {
            if (index++ != mine) return;
            weight_gradient(p, b, deltas, tail.sums, item, b.scratch.own[t]);
            mine = c.next.fetch_add(1, std::memory_order_relaxed);
          });
        }
        P::end();
        const auto members = [&](float* to, const float* from, int n) {
          if (to == nullptr) return;
          const std::size_t size = std::size_t(b.rows) * n;
          for (std::size_t i = size * t / T; i < size * (t + 1) / T; ++i) {
            float total = from[i];
            for (int e = 1; e < E; ++e) total += from[e * size + i];
            to[i] = total;
          }
        };
        members(b.grad_obs, inputs, s.obs);
        members(b.grad_act, inputs + std::size_t(E) * b.rows * s.obs, s.act);
      },
      &context);
}

// ---- The table ----

template <class P>
Ops table(Isa isa, Precision precision) {
  using T = typename P::T;
  Ops o{};
  o.isa = isa;
  o.precision = precision;
  o.forward_bytes = [](const Shape& s) { return sizeof(T) * Plan<P>(s).fwd_size() * s.members; };
  o.backward_bytes = [](const Shape& s) { return sizeof(T) * Plan<P>(s).bwd_size() * s.members; };
  o.bias_floats = [](const Shape& s) { return Plan<P>(s).bias_size(); };
  o.saved_bytes = [](const Shape& s, int rows, int steps) {
    const Plan<P> p(s);
    return Saved<P>(p, rows, steps).bytes();
  };
  o.shared_bytes = shared_bytes<P>;
  o.own_bytes = own_bytes<P>;
  o.pack = pack<P>;
  o.forward = forward<P>;
  o.backward = backward<P>;
  o.adam = adam<P>;
  return o;
}

}  // namespace
}  // namespace sorl::train
