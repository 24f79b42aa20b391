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

// One thread's share of a step. Tensors are cut into chunks, of which each thread has a run.
class AdamThread {
 public:
  AdamThread(Team& team, const Adam& a, int t) : team_(team), a_(a), t_(t) {
    for (int i = 0; i < a.tensors; ++i) all_ += chunks(i);
    const double correction1 = 1 - __builtin_pow(a.b1, double(a.step));
    const double correction2 = 1 - __builtin_pow(a.b2, double(a.step));
    rate_ = float(a.lr / correction1), inverse_root_ = float(1 / __builtin_sqrt(correction2));
    rest1_ = float(1 - a.b1), keep2_ = float(a.b2), rest2_ = float(1 - a.b2);
    eps_ = float(a.eps), tau_ = float(a.tau);
  }

  // Each chunk's sum of squares is its own, and they are added in order: the same norm for any number of threads.
  // A norm that is not a number must reach every parameter, as it does in the definition.
  void step() {
    if (a_.clip_norm == __builtin_inf()) {  // known without the norm, unless that is not a number
      pass<true>(1.0f);
      const double norm = total();
      if (norm != norm) pass<false>(float(norm));
      return;
    }
    each([&](std::int64_t chunk, int i, std::int64_t at, std::int64_t n) { a_.partial[chunk] = squares(i, at, n); });
    const double norm = total();
    pass<false>(norm <= a_.clip_norm ? 1.0f : float(a_.clip_norm / norm));
  }

 private:
  std::int64_t chunks(int i) const { return (a_.sizes[i] + kAdamChunk - 1) / kAdamChunk; }
  int owner(std::int64_t chunk) const { return static_cast<int>(chunk * team_.size() / all_); }

  // Calls visit(chunk, tensor, first element, number of elements) for this thread's chunks.
  template <class Visit>
  void each(Visit visit) const {
    std::int64_t chunk = 0;
    for (int i = 0; i < a_.tensors; ++i)
      for (std::int64_t at = 0; at < a_.sizes[i]; at += kAdamChunk, ++chunk)
        if (owner(chunk) == t_) visit(chunk, i, at, a_.sizes[i] - at < kAdamChunk ? a_.sizes[i] - at : kAdamChunk);
  }

  // The norm, when all threads have written their sums.
  double total() const {
    team_.barrier();
    double squares = 0;
    for (std::int64_t i = 0; i < all_; ++i) squares += a_.partial[i];
    const double norm = __builtin_sqrt(squares);
    if (t_ == 0) *a_.norm = float(norm);
    return norm;
  }

  // Calls visit(element, gradient) for vectors of 16, then rest(element, gradient) for what is left.
  template <class Visit, class Rest>
  static void gradients(const float* g, const float* h, std::int64_t n, Visit visit, Rest rest) {
    std::int64_t k = 0;
    for (; k + 16 <= n; k += 16) visit(k, h != nullptr ? load(g + k) + load(h + k) : load(g + k));
    for (; k < n; ++k) rest(k, h != nullptr ? g[k] + h[k] : g[k]);
  }

  const float* grad(int list, int i, std::int64_t at) const {
    return list < a_.sums ? a_.grads[list][i] + at : nullptr;
  }

  double squares(int i, std::int64_t at, std::int64_t n) const {
    v16 s{};
    double few = 0;
    gradients(grad(0, i, at), grad(1, i, at), n, [&](std::int64_t, v16 x) { s += x * x; },
              [&](std::int64_t, float x) { few += double(x) * x; });
    return sum(s) + few;
  }

