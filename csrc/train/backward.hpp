// The network backward through all Euler steps: gradients of its inputs, then of its weights.
//
// Included by the instruction sets' files only; P is mlp.hpp's policy.
#pragma once

#include <atomic>
#include <cstring>

#include "../denormals.hpp"
#include "epilogues.hpp"
#include "plan.hpp"
#include "vec.hpp"

namespace sorl::train {
namespace {

// dz of a row block from dx^ (float blocks), through LayerNorm and GELU.
template <class P>
void normalise_backward(const float* dx, const typename P::T* xhat, const typename P::T* slope,
                        const float* rstd, int HB, int width, typename P::T* natural,
                        typename P::T* paired, std::size_t column) {
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
  Bump own(static_cast<char*>(memory));
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
                                paired == nullptr ? nullptr : paired + r * kPitch, K * kPitch);
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
  Bump own(static_cast<char*>(memory));
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

}  // namespace
}  // namespace sorl::train
