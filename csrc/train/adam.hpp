// The optimiser step: clip by the global norm, Adam, and the EMA of the targets, float32 in every precision.
// Included by the instruction sets' files only.
#pragma once

#include "../denormals.hpp"
#include "train.hpp"
#include "vec.hpp"

namespace sorl::train {
namespace {

// Elements that are fetched ahead: beyond the ends of pages, where the processor stops.
constexpr int kAdamAhead = 512;

// The layer l >= 1 of a network whose weights tensor i is, or 0.
inline int layer_of(const Adam& a, const Packing& packing, int i) {
  for (int l = 1; l <= packing.net->shape.depth; ++l) {
    const float* w = packing.net->layers[l].w;
    if (w == a.param[i] || (a.target != nullptr && w == a.target[i])) return l;
  }
  return 0;
}

// Rows of blocks of a layer's weights [E, in, out], counted through all members.
struct RowBlocks {
  int in, out, members, per_member;
  RowBlocks(const Shape& s, int l) : in(s.in(l)), out(s.width(l)), members(s.members), per_member(blocks(in)) {}
  int count() const { return members * per_member; }
  std::int64_t start(int b) const { return (std::int64_t(b / per_member) * in + b % per_member * kBlock) * out; }
  std::int64_t end(int b) const { return b % per_member + 1 < per_member ? start(b) + std::int64_t(kBlock) * out
                                                                       : std::int64_t(b / per_member + 1) * in * out; }
};

// Each chunk's sum of squares is its own, and they are added in order: the same norm for any number of
// threads. Then one pass over everything else, in which each row of blocks of weights is packed as soon as its
// numbers are there.
template <class P>
void adam(Team& team, const Adam& a) {
  struct Context {
    Team& team;
    const Adam& a;
  } context{team, a};
  team.run(
      [](void* pointer, int t) noexcept {
        const Context& c = *static_cast<Context*>(pointer);
        const Adam& a = c.a;
        const FlushDenormals flush;
        const int T = c.team.size();
        std::int64_t all = 0;
        for (int i = 0; i < a.tensors; ++i) all += (a.sizes[i] + kAdamChunk - 1) / kAdamChunk;
        const auto owner = [&](std::int64_t chunk) { return static_cast<int>(chunk * T / all); };
        const auto each = [&](auto visit) {
          std::int64_t chunk = 0;
          for (int i = 0; i < a.tensors; ++i)
            for (std::int64_t at = 0; at < a.sizes[i]; at += kAdamChunk, ++chunk)
              if (owner(chunk) == t)
                visit(chunk, i, at, a.sizes[i] - at < kAdamChunk ? a.sizes[i] - at : kAdamChunk);
        };
        each([&](std::int64_t chunk, int i, std::int64_t at, std::int64_t n) {
          const float* g = a.grads[0][i] + at;
          const float* h = a.sums > 1 ? a.grads[1][i] + at : nullptr;
          v16 s{};
          std::int64_t k = 0;
          for (; k + 16 <= n; k += 16) {
            v16 x = load(g + k);
            if (h != nullptr) x += load(h + k);
            s += x * x;
          }
          double rest = 0;
          for (; k < n; ++k) {
            const float x = h != nullptr ? g[k] + h[k] : g[k];
            rest += double(x) * x;
          }
          a.partial[chunk] = sum(s) + rest;
        });
        c.team.barrier();
        double squares = 0;
        for (std::int64_t i = 0; i < all; ++i) squares += a.partial[i];
        const double norm = __builtin_sqrt(squares);
        if (t == 0) *a.norm = float(norm);
        // A norm that is not a number must reach every parameter, as it does in the definition.
        const float scale = norm <= a.clip_norm ? 1.0f : float(a.clip_norm / norm);
        const double correction1 = 1 - __builtin_pow(a.b1, double(a.step));
        const double correction2 = 1 - __builtin_pow(a.b2, double(a.step));
        const float rate = float(a.lr / correction1), inverse_root = float(1 / __builtin_sqrt(correction2));
        const float rest1 = float(1 - a.b1), keep2 = float(a.b2), rest2 = float(1 - a.b2);
        const float eps = float(a.eps), tau = float(a.tau);
        const auto update = [&](int i, std::int64_t at, std::int64_t n) {
          const float* g = a.grads[0][i] + at;
          const float* h = a.sums > 1 ? a.grads[1][i] + at : nullptr;
          float *p = a.param[i] + at, *m = a.first[i] + at, *v = a.second[i] + at;
          float* target = a.target != nullptr ? a.target[i] + at : nullptr;
          float* follows = target != nullptr ? target : p;
          const auto step = [&](auto x, auto& pv, auto& mv, auto& vv, auto& tv, auto sqrt) {
            x *= scale;
            mv += (x - mv) * rest1;
            vv = vv * keep2 + x * x * rest2;
            if (a.ema_before) tv += (pv - tv) * tau;
            pv -= rate * mv / (sqrt(vv) * inverse_root + eps);
            if (!a.ema_before) tv += (pv - tv) * tau;
          };
          std::int64_t k = 0;
          for (; k + 16 <= n; k += 16) {
            prefetch<Fetch::read>(g + k + kAdamAhead);
            for (float* next : {p, m, v, follows}) prefetch<Fetch::write>(next + k + kAdamAhead);
            v16 x = load(g + k), pv = load(p + k), mv = load(m + k), vv = load(v + k), tv{};
            if (target != nullptr) tv = load(target + k);
            if (h != nullptr) x += load(h + k);
            step(x, pv, mv, vv, tv, [](v16 y) { return root(y); });
            store(p + k, pv), store(m + k, mv), store(v + k, vv);
            if (target != nullptr) store(target + k, tv);
          }
          for (; k < n; ++k) {
            float none = 0.0f;
            step(h != nullptr ? g[k] + h[k] : g[k], p[k], m[k], v[k], target != nullptr ? target[k] : none,
                 [](float y) { return __builtin_sqrtf(y); });
          }
        };
        if (a.packed == 0) {
          each([&](std::int64_t, int i, std::int64_t at, std::int64_t n) { update(i, at, n); });
          return;
        }
        // First what is no matrix: a matrix is packed with the gains and shifts before it.
        const auto packings = [&](int i, auto visit) {
          for (int k = 0; k < a.packed; ++k)
            if (const int l = layer_of(a, a.packings[k], i)) visit(a.packings[k], l);
        };
        const auto matrix = [&](int i) {
          bool any = false;
          packings(i, [&](const Packing&, int) { any = true; });
          return any;
        };
        const auto pack = [&](const Packing& packing, int l, int b) {
          const int each = blocks(packing.net->shape.in(l));
          packing.ops->pack_rows(*packing.net, b / each, l, b % each, packing.backward);
        };
        each([&](std::int64_t, int i, std::int64_t at, std::int64_t n) {
          if (!matrix(i)) update(i, at, n);
        });
        c.team.barrier();
        int tensor = -1;
        std::int64_t begin = 0;
        each([&](std::int64_t, int i, std::int64_t at, std::int64_t n) {
          if (!matrix(i)) return;
          if (i != tensor) tensor = i, begin = at;
          update(i, at, n);
          packings(i, [&](const Packing& packing, int l) {
            const RowBlocks rows(packing.net->shape, l);
            for (int b = 0; b < rows.count(); ++b)  // those that end in this chunk, and begin with this thread's
              if (rows.end(b) > at && rows.end(b) <= at + n && rows.start(b) >= begin) pack(packing, l, b);
          });
        });
        c.team.barrier();
        // Rows of blocks of which two threads had a part, then what needs all of a layer.
        int item = 0;
        std::int64_t chunk = 0;
        for (int i = 0; i < a.tensors; chunk += (a.sizes[i++] + kAdamChunk - 1) / kAdamChunk)
          packings(i, [&](const Packing& packing, int l) {
            const RowBlocks rows(packing.net->shape, l);
            for (int b = 0; b < rows.count(); ++b)
              if (owner(chunk + rows.start(b) / kAdamChunk) != owner(chunk + (rows.end(b) - 1) / kAdamChunk))
                if (item++ % T == t) pack(packing, l, b);
          });
        c.team.barrier();
        for (int k = 0; k < a.packed; ++k)
          for (int i = 0; i < rest_items(a.packings[k].net->shape); ++i)
            if (item++ % T == t) a.packings[k].ops->pack_rest(*a.packings[k].net, i, a.packings[k].backward);
      },
      &context);
}

}  // namespace
}  // namespace sorl::train
