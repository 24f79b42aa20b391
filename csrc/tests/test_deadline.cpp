// Acting within a deadline through the C interface: what is refused, and that a call which is not cut short is
// sorl_act's. What a cut call returns is tests/native/test_deadline.py's, which holds the clock.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "check.hpp"
#include "make_policy.hpp"
#include "sorl_fast/sorl.hpp"

static_assert(noexcept(sorl_session_prepare_deadline(nullptr, nullptr, 0, nullptr, 0)), "");
static_assert(noexcept(sorl_session_way(nullptr, 0, nullptr, nullptr)), "");
static_assert(noexcept(sorl_act_deadline(nullptr, nullptr, 0, 0, 0, 0, nullptr, nullptr)), "");

namespace {

void calls() {
  const std::string bytes = sorl_test::make_policy();
  const sorl_fast::Policy policy(bytes.data(), bytes.size());
  sorl_fast::Options options;
  options.max_candidates = 9;
  sorl_fast::Session session(policy, options);
  char text[256] = "";
  std::vector<float> obs(3, 0.5f), action(2, 7.0f), plain(2);
  sorl_done done{};
  done.struct_size = sizeof done;
  sorl_session* const s = session.get();
  CHECK(sorl_act_deadline(s, obs.data(), 1e9, 5, 3, 0, action.data(), &done) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_session_way(s, 0, nullptr, nullptr) == SORL_ERROR_ARGUMENT && action[0] == 7.0f);
  const std::int32_t number = session.prepare({0.5, 0.3, 0.2});
  const std::vector<sorl_way> ways = {{number, 9, SORL_RULE_MEDOID, 0.5}, {8, 1, SORL_RULE_POLICY, 0}, {0, 0, 0, 0}};
  CHECK(session.prepare_deadline(ways) == 3);
  for (const sorl_way& wrong : {sorl_way{3, 1, 0, 0}, sorl_way{1, 10, 0, 0}, sorl_way{1, 1, 7, 0}, sorl_way{1, 1, 1, 2}}) {
    CHECK(sorl_session_prepare_deadline(s, &wrong, 1, text, sizeof text) == SORL_ERROR_ARGUMENT && text[0] != '\0');
    text[0] = '\0';
  }
  CHECK(sorl_session_prepare_deadline(s, nullptr, 1, nullptr, 0) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_session_prepare_deadline(nullptr, ways.data(), 1, nullptr, 0) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_session_prepare_deadline(s, ways.data(), -1, nullptr, 0) == SORL_ERROR_ARGUMENT);
  sorl_way way{};
  double us = 0;
  CHECK(sorl_session_way(s, 0, &way, &us) == SORL_OK && us > 0);  // the refused ones have changed nothing
  CHECK(way.steps == number && way.candidates == 9 && way.rule == SORL_RULE_MEDOID && way.parameter == 0.5);
  CHECK(sorl_session_way(s, 3, &way, &us) == SORL_ERROR_ARGUMENT);
  const std::int32_t status = session.act_by(obs.data(), action.data(), 1e9, 5, 3, &done);
  CHECK(status >= 0 && (status & SORL_STATUS_CUT_SHORT) == 0 && done.evaluations == 3 && done.scored == 9);
  CHECK(done.elapsed_us > 0 && session.last_status() == status);
  CHECK(session.set_rule(SORL_RULE_MEDOID, 0.5) == SORL_OK);
  std::int32_t candidate = -1;
  float q = 0;
  CHECK(sorl_act(s, obs.data(), 1, number, 9, 5, 3, 0, nullptr, plain.data(), &candidate, &q, nullptr) == status);
  CHECK(plain == action && candidate == done.candidate && q == done.q);
  done.struct_size = offsetof(sorl_done, steps);  // an older caller's: nothing is written beyond it
  done.steps = 77;
  CHECK(session.act_by(obs.data(), action.data(), 0, 5, 3, &done) == (SORL_STATUS_CUT_SHORT | SORL_STATUS_HELD));
  CHECK(done.steps == 77 && action == plain);
  for (const double wrong : {-1.0, static_cast<double>(std::nanf(""))})
    CHECK(session.act_by(obs.data(), action.data(), wrong, 5, 3) == SORL_ERROR_ARGUMENT);
}

void forms() {
  sorl_test::Spec spec;
  spec.form = sorl_test::kDiffusion;
  const std::string bytes = sorl_test::make_policy(spec);
  const sorl_fast::Policy policy(bytes.data(), bytes.size());
  sorl_fast::Session session(policy);
  char text[256] = "";
  CHECK(sorl_session_prepare_deadline(session.get(), nullptr, 0, text, sizeof text) == SORL_ERROR_ARGUMENT);
  CHECK(std::string(text).find("diffusion") != std::string::npos);
}

}  // namespace

int main() {
  calls();
  forms();
  std::puts("deadlines: all passed");
}