  // Adam and the target, of some elements of tensor i; returns the gradients' squares, if they are asked for.
  template <bool norm>
  double update(int i, std::int64_t at, std::int64_t n, float scale) const {
    const float *g = grad(0, i, at), *h = grad(1, i, at);
    float *p = a_.param[i] + at, *m = a_.first[i] + at, *v = a_.second[i] + at;
    float* target = a_.target != nullptr ? a_.target[i] + at : nullptr;
    float* follows = target != nullptr ? target : p;
    const auto step = [&](auto x, auto& pv, auto& mv, auto& vv, auto& tv, auto sqrt) {
      x *= scale;
      mv += (x - mv) * rest1_;
      vv = vv * keep2_ + x * x * rest2_;
      if (a_.ema_before) tv += (pv - tv) * tau_;
      pv -= rate_ * mv / (sqrt(vv) * inverse_root_ + eps_);
      if (!a_.ema_before) tv += (pv - tv) * tau_;
    };
    v16 s{};
    double few = 0;
    gradients(
        g, h, n,
        [&](std::int64_t k, v16 x) {
          prefetch<Fetch::read>(g + k + kAdamAhead);
          for (float* next : {p, m, v, follows}) prefetch<Fetch::write>(next + k + kAdamAhead);
          if constexpr (norm) s += x * x;
          v16 pv = load(p + k), mv = load(m + k), vv = load(v + k), tv{};
          if (target != nullptr) tv = load(target + k);
          step(x, pv, mv, vv, tv, [](v16 y) { return root(y); });
          store(p + k, pv), store(m + k, mv), store(v + k, vv);
          if (target != nullptr) store(target + k, tv);
        },
        [&](std::int64_t k, float x) {
          if constexpr (norm) few += double(x) * x;
          float none = 0.0f;
          step(x, p[k], m[k], v[k], target != nullptr ? target[k] : none, [](float y) { return __builtin_sqrtf(y); });
        });
    return sum(s) + few;
  }

  // Calls visit(network, layer) for the networks of which tensor i is a layer's weights.
  template <class Visit>
  void packings(int i, Visit visit) const {
    for (int k = 0; k < a_.packed; ++k)
      if (const int l = layer_of(a_, a_.packings[k], i)) visit(a_.packings[k], l);
  }

  static void pack(const Packing& packing, int l, int b) {
    const int each = blocks(packing.net->shape.in(l));
    packing.ops->pack_rows(*packing.net, b / each, l, b % each, packing.backward);
  }

  // Updates everything; each row of blocks of weights is packed as soon as its numbers are there.
  template <bool norm>
  void pass(float scale) const {
    const auto part = [&](std::int64_t chunk, int i, std::int64_t at, std::int64_t n) {
      const double squares = update<norm>(i, at, n, scale);
      if constexpr (norm) a_.partial[chunk] = squares;
    };
    if (a_.packed == 0) return each(part);
    // First what is no matrix: a matrix is packed with the gains and shifts before it.
    const auto matrix = [&](int i) {
      bool any = false;
      packings(i, [&](const Packing&, int) { any = true; });
      return any;
    };
    each([&](std::int64_t chunk, int i, std::int64_t at, std::int64_t n) {
      if (!matrix(i)) part(chunk, i, at, n);
    });
    team_.barrier();
    int tensor = -1;
    std::int64_t begin = 0;
    each([&](std::int64_t chunk, int i, std::int64_t at, std::int64_t n) {
      if (!matrix(i)) return;
      if (i != tensor) tensor = i, begin = at;
      part(chunk, i, at, n);
      packings(i, [&](const Packing& packing, int l) {
        const RowBlocks rows(packing.net->shape, l);
        for (int b = 0; b < rows.count(); ++b)  // those that end in this chunk, and begin with this thread's
          if (rows.end(b) > at && rows.end(b) <= at + n && rows.start(b) >= begin) pack(packing, l, b);
      });
    });
    team_.barrier();
    // Rows of blocks of which two threads had a part, then what needs all of a layer.
    int item = 0;
    std::int64_t chunk = 0;
    for (int i = 0; i < a_.tensors; chunk += chunks(i++))
      packings(i, [&](const Packing& packing, int l) {
        const RowBlocks rows(packing.net->shape, l);
        for (int b = 0; b < rows.count(); ++b)
          if (owner(chunk + rows.start(b) / kAdamChunk) != owner(chunk + (rows.end(b) - 1) / kAdamChunk))
            if (item++ % team_.size() == t_) pack(packing, l, b);
      });
    team_.barrier();
    for (int k = 0; k < a_.packed; ++k)
      for (int i = 0; i < rest_items(a_.packings[k].net->shape); ++i)
        if (item++ % team_.size() == t_) a_.packings[k].ops->pack_rest(*a_.packings[k].net, i, a_.packings[k].backward);
  }

  Team& team_;
  const Adam& a_;
  int t_;
  std::int64_t all_ = 0;
  float rate_, inverse_root_, rest1_, keep2_, rest2_, eps_, tau_;
};

template <class P>
void adam(Team& team, const Adam& a) {
  struct Context {
    Team& team;
    const Adam& a;
  } context{team, a};
  team.run(
      [](void* pointer, int t) noexcept {
        const Context& c = *static_cast<Context*>(pointer);
        const FlushDenormals flush;
        AdamThread(c.team, c.a, t).step();
      },
      &context);
}

}  // namespace
}  // namespace sorl::train
