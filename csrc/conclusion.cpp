#include "conclusion.hpp"

#include <cstring>

#include "engine.hpp"
#include "finite.hpp"

namespace sorl {

void Conclusion::lay_out(Bump& bump, const Packed& p, int candidates) {
  last_ = bump.take<float>(p.act_dim);
  held_ = bump.take<float>(p.act_dim);
  chooser_.lay_out(bump, p, candidates);
}

void Conclusion::reset(const Packed& p) noexcept { std::memcpy(last_, p.rest.data(), p.act_dim * sizeof(float)); }

void Conclusion::continue_from(const Packed& p, const Conclusion& other) noexcept {
  std::memcpy(last_, other.last_, p.act_dim * sizeof(float));
}

void Conclusion::set_last(const std::vector<float>& action) noexcept {
  std::memcpy(last_, action.data(), action.size() * sizeof(float));
}

// Observation b's candidate of the highest Q; where none has a Q, the first that is good.
Conclusion::Chosen Conclusion::best(const Sampling& s, int b) const noexcept {
  const int A = s.p.act_dim, N = s.call.candidates;
  Chosen chosen{-1, 0, false};
  const int scored = s.call.scored, considered = scored > 0 ? scored : N;
  for (int n = 0; n < considered; ++n) {
    const int row = b * N + n;
    const float* zr = s.z + static_cast<std::size_t>(row) * A;
    const float value = scored > 0 ? s.aggregate(row) : 0.0f;
    bool good = N == 1 || finite(value);
    for (int a = 0; a < A; ++a) good = good && finite(zr[a]);
    if (!good) {
      chosen.rejected = true;
    } else if (chosen.candidate < 0 || value > chosen.q) {
      chosen.candidate = n;
      chosen.q = value;
    }
  }
  return chosen;
}

// The one that the rule chooses.
Conclusion::Chosen Conclusion::choose(const Sampling& s, int b) noexcept {
  const Rule& rule = s.call.rule;
  const int A = s.p.act_dim, N = s.call.candidates, considered = rule.reads_q() ? s.call.scored : N;
  const float* const from = s.z + static_cast<std::size_t>(b) * N * A;
  chooser_.clear();
  bool rejected = false;
  for (int n = 0; n < considered; ++n) {
    const float value = rule.reads_q() ? s.aggregate(b * N + n) : 0.0f;
    bool good = finite(value);
    for (int a = 0; a < A; ++a) good = good && finite(from[static_cast<std::size_t>(n) * A + a]);
    if (good)
      chooser_.add(n, value);
    else
      rejected = true;
  }
  const std::uint32_t row = s.call.row_offset + static_cast<std::uint32_t>(b);
  const double u = rule.draws() ? s.p.side.kernels->uniform(s.call.seed, s.call.call, row) : 0.0;
  const int chosen = chooser_.pick(rule, from, u);
  return {chosen, chosen >= 0 && chosen < s.call.scored ? s.aggregate(b * N + chosen) : 0.0f, rejected};
}

// Best of N, bounds, held actions, status.
void Conclusion::conclude(const Sampling& s, float* actions, std::int32_t* candidate, float* q_out, std::uint32_t* status_out) noexcept {
  const int A = s.p.act_dim, N = s.call.candidates;
  const Rule& rule = s.call.rule;
  const bool by_q = N == 1 || rule.kind == Rule::Kind::argmax || (rule.reads_q() && s.call.scored == 0);
  const bool empty = s.call.watch != nullptr && s.call.watch->is_empty();
  std::memcpy(held_, last_, A * sizeof(float));
  for (int b = 0; b < s.call.rows; ++b) {
    std::uint32_t bits = s.status[b];
    Chosen chosen{-1, 0, false};
    // also where the distance itself is infinite, or a NaN
    const bool near = !s.call.want_ood || (finite(s.far[b]) && s.far[b] <= s.p.ood.threshold);
    if (!near && (bits & nonfinite_obs) == 0) bits |= out_of_distribution;
    if ((bits & nonfinite_obs) == 0 && !empty) {
      chosen = by_q ? best(s, b) : choose(s, b);
      if (chosen.candidate < 0) bits |= nonfinite_result;
    }
    float* to = actions + static_cast<std::size_t>(b) * A;
    if (chosen.candidate < 0) {
      std::memcpy(to, held_, A * sizeof(float));
      bits |= Status::held;
    } else {
      const float* zr = s.z + (static_cast<std::size_t>(b) * N + chosen.candidate) * A;
      for (int a = 0; a < A; ++a) {
        to[a] = s.p.clip(zr[a], a);
        if (to[a] != zr[a]) bits |= clipped;
      }
      s.p.map.apply(to);
      if (chosen.rejected) bits |= candidate_rejected;
      s.p.hold_after(to, last_);
    }
    if (candidate != nullptr) candidate[b] = chosen.candidate;
    if (q_out != nullptr) {
      if (chosen.candidate < 0 || chosen.candidate >= s.call.scored) {
        const std::uint32_t nan = 0x7FC00000u;
        std::memcpy(q_out + b, &nan, sizeof nan);
      } else {
        q_out[b] = chosen.q;
      }
    }
    if (status_out != nullptr) status_out[b] = bits;
  }
}

}  // namespace sorl
