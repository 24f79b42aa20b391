// Where the network's weights, activations and gradients lie in the memory of a forward and a backward.
// All offsets count elements of T or floats.
//
// Included by the instruction sets' files only; P is mlp.hpp's policy.
#pragma once

#include "../pages.hpp"
#include "train.hpp"

namespace sorl::train {
namespace {

constexpr int kMaxChunk = 4;  // row blocks that go through the network together, at most
constexpr int kGroup = 4;     // blocks of a weight gradient's rows that one work item covers
constexpr int kSumChunk = 16;  // blocks of rows that it sums at a time

constexpr std::size_t align64(std::size_t n) { return (n + 63) / 64 * 64; }

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
  // Behind the biases, with LayerNorm only: what the shifts of each row of blocks of layer l >= 1 add to its bias.
  std::size_t shifts(int e, int l, int kb) const {
    const std::size_t columns = std::size_t(HB > OB ? HB : OB) * kBlock;
    return bias_size() + ((std::size_t(e) * s.depth + l - 1) * HB + kb) * columns;
  }
  std::size_t bias_floats() const { return s.norm ? shifts(s.members, 1, 0) : bias_size(); }
};

// What forward keeps for backward.
template <class P>
struct Saved {
  using T = typename P::T;
  const Plan<P>& p;
  std::size_t RB, S;
  std::uintptr_t base;  // a number: of no memory there are sizes alone
  Saved(const Plan<P>& plan, int rows, int steps, const void* memory = nullptr)
      : p(plan), RB(blocks(rows)), S(steps), base(reinterpret_cast<std::uintptr_t>(memory)) {}
  T* elements(std::size_t n) const { return reinterpret_cast<T*>(base + n * kPitch * sizeof(T)); }
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
    return reinterpret_cast<std::uintptr_t>(z(RB * kBlock)) - base;
  }
};

// Row blocks of a member that one work item takes: so many that every thread is busy if there are
// enough, and no more than stay in the second-level cache.
inline int chunk_rows(int RB, int members, int threads) {
  int chunks = (RB + kMaxChunk - 1) / kMaxChunk;
  while (chunks < RB && members * chunks % threads != 0) ++chunks;
  return (RB + chunks - 1) / chunks;
}

template <class P>
std::size_t own_bytes(const Shape& shape) {
  using T = typename P::T;
  const Plan<P> p(shape);
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
    const auto base = reinterpret_cast<std::uintptr_t>(shared);  // a number: of no memory there are sizes alone
    inputs = reinterpret_cast<float*>(base + start);
    sums = inputs + align64(n);
    bytes = start + sizeof(float) * (align64(n) + p.bias_size());
  }
};

template <class P>
std::size_t shared_bytes(const Shape& shape, int rows, int steps) {
  const Plan<P> p(shape);
  const Deltas<P> d(p, rows, steps, nullptr);
  return Tail<P>(p, d, rows, nullptr).bytes + 4096;
}

}  // namespace
}  // namespace sorl::train
