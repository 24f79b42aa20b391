// Action chunks through the C interface: sorl_replay gives what sorl_act gave, one action a tick, holds what was done
// last, and allocates nothing; the loader refuses a chunk that is none.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.hpp"
#include "counted.hpp"
#include "make_policy.hpp"
#include "sorl_fast/sorl.hpp"

namespace {

using sorl_fast::Policy;
using sorl_fast::Session;
using sorl_test::make_policy;
using sorl_test::Spec;

constexpr int kChunk = 3, kEach = 2, kAll = kChunk * kEach;

Spec chunked(const std::string& chunk = "3") {
  Spec spec;
  spec.obs_dim = 4;
  spec.act_dim = kAll;
  spec.hidden = 16;
  spec.chunk = chunk;
  return spec;
}

Policy load(const Spec& spec) {
  const std::string bytes = make_policy(spec);
  return {bytes.data(), bytes.size()};
}

std::string refusal(const std::string& bytes) {
  try {
    const Policy policy(bytes.data(), bytes.size());
  } catch (const sorl_fast::Error& error) {
    CHECK(error.code() == SORL_ERROR_POLICY);
    return error.what();
  }
  return "";
}

bool same(const float* a, const float* b, int count = kEach) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(float)) == 0;
}

void files() {
  CHECK(load(chunked()).chunk() == kChunk && load(chunked()).act_dim() == kAll);
  CHECK(load(chunked("")).chunk() == 1);
  CHECK(load(chunked("6")).chunk() == 6);
  Spec all = chunked();
  all.map = "{\"low\":[-2,-2,-2,-2,-2,-2],\"high\":[3,3,3,3,3,3]}";
  all.choice = "{\"rule\":\"argmax\",\"steps\":2,\"candidates\":2}";
  CHECK(load(all).chunk() == kChunk && load(all).action_low()[5] == -2 && load(all).default_candidates() == 2);
  // A held action takes another's place: all have the same range.
  all.map = "{\"low\":[-2,-2,-2,-2,-2,-1],\"high\":[3,3,3,3,3,3]}";
  CHECK(refusal(make_policy(all)).find("action_map low[5] is -1, but must be action_map low[3] = -2") !=
        std::string::npos);
  for (const char* bad : {"0", "-3", "1", "4", "5", "12", "2.0", "\"3\"", "null", "[3]", "99999999999999999999"}) {
    const std::string why = refusal(make_policy(chunked(bad)));
    CHECK(why.find("chunk is ") != std::string::npos);
    CHECK(why.find("an integer from 2 that divides act_dim = 6") != std::string::npos);
  }
  sorl_test::Parts parts = sorl_test::make_parts(chunked());
  parts.metadata = sorl_test::replaced(parts.metadata, "\"chunk\":3,", "");
  CHECK(refusal(sorl_test::join(parts)).find("lacks the field chunk") != std::string::npos);
  parts = sorl_test::make_parts(chunked(""));
  parts.metadata = sorl_test::replaced(parts.metadata, "\"config\"", "\"chunk\":3,\"config\"");
  CHECK(refusal(sorl_test::join(parts)).find("unknown field \"chunk\"") != std::string::npos);
}

void ticks() {
  const Policy policy = load(chunked()), plain = load(chunked(""));
  const float obs[4] = {0.1f, -0.2f, 0.3f, 0.4f}, bad[4] = {std::nanf(""), 0, 0, 0};
  Session session(policy), twin(policy), flat(plain);
  float chunk[kAll], other[kAll], action[kEach], last[kEach];
  for (std::uint32_t t = 0; t < 8; ++t) {
    const std::int32_t status = session.replay(t % kChunk == 0 ? obs : bad, action, 4, 1, 7, t);
    if (t % kChunk == 0) {
      CHECK(twin.act(obs, chunk, 4, 1, 7, t) == status);
      // the networks know of no chunks
      CHECK(flat.act(obs, other, 4, 1, 7, t) == status && same(chunk, other, kAll));
    } else {
      CHECK(status == SORL_STATUS_REPLAYED && session.last_status() == status);
    }
    CHECK(same(action, chunk + t % kChunk * kEach));
  }
  // Of a call that holds one action is given, that which was done last, and the next tick calls again.
  CHECK(session.replay(obs, action, 4, 1, 7, 8) == SORL_STATUS_REPLAYED);
  std::memcpy(last, action, sizeof last);
  for (std::uint32_t t = 9; t < 11; ++t) {
    CHECK(session.replay(bad, action, 4, 1, 7, t) == (SORL_STATUS_NONFINITE_OBS | SORL_STATUS_HELD));
    CHECK(same(action, last));
  }
  twin.act(obs, chunk, 4, 1, 7, 11);
  for (std::uint32_t t = 11; t < 14; ++t) {
    CHECK((session.replay(obs, action, 4, 1, 7, t) == SORL_STATUS_REPLAYED) == (t != 11));
    CHECK(same(action, chunk + (t - 11) * kEach));
  }
  // A held call of sorl_act gives the last action of the chunk, so many times.
  CHECK((twin.act(bad, other, 4, 1, 7, 12) & SORL_STATUS_HELD) != 0);
  for (int i = 0; i < kChunk; ++i) CHECK(same(other + i * kEach, chunk + kAll - kEach));

  // What is left is dropped by a reset, and by nothing else: not by an error, which writes nothing.
  session.replay(obs, action, 4, 1, 7, 14);
  session.reset();
  CHECK((session.replay(bad, action, 4, 1, 7, 15) & SORL_STATUS_HELD) != 0 && action[0] == 0 && action[1] == 0);
  action[0] = 77;
  CHECK(session.replay(obs, action, 3, 1, 7, 16) == SORL_ERROR_STEPS && action[0] == 77);
  CHECK(sorl_replay(session.get(), obs, 4, 1, 7, 16, nullptr) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_replay(nullptr, obs, 4, 1, 7, 16, action) == SORL_ERROR_ARGUMENT);
  CHECK(session.replay(nullptr, action, 4, 1, 7, 16) == SORL_ERROR_ARGUMENT && action[0] == 77);
  twin.act(obs, chunk, 0, 0, 7, 16);
  CHECK(session.replay(obs, action, 7, 16) != SORL_STATUS_REPLAYED && same(action, chunk));
  CHECK(session.replay(nullptr, action, 7, 17) == SORL_STATUS_REPLAYED && same(action, chunk + kEach));

  // Without chunks every tick is a call.
  for (std::uint32_t t = 0; t < 3; ++t) {
    float whole[kAll];
    CHECK(flat.replay(obs, whole, 4, 1, 7, t) != SORL_STATUS_REPLAYED);
    flat.act(obs, other, 4, 1, 7, t);
    CHECK(same(whole, other, kAll));
  }
}

void nothing_is_allocated() {
  const Policy policy = load(chunked());
  Session session(policy);
  const float obs[4] = {0.1f, -0.2f, 0.3f, 0.4f};
  float action[kEach];
  session.replay(obs, action, 4, 1, 7, 0);
  const long before = counted();
  for (std::uint32_t t = 1; t < 100; ++t) CHECK(session.replay(obs, action, 4, 1, 7, t) >= 0);
  CHECK(counted() == before);
}

}  // namespace

int main() {
  files();
  ticks();
  nothing_is_allocated();
}
