// libFuzzer target of the policy loader, and with it of the JSON reader. Seeds: make_corpus.py.
//
// The digest would stop almost every mutation, so each input is read twice: as a user would, and with
// the digest left out. What is accepted must keep every promise that the engine relies on.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "../action_map.hpp"
#include "../policy_file.hpp"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void all_finite(const float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) require(std::isfinite(values[i]));
}

void check(const sorl::Form& form) {
  require(!form.counts.empty() && form.counts.size() <= sorl::kMostCounts && form.draws() <= sorl::kMostNoisy + 1);
  require(std::isfinite(form.temperature) && form.temperature >= 0 && form.noise_scale >= 0);
  require(form.noise_clip > 0 && form.clip > 0);
  for (const int steps : form.counts) {
    require(steps >= 1 && steps <= sorl::kMostSteps);
    const sorl::Schedule schedule = form.schedule(steps);
    require(schedule.k == steps && schedule.steps.size() == static_cast<std::size_t>(steps));
    for (const sorl::Step& step : schedule.steps) {
      require(std::isfinite(step.t) && std::isfinite(step.log2_steps) && std::isfinite(step.a) && std::isfinite(step.b));
      require(std::isfinite(step.s) && step.s >= 0 && (step.s == 0 || step.draw < form.draws()));
    }
  }
}

void check(const sorl::Choice& choice, const sorl::Form& form) {
  using sorl::Rule;
  const std::size_t M = choice.sizes.size();
  const int finest = form.counts.back();
  require(M >= 1 && M <= 2 * static_cast<std::size_t>(finest) && choice.candidates >= 1);
  require(choice.candidates <= sorl::kMostOwnCandidates);
  for (const double h : choice.sizes) require(h > 0 && h <= 1);
  for (const sorl::Step& step : sorl::euler_schedule(choice.sizes, finest).steps)
    require(step.t >= 0 && step.t < 1 + 1e-9 && step.log2_steps >= -1e-9 && step.b > 0);
  require(choice.rule.part(7) >= 1 && (choice.rule.kind == Rule::Kind::soft || choice.rule.part(7) <= 7));
}

// Reads every float that the view offers: the address sanitizer sees a wrong bound.
void check(const sorl::PolicyView& view) {
  require(view.obs_dim >= 1 && view.act_dim >= 1 && view.hidden >= 1 && view.depth >= 1);
  require(view.ensemble >= 0 && view.m_disc >= 1 && view.m_btt >= 1 && view.m_btt <= view.m_disc);
  check(*view.form);
  if (view.choice != nullptr) check(*view.choice, *view.form);
  require(view.ensemble >= 1 || view.form->kind != sorl::Form::Kind::shortcut);
  require(view.form->draws() == 1 || view.act_dim < sorl::kMostNoisyAct);
  require((view.m_disc & (view.m_disc - 1)) == 0 && (view.m_btt & (view.m_btt - 1)) == 0);
  const auto E = static_cast<std::size_t>(view.ensemble);
  for (int i = 0; i <= view.depth; ++i) {
    const sorl::LayerView& actor = view.actor[i];
    require(actor.in == (i == 0 ? view.obs_dim + view.act_dim + 2 : view.hidden));
    require(actor.out == (i == view.depth ? view.act_dim : view.hidden));
    const auto actor_out = static_cast<std::size_t>(actor.out);
    all_finite(actor.w, static_cast<std::size_t>(actor.in) * actor_out);
    all_finite(actor.b, actor_out);
    if (E == 0) continue;
    const sorl::LayerView& critic = view.critic[i];
    require(critic.in == (i == 0 ? view.obs_dim + view.act_dim + 1 : view.hidden));
    require(critic.out == (i == view.depth ? 1 : view.hidden));
    const std::size_t critic_out = E * static_cast<std::size_t>(critic.out);
    all_finite(critic.w, static_cast<std::size_t>(critic.in) * critic_out);
    all_finite(critic.b, critic_out);
    require((critic.g != nullptr) == (i < view.depth) && (critic.c != nullptr) == (i < view.depth));
    if (i == view.depth) break;
    all_finite(critic.g, critic_out);
    all_finite(critic.c, critic_out);
  }
  const auto A = static_cast<std::size_t>(view.act_dim);
  all_finite(view.action_low, A);
  all_finite(view.action_high, A);
  for (std::size_t a = 0; a < A; ++a) require(view.action_low[a] < view.action_high[a]);
  require(view.chunk >= 1 && view.act_dim % view.chunk == 0);
  require((view.map_low == nullptr) == (view.map_high == nullptr));
  if (view.map_low != nullptr) {
    const sorl::ActionMap map(view.map_low, view.map_high, view.act_dim);
    for (std::size_t a = 0; a < A; ++a) {
      require(view.action_low[a] >= -1 && view.action_high[a] <= 1);
      for (const float x : {view.action_low[a], view.action_high[a]})
        require(map.of(x, a) >= view.map_low[a] && map.of(x, a) <= view.map_high[a]);
    }
  }
  const auto O = static_cast<std::size_t>(view.obs_dim);
  require((view.ood_mean == nullptr) == (view.ood_whiten == nullptr));
  if (view.ood_mean != nullptr) {
    all_finite(view.ood_mean, O);
    all_finite(view.ood_whiten, O * O);
    require(std::isfinite(view.ood_threshold) && view.ood_threshold > 0);
  }
  require((view.obs_mean == nullptr) == (view.obs_std == nullptr));
  if (view.obs_mean == nullptr) return;
  all_finite(view.obs_mean, O);
  for (std::size_t o = 0; o < O; ++o) require(std::isfinite(view.obs_std[o]) && view.obs_std[o] > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using sorl::PolicyFile;
  for (const auto digest : {PolicyFile::Digest::check, PolicyFile::Digest::ignore}) {
    const PolicyFile::Result result = PolicyFile::parse(data, size, "fuzz", digest);
    require((result.outcome == PolicyFile::Outcome::loaded) == (result.policy != nullptr));
    require(result.message.empty() == (result.policy != nullptr));
    if (result.policy) check(result.policy->view());
  }
  return 0;
}
