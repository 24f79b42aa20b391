// The optimiser step: clip by the global norm, Adam, and the EMA of the targets, float32 in every precision.
// Included by the instruction sets' files only.
#pragma once

#include "../denormals.hpp"
#include "train.hpp"
#include "vec.hpp"

namespace sorl::train {
namespace {

// Each chunk's sum of squares is its own, and they are added in order: the same norm for any number of
// threads. Then one pass over everything else.
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
        const auto each = [&](auto visit) {
          std::int64_t chunk = 0;
          for (int i = 0; i < a.tensors; ++i)
            for (std::int64_t at = 0; at < a.sizes[i]; at += kAdamChunk, ++chunk)
              if (chunk * T / all == t)
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
        each([&](std::int64_t, int i, std::int64_t at, std::int64_t n) {
          const float* g = a.grads[0][i] + at;
          const float* h = a.sums > 1 ? a.grads[1][i] + at : nullptr;
          float *p = a.param[i] + at, *m = a.first[i] + at, *v = a.second[i] + at;
          float* target = a.target != nullptr ? a.target[i] + at : nullptr;
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
        });
      },
      &context);
}

}  // namespace
}  // namespace sorl::train
