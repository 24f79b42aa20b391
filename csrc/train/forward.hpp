// The network forward, over all Euler steps, and what it keeps for the backward.
//
// Included by the instruction sets' files only; P is mlp.hpp's policy.
#pragma once

#include <cstring>

#include "../denormals.hpp"
#include "epilogues.hpp"
#include "pack.hpp"
#include "plan.hpp"
#include "vec.hpp"

namespace sorl::train {
namespace {

constexpr float kNormEps = 1e-6f;

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
  Bump own(static_cast<char*>(memory));
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
  if (s.act > 0) std::memcpy(z, f.act + std::size_t(row0) * s.act, sizeof(float) * rows * s.act);
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

}  // namespace
}  // namespace sorl::train
