// Observations that are out of distribution: the status bit in every kind of call, and the field and tensors of the file.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../policy_file.hpp"
#include "check.hpp"
#include "make_policy.hpp"
#include "sorl_fast/sorl.hpp"

namespace {

using namespace sorl_test;
using sorl::PolicyFile;
using sorl_fast::Options;
using sorl_fast::Policy;
using sorl_fast::Session;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

PolicyFile::Result parse(const std::string& bytes) { return PolicyFile::parse(bytes.data(), bytes.size(), "p"); }

Policy load(const Spec& spec) {
  const std::string bytes = make_policy(spec);
  return {bytes.data(), bytes.size()};
}

void refused(const std::string& bytes, const std::string& message) {
  const PolicyFile::Result result = parse(bytes);
  const bool said = result.outcome == PolicyFile::Outcome::refused && result.message.find(message) != std::string::npos;
  if (!said) std::fprintf(stderr, "expected '%s', got: %s\n", message.c_str(), result.message.c_str());
  CHECK(said);
}

// Every value is in tests/native/test_loader.py: here that the view is right and messages name the field.
void files() {
  Spec spec;
  spec.ood = kOod;
  for (const char* form : {"", kDirect.c_str()}) {
    for (const int ensemble : {2, 0}) {
      spec.form = form;
      spec.ensemble = form[0] == 0 ? 2 : ensemble;
      spec.chunk = ensemble == 0 ? "2" : "";
      const Parts parts = make_parts(spec);
      for (const char* padding : {"", " ", "   "}) {
        const PolicyFile::Result result = parse(join(parts, padding));
        if (!result.policy) std::fprintf(stderr, "%s\n", result.message.c_str());
        CHECK(result.policy != nullptr);
        const sorl::PolicyView view = result.policy->view();
        CHECK(view.ood_threshold == 1.5f && view.chunk == (ensemble == 0 ? 2 : 1));
        const std::size_t floats = 3 + 3 * 3;  // the last of the file
        const char* const data = parts.data.data() + parts.data.size() - floats * sizeof(float);
        CHECK(std::memcmp(view.ood_mean, data, 3 * sizeof(float)) == 0);
        CHECK(std::memcmp(view.ood_whiten, data + 3 * sizeof(float), 9 * sizeof(float)) == 0);
      }
    }
  }
  spec = Spec{};
  CHECK(parse(make_policy(spec)).policy->view().ood_mean == nullptr);
  const auto refuse = [&spec](const char* ood, const char* message) {
    spec.ood = ood;
    refused(make_policy(spec), message);
  };
  refuse("3", "ood is no object, but must be one with threshold, rate, measured");
  refuse("{\"threshold\":0,\"rate\":0.5,\"measured\":0}", "ood threshold is 0, but must be a number above 0, finite in float32");
  refuse("{\"threshold\":3.5e38,\"rate\":0.5,\"measured\":0}", "ood threshold is 3.5e+38, but");
  refuse("{\"threshold\":1,\"rate\":1,\"measured\":0}", "ood rate is 1, but must be a number above 0 and below 1");
  refuse("{\"threshold\":1,\"rate\":0.5,\"measured\":1.5}", "ood measured is 1.5, but must be a number from 0 to 1");
  refuse("{\"threshold\":1,\"rate\":0.5,\"measured\":null}", "ood measured is no number, but");
  refuse("{\"threshold\":1,\"rate\":0.5}", "ood measured is missing, but");
  refuse("{\"threshold\":1,\"rate\":0.5,\"measured\":0,\"more\":0}", "none of threshold, rate, measured");
  refuse("{\"threshold\":1,\"rate\":0.5,\"rate\":0.5}", "the key \"rate\" stands twice");
  spec.ood = kOod;
  Parts parts = make_parts(spec);
  parts.metadata = replaced(parts.metadata, ",\"ood\":" + kOod, "");
  refused(join(parts), "lacks the field ood");
  parts = make_parts(spec);
  parts.tensors = replaced(parts.tensors, "ood/whiten", "ood/other");
  refused(join(parts), "unknown tensor \"ood/other\"");
  parts = make_parts(spec);
  parts.tensors = replaced(parts.tensors, "\"shape\":[3,3]", "\"shape\":[3,4]");
  refused(join(parts), "axis 1 of tensor ood/whiten has length 4, but the dimensions ask for 3");
  parts = make_parts(spec);
  const float nan = std::nanf("");
  std::memcpy(&parts.data[parts.data.size() - sizeof nan], &nan, sizeof nan);
  refused(join(parts), "the tensor ood/whiten holds a value that is not finite, at index 8");
  parts = make_parts(Spec{});
  parts.tensors += ",\"ood/mean\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}";
  refused(join(parts), "unknown tensor \"ood/mean\"");
}

// Whatever a call returns, it says of its observation alone whether that is out of distribution.
void calls() {
  Spec spec;
  spec.obs_dim = spec.act_dim = 4;
  spec.chunk = "2";
  spec.ood = kOod;
  const Policy policy = load(spec);
  spec.ood = "";
  const Policy unaware = load(spec);
  Options options;
  options.max_rows = options.max_candidates = 3;
  Session session(policy, options), other(unaware, options);
  const float near[4] = {0, 0, 0, 0}, far[4] = {0, 0, 900, 0}, bad[4] = {0, kNan, 900, 0};
  float action[4], same[4];
  constexpr std::int32_t kFar = SORL_STATUS_OUT_OF_DISTRIBUTION;
  for (const float* obs : {near, far, bad}) {
    const std::int32_t status = session.act(obs, action, 4, 3, 9, 1), without = other.act(obs, same, 4, 3, 9, 1);
    CHECK(without >= 0 && status == (without | (obs == far ? kFar : 0)) && session.last_status() == status);
    CHECK(obs == bad || std::memcmp(action, same, sizeof action) == 0);  // whose last action is another
    CHECK((session.replay(obs, action, 4, 1, 9, 1) & kFar) == (obs == far ? kFar : 0));
    if (obs != bad) CHECK(session.replay(near, action, 4, 1, 9, 2) == SORL_STATUS_REPLAYED);
  }
  session.prepare_deadline();
  for (const float* obs : {near, far})
    for (const double us : {1e9, 0.0}) {
      sorl_done done{};
      done.struct_size = sizeof done;
      const std::int32_t status = session.act_by(obs, action, us, 9, 1, &done);
      CHECK((status & kFar) == (obs == far ? kFar : 0) && done.status == static_cast<std::uint32_t>(status));
      CHECK((us == 0) == ((status & SORL_STATUS_CUT_SHORT) != 0));
    }
  // Of a batch each row has its own, and what is returned has those of all.
  Session batch(policy, options);
  const float rows[12] = {0, 0, 0, 0, 0, 0, 900, 0, 0, kNan, 900, 0};
  std::vector<float> actions(3 * 4);
  std::uint32_t status[3];
  CHECK((sorl_act(batch.get(), rows, 3, 1, 1, 9, 1, 0, nullptr, actions.data(), nullptr, nullptr, status) & kFar) != 0);
  CHECK((status[0] & kFar) == 0 && (status[1] & kFar) != 0 && (status[2] & kFar) == 0);
  CHECK((sorl_act(batch.get(), rows, 3, 1, 1, 9, 1, 0, nullptr, actions.data(), nullptr, nullptr, nullptr) & kFar) != 0);
}

}  // namespace

int main() {
  files();
  calls();
  std::puts("out of distribution: all passed");
}
