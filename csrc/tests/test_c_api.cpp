// The C interface: handles, error codes and texts, options, status bits, the C++ classes over it.
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "make_policy.hpp"
#include "sorl_fast/sorl.hpp"

// How many more times this program, the library in it, gets memory; below 0: always.
namespace {
long memory_left = -1;
}
// not inline: g++ would warn of what malloc gave and delete takes
__attribute__((noinline)) void* operator new(std::size_t n) {
  if (memory_left == 0) throw std::bad_alloc();
  if (memory_left > 0) --memory_left;
  void* const p = std::malloc(n);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, std::size_t) noexcept { std::free(p); }

static_assert(noexcept(sorl_act(nullptr, nullptr, 0, 0, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr)), "");
static_assert(noexcept(sorl_session_reset(nullptr)) && noexcept(sorl_last_status(nullptr)), "");
static_assert(noexcept(sorl_session_set_rule(nullptr, 0, 0)), "");
static_assert(noexcept(sorl_session_prepare(nullptr, nullptr, 0, nullptr, 0)), "");
static_assert(noexcept(sorl_session_set_temperature(nullptr, 0)) && noexcept(sorl_policy_steps(nullptr, 0)), "");
static_assert(noexcept(sorl_policy_load(nullptr, nullptr, nullptr, 0)), "");
static_assert(noexcept(sorl_session_create(nullptr, nullptr, nullptr, nullptr, 0)), "");

namespace {

using namespace sorl_test;
using sorl_fast::Error;
using sorl_fast::Options;
using sorl_fast::Policy;
using sorl_fast::Session;

const Spec kSpec{4, 3, 16, 2, 2, 8, false, true};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

Policy make(const Spec& spec = kSpec) {
  const std::string bytes = make_policy(spec);
  return Policy(bytes.data(), bytes.size());
}

void facts() {
  CHECK(sorl_abi_version() == SORL_ABI_VERSION);
  const Policy policy = make();
  CHECK(policy.obs_dim() == 4 && policy.act_dim() == 3 && policy.max_steps() == 8);
  CHECK(sorl_policy_hidden(policy.get()) == 16 && sorl_policy_depth(policy.get()) == 2);
  CHECK(sorl_policy_ensemble(policy.get()) == 2);
  CHECK(policy.action_low()[2] == -1 && policy.action_high()[2] == 0.75f);
  CHECK(std::strcmp(policy.env(), "test-v0") == 0 && std::strlen(policy.sha256()) == 64);
  CHECK(std::strcmp(policy.form(), "shortcut") == 0 && policy.draws() == 1 && policy.default_steps() == 1);
  CHECK(policy.steps(3) == 8 && policy.steps(4) == 0 && policy.steps(-1) == 0 && policy.temperature() == 0);
}

void forms() {
  const float obs[4] = {0.1f, -0.2f, 0.3f, 0.4f};
  const auto of = [](const std::string& form, int ensemble = 2) {
    return make({4, 3, 16, 2, ensemble, 8, false, true, form});
  };
  const struct {
    std::string form;
    const char* name;
    int first, last, draws;
    float temperature;
    bool has_temperature;
  } cases[] = {{kEuler, "euler", 3, 10, 1, 0, false},
               {kDirect, "direct", 1, 1, 1, 0.5f, true},
               {kReading, "direct", 1, 1, 1, 0, false},
               {kTanh, "tanh", 1, 1, 1, 0, true},
               {kDiffusion, "diffusion", 4, 4, 4, 1, true}};
  for (const auto& c : cases) {
    const Policy policy = of(c.form);
    CHECK(std::strcmp(policy.form(), c.name) == 0 && policy.draws() == c.draws);
    CHECK(policy.default_steps() == c.first && policy.max_steps() == c.last && policy.steps(0) == c.first);
    CHECK(policy.temperature() == c.temperature);
    Session session(policy);
    float own[3], hot[3], again[3];
    CHECK((session.act(obs, own, c.last, 1, 1, 0) & ~SORL_STATUS_CLIPPED) == 0);
    CHECK(session.act(obs, hot, c.last + 1, 1, 1, 0) == SORL_ERROR_STEPS);
    for (const float bad : {-1.0f, kNan, kInf}) CHECK(session.set_temperature(bad) == SORL_ERROR_ARGUMENT);
    CHECK(session.set_temperature(0.25f) == (c.has_temperature ? SORL_OK : SORL_ERROR_ARGUMENT));
    session.act(obs, hot, c.last, 1, 1, 0);
    CHECK((std::memcmp(own, hot, sizeof own) != 0) == c.has_temperature);
    session.set_temperature(c.temperature);
    session.act(obs, again, c.last, 1, 1, 0);
    CHECK(std::memcmp(own, again, sizeof own) == 0);

    const Policy alone = of(c.form, 0);
    CHECK(sorl_policy_ensemble(alone.get()) == 0);
    Session uncritical(alone);
    float q = 0;
    std::int32_t candidate = -1;
    CHECK((sorl_act(uncritical.get(), obs, 1, c.last, 1, 1, 0, 0, nullptr, again, &candidate, &q, nullptr) &
           ~SORL_STATUS_CLIPPED) == 0);
    CHECK(std::isnan(q) && candidate == 0 && std::memcmp(own, again, sizeof own) == 0);
    CHECK(uncritical.act(obs, again, c.last, 2, 1, 0) == SORL_ERROR_ARGUMENT);
    Options options;
    options.max_candidates = 3;
    Session central(alone, options);  // only the centre chooses without a critic
    CHECK(central.act(obs, again, c.last, 3, 1, 0) == SORL_ERROR_ARGUMENT);
    CHECK(central.set_rule(SORL_RULE_CENTRE) == SORL_OK && central.act(obs, again, c.last, 3, 1, 0) >= 0);
  }
  CHECK(sorl_session_set_temperature(nullptr, 1) == SORL_ERROR_ARGUMENT);
}

// In the robot's units: what is written, its bounds and what is held; from a latent action by float32's own steps.
void units() {
  Spec spec = kSpec;
  spec.map = "{\"low\":[-2.5,0.1,7],\"high\":[0.7,3.3,7]}";
  const float low[3] = {-2.5f, 0.1f, 7}, high[3] = {0.7f, 3.3f, 7};
  const Policy plain = make(), mapped = make(spec);
  for (int a = 0; a < 3; ++a) {
    CHECK(mapped.action_low()[a] == low[a]);
    CHECK(mapped.action_high()[a] == low[a] + 1.75f * ((high[a] - low[a]) / 2));  // of 0.75
  }
  const float obs[4] = {0.1f, -0.2f, 0.3f, 0.4f}, bad[4] = {kNan, 0, 0, 0};
  Options options;
  options.max_candidates = 4;
  Session latent(plain, options), session(mapped, options);
  float before[3], action[3], held[3];
  CHECK(session.act(bad, action, 8, 1, 1, 0) == (SORL_STATUS_NONFINITE_OBS | SORL_STATUS_HELD));
  CHECK(action[0] == 0 && action[1] == 0.1f && action[2] == 7);  // 0, clipped to the bounds
  for (const int N : {1, 4}) {
    const std::int32_t status = latent.act(obs, before, 4, N, 9, 1);
    CHECK(session.act(obs, action, 4, N, 9, 1) == status);
    for (int a = 0; a < 3; ++a)
      CHECK(action[a] == std::fmin(low[a] + (before[a] + 1) * ((high[a] - low[a]) / 2), high[a]));
    CHECK(session.act(bad, held, 4, N, 9, 2) == (SORL_STATUS_NONFINITE_OBS | SORL_STATUS_HELD));
    CHECK(std::memcmp(held, action, sizeof held) == 0);
  }
  session.reset();
  session.act(bad, action, 8, 1, 1, 0);
  CHECK(action[0] == 0 && action[1] == 0.1f && action[2] == 7);
}

void load_errors() {
  char text[256] = "old";
  auto* policy = reinterpret_cast<sorl_policy*>(text);
  CHECK(sorl_policy_load("/nowhere/p", &policy, text, sizeof text) == SORL_ERROR_READ);
  CHECK(policy == nullptr && std::strstr(text, "/nowhere/p: ") == text);
  CHECK(sorl_policy_load("/tmp", &policy, text, sizeof text) == SORL_ERROR_READ);
  char folder[] = "/tmp/sorl-XXXXXX";
  CHECK(mkdtemp(folder) != nullptr);
  const std::string pipe = std::string(folder) + "/pipe";  // nobody will ever write to it
  CHECK(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK(sorl_policy_load(pipe.c_str(), &policy, text, sizeof text) == SORL_ERROR_READ);
  CHECK(std::strstr(text, "no regular file") != nullptr);
  CHECK(unlink(pipe.c_str()) == 0 && rmdir(folder) == 0);
  CHECK(sorl_policy_load(nullptr, &policy, text, sizeof text) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_policy_load("/nowhere/p", nullptr, text, sizeof text) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_policy_load_memory(nullptr, 1, &policy, text, sizeof text) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_policy_load_memory(nullptr, 0, &policy, nullptr, 0) == SORL_ERROR_POLICY);
  CHECK(sorl_policy_load_memory("x", 1, &policy, nullptr, 8) == SORL_ERROR_POLICY);
  char tiny[4] = {1, 1, 1, 1};  // cut off, with its zero
  CHECK(sorl_policy_load_memory("x", 1, &policy, tiny, sizeof tiny) == SORL_ERROR_POLICY);
  CHECK(std::string(tiny) == "pol");
  CHECK(sorl_policy_load_memory("x", 1, &policy, tiny, 0) == SORL_ERROR_POLICY);
  std::string bad = make_policy(kSpec);
  bad.back() = static_cast<char>(bad.back() ^ 1);
  CHECK(sorl_policy_load_memory(bad.data(), bad.size(), &policy, text, sizeof text) == SORL_ERROR_POLICY);
  CHECK(policy == nullptr && std::strstr(text, "sha256 is ") != nullptr);
  sorl_policy_free(nullptr);
  sorl_session_free(nullptr);
  bool thrown = false;
  try {
    Policy("/nowhere/p");
  } catch (const Error& error) {
    thrown = error.code() == SORL_ERROR_READ && std::strstr(error.what(), "/nowhere/p") != nullptr;
  }
  CHECK(thrown);
  for (int code = SORL_ERROR_INTERNAL; code <= 1; ++code) CHECK(sorl_error_name(code)[0] != '\0');
}

void session_errors() {
  const Policy policy = make();
  char text[256] = "";
  sorl_session* session = nullptr;
  const auto code = [&](const sorl_options* options) {
    text[0] = '\0';
    const std::int32_t result = sorl_session_create(policy.get(), options, &session, text, sizeof text);
    CHECK((result == SORL_OK) == (session != nullptr) && (result == SORL_OK) == (text[0] == '\0'));
    return result;
  };
  CHECK(code(nullptr) == SORL_OK);
  sorl_session_free(session);
  for (const auto& [field, values] :
       {std::pair<std::int32_t sorl_options::*, std::vector<std::int32_t>>
            {&sorl_options::precision, {-1, 3}},
        {&sorl_options::threads, {-1, 0, 65}},
        {&sorl_options::max_rows, {-1, 0}},
        {&sorl_options::max_candidates, {-1, 0}}}) {
    for (const std::int32_t value : values) {
      Options options;
      options.*field = value;
      CHECK(code(&options) == SORL_ERROR_ARGUMENT);
      CHECK(std::strstr(text, std::to_string(value).c_str()) != nullptr);
    }
  }
  Options options;
  for (const std::uint32_t size : {0u, 4u, 1u << 20}) {
    options.struct_size = size;
    CHECK(code(&options) == SORL_ERROR_ARGUMENT && std::strstr(text, std::to_string(size).c_str()) != nullptr);
  }
  options = Options();
  options.max_rows = options.max_candidates = 1 << 20;
  CHECK(code(&options) == SORL_ERROR_ARGUMENT && std::strstr(text, std::to_string(1ll << 40).c_str()) != nullptr);
  options = Options();
  options.isa = "abacus";
  CHECK(code(&options) == SORL_ERROR_ISA && std::strstr(text, "abacus") != nullptr);
  options.isa = "scalar";
  for (const std::int32_t precision : {SORL_PRECISION_BF16, SORL_PRECISION_INT8}) {
    options.precision = precision;
    CHECK(code(&options) == SORL_OK && std::string(sorl_isa_name(session)) == "scalar");
    sorl_session_free(session);
  }
  CHECK(sorl_session_create(nullptr, nullptr, &session, nullptr, 0) == SORL_ERROR_ARGUMENT);
  CHECK(sorl_session_create(policy.get(), nullptr, nullptr, nullptr, 0) == SORL_ERROR_ARGUMENT);
}

// A caller of another version: its struct ends after the first published fields, or goes on after ours.
void other_versions() {
  const Policy policy = make();
  char text[256] = "";
  sorl_session* session = nullptr;
  alignas(sorl_options) unsigned char bytes[sizeof(sorl_options) + 64];
  auto* const options = reinterpret_cast<sorl_options*>(bytes);
  constexpr std::size_t first = offsetof(sorl_options, isa) + sizeof(const char*);
  std::memset(bytes, 0xA5, sizeof bytes);
  (sorl_options_init)(options);  // the function, as an older program calls it
  CHECK(options->struct_size == first && options->threads == 1 && options->isa == nullptr);
  for (std::size_t i = first; i < sizeof bytes; ++i) CHECK(bytes[i] == 0xA5);
  CHECK(sorl_session_create(policy.get(), options, &session, text, sizeof text) == SORL_OK);
  sorl_session_free(session);
  std::memset(bytes, 0, sizeof bytes);
  (sorl_options_init)(options);
  options->struct_size = sizeof bytes;
  CHECK(sorl_session_create(policy.get(), options, &session, text, sizeof text) == SORL_OK);
  sorl_session_free(session);
  bytes[sizeof bytes - 1] = 1;
  CHECK(sorl_session_create(policy.get(), options, &session, text, sizeof text) == SORL_ERROR_ARGUMENT);
  CHECK(session == nullptr && std::strstr(text, "does not know") != nullptr);
}

void act_arguments() {
  const Policy policy = make();
  Options options;
  options.max_rows = 3;
  options.max_candidates = 4;
  Session session(policy, options);
  CHECK(session.last_status() == SORL_OK);
  const std::vector<float> obs(4 * 4, 0.5f);
  std::vector<float> actions(4 * 3, 7);
  const auto act = [&](const float* o, int rows, int steps, int candidates, float* a) {
    const std::int32_t code = sorl_act(session.get(), o, rows, steps, candidates, 1, 0, 0, nullptr, a,
                                       nullptr, nullptr, nullptr);
    CHECK(session.last_status() == code);
    return code;
  };
  CHECK(act(nullptr, 1, 1, 1, actions.data()) == SORL_ERROR_ARGUMENT);
  CHECK(act(obs.data(), 1, 1, 1, nullptr) == SORL_ERROR_ARGUMENT);
  CHECK(act(obs.data(), -1, 1, 1, actions.data()) == SORL_ERROR_ARGUMENT);
  CHECK(act(obs.data(), 1, 1, -1, actions.data()) == SORL_ERROR_ARGUMENT);
  CHECK(act(obs.data(), 4, 1, 1, actions.data()) == SORL_ERROR_TOO_LARGE);
  CHECK(act(obs.data(), 1, 1, 5, actions.data()) == SORL_ERROR_TOO_LARGE);
  for (const int steps : {-1, 3, 5, 16, 1 << 16, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
    CHECK(act(obs.data(), 1, steps, 1, actions.data()) == SORL_ERROR_STEPS);
  }
  CHECK(sorl_act(nullptr, obs.data(), 1, 1, 1, 1, 0, 0, nullptr, actions.data(), nullptr, nullptr,
                 nullptr) == SORL_ERROR_ARGUMENT);
  for (const float a : actions) CHECK(a == 7);  // an error leaves the output alone
  CHECK(act(obs.data(), 0, 1, 1, actions.data()) == SORL_OK);
  for (const float a : actions) CHECK(a == 7);
  CHECK(act(obs.data(), 2, 8, 4, actions.data()) >= 0);
  for (int i = 0; i < 6; ++i) CHECK(actions[static_cast<std::size_t>(i)] >= -1 && actions[static_cast<std::size_t>(i)] <= 0.75f);
  CHECK(actions[6] == 7);
}

void held_action() {
  const Policy policy = make();
  Session session(policy);
  const float good[4] = {0.1f, -0.2f, 0.3f, 0.4f};
  const float bad[4] = {0.1f, kNan, 0.3f, 0.4f};
  const float worse[4] = {0.1f, 0.2f, kInf, 0.4f};
  float first[3];
  float action[3];
  CHECK(session.act(bad, action, 8, 1, 1, 0) == (SORL_STATUS_NONFINITE_OBS | SORL_STATUS_HELD));
  for (const float a : action) CHECK(a == 0);
  CHECK((session.act(good, first, 8, 1, 1, 0) & ~SORL_STATUS_CLIPPED) == 0);
  CHECK(session.act(worse, action, 8, 1, 1, 1) == (SORL_STATUS_NONFINITE_OBS | SORL_STATUS_HELD));
  CHECK(std::memcmp(action, first, sizeof first) == 0);
  CHECK(session.last_status() == (SORL_STATUS_NONFINITE_OBS | SORL_STATUS_HELD));
  session.reset();
  session.act(bad, action, 8, 1, 1, 2);
  for (const float a : action) CHECK(a == 0);
}

// The same numbers with a seed or its noise split over calls, and through every optional output.
void outputs() {
  const Policy policy = make();
  Options options;
  options.max_rows = 6;
  options.max_candidates = 4;
  options.isa = "scalar";
  Session session(policy, options);
  std::vector<float> obs(6 * 4);
  for (std::size_t i = 0; i < obs.size(); ++i) obs[i] = std::sin(static_cast<float>(i));
  std::vector<float> all(6 * 3);
  std::vector<float> parts(6 * 3);
  std::vector<std::int32_t> candidate(6, -1);
  std::vector<float> q(6, kNan);
  std::vector<std::uint32_t> status(6, 999);
  const std::int32_t union_of = sorl_act(session.get(), obs.data(), 6, 4, 4, 42, 7, 0, nullptr, all.data(),
                                         candidate.data(), q.data(), status.data());
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(candidate[i] >= 0 && candidate[i] < 4 && std::isfinite(q[i]));
    bits |= status[i];
  }
  CHECK(union_of == static_cast<std::int32_t>(bits));
  for (std::uint32_t row = 0; row < 6; ++row) {
    sorl_act(session.get(), obs.data() + 4 * row, 1, 4, 4, 42, 7, row, nullptr, parts.data() + 3 * row,
             nullptr, nullptr, nullptr);
  }
  for (std::size_t i = 0; i < all.size(); ++i) CHECK(std::fabs(all[i] - parts[i]) < 1e-5f);
  const std::vector<float> noise(6 * 4 * 3, 0.0f);
  CHECK(sorl_act(session.get(), obs.data(), 6, 4, 4, 0, 0, 0, noise.data(), all.data(), candidate.data(),
                 nullptr, nullptr) >= 0);
  for (const std::int32_t index : candidate) CHECK(index == 0);  // equal candidates: the first
}

void rules() {
  const Policy policy = make();
  Options options;
  options.max_candidates = 8;
  Session session(policy, options);
  const float obs[4] = {0.1f, -0.2f, 0.3f, 0.4f};
  const auto candidate = [&](std::uint32_t call, float* q = nullptr) {
    float action[3];
    std::int32_t chosen = -1;
    CHECK(sorl_act(session.get(), obs, 1, 2, 8, 5, call, 0, nullptr, action, &chosen, q, nullptr) >= 0);
    return chosen;
  };
  const std::int32_t best = candidate(0);
  double parameter = 7;
  CHECK(policy.default_rule(&parameter) == SORL_RULE_ARGMAX && parameter == 0 && policy.default_rule() == 1);
  const struct {
    std::int32_t rule;
    double parameter;
    bool sound;
  } cases[] = {{SORL_RULE_POLICY, 0, true},      {SORL_RULE_POLICY, 0.5, false}, {SORL_RULE_ARGMAX, 0, true},
               {SORL_RULE_ARGMAX, 1, false},     {SORL_RULE_MEDOID, 0, true},    {SORL_RULE_MEDOID, 1.0 / 3, true},
               {SORL_RULE_MEDOID, 1.5, false},   {SORL_RULE_NEAREST, 0.1, true}, {SORL_RULE_NEAREST, -0.5, false},
               {SORL_RULE_NEAREST, 0.1f, false}, {SORL_RULE_BETTER, 1, true},    {SORL_RULE_BETTER, 1.0 / 32768, true},
               {SORL_RULE_BETTER, 32767.0 / 32768, true},
               {SORL_RULE_BETTER, 1.0 / 32769, false},
               {SORL_RULE_SOFT, 32768, true},    {SORL_RULE_SOFT, 32769, false}, {SORL_RULE_SOFT, 2.5, true},
               {SORL_RULE_SOFT, 32767.0 / 32766, true},
               {SORL_RULE_SOFT, 3.14159265358979, false},
               {SORL_RULE_SOFT, kNan, false},    {SORL_RULE_SOFT, kInf, false},  {SORL_RULE_CENTRE, 0, true},
               {SORL_RULE_CENTRE, 1, false},     {7, 0, false},                  {-1, 0, false}};
  for (const auto& c : cases) {
    CHECK(session.set_rule(c.rule, c.parameter) == (c.sound ? SORL_OK : SORL_ERROR_ARGUMENT));
    CHECK(candidate(0) >= 0);
  }
  // what was refused changed nothing: it is still the centre
  float q = 0;
  const std::int32_t centre = candidate(0, &q);
  CHECK(centre == candidate(0) && std::isfinite(q));
  CHECK(session.set_rule(SORL_RULE_BETTER, 1.0 / 8) == SORL_OK && candidate(0) == best);
  CHECK(session.set_rule(SORL_RULE_BETTER, 1) == SORL_OK);
  bool seen[8] = {};
  for (std::uint32_t call = 0; call < 200; ++call) seen[candidate(call)] = true;
  for (const bool each : seen) CHECK(each);
  CHECK(session.set_rule(SORL_RULE_POLICY) == SORL_OK && candidate(0) == best);
  CHECK(sorl_session_set_rule(nullptr, SORL_RULE_ARGMAX, 0) == SORL_ERROR_ARGUMENT);
}

void schedules() {
  const Policy policy = make();
  Session session(policy);
  char text[256] = "";
  const float obs[4] = {0.1f, -0.2f, 0.3f, 0.4f};
  float action[3], other[3];
  const auto prepare = [&](const std::vector<double>& sizes) {
    text[0] = '\0';
    const std::int32_t code = sorl_session_prepare(session.get(), sizes.data(), static_cast<std::int32_t>(sizes.size()),
                                                   text, sizeof text);
    CHECK((code < 0) == (text[0] != '\0'));
    return code;
  };
  CHECK(session.act(obs, action, 3, 1, 1, 0) == SORL_ERROR_STEPS);
  CHECK(prepare({0.25, 0.25, 0.25, 0.25}) == 4);
  CHECK(prepare({1.0 / 3, 1.0 / 3, 1.0 / 3}) == 3 && session.act(obs, action, 3, 1, 1, 0) >= 0);
  CHECK(prepare(std::vector<double>(5, 0.2 + 1e-8)) == 5);  // even once they sum to 1
  const std::int32_t uneven = prepare({0.5, 0.25, 0.25});
  CHECK(uneven > 2048 && prepare({0.5, 0.25, 0.25}) == uneven && session.prepare({0.25, 0.25, 0.5}) != uneven);
  CHECK(session.act(obs, action, uneven, 1, 1, 0) >= 0 && session.act(obs, other, 3, 1, 1, 0) >= 0);
  CHECK(std::memcmp(action, other, sizeof action) != 0);
  CHECK(prepare({0.5, 0.25}) == SORL_ERROR_STEPS && std::strstr(text, "0.75") != nullptr);
  CHECK(prepare({0.5, 0.5, 0}) == SORL_ERROR_STEPS && prepare({kNan}) == SORL_ERROR_STEPS);
  CHECK(prepare({}) == SORL_ERROR_ARGUMENT && std::strstr(text, "count is 0") != nullptr);
  CHECK(prepare(std::vector<double>(16, 1.0 / 16)) == 16);
  CHECK(prepare(std::vector<double>(17, 1.0 / 17)) == SORL_ERROR_STEPS && std::strstr(text, "at most 16") != nullptr);
  CHECK(sorl_session_prepare(session.get(), nullptr, 1, nullptr, 0) == SORL_ERROR_ARGUMENT);
  const double whole = 1;
  CHECK(sorl_session_prepare(nullptr, &whole, 1, nullptr, 0) == SORL_ERROR_ARGUMENT);
  for (const std::int32_t count : {-1, 0, 2049})
    CHECK(sorl_session_prepare(session.get(), &whole, count, text, sizeof text) == SORL_ERROR_ARGUMENT);
  Session another(policy);  // has schedules of its own
  CHECK(another.act(obs, action, uneven, 1, 1, 0) == SORL_ERROR_STEPS);
  bool thrown = false;
  try {
    another.prepare({0.5});
  } catch (const Error& error) {
    thrown = error.code() == SORL_ERROR_STEPS;
  }
  CHECK(thrown);
}

// 0 steps, 0 candidates and SORL_RULE_POLICY are the file's own; without one, those that always were.
void own_choice() {
  const float obs[4] = {0.1f, -0.2f, 0.3f, 0.4f};
  float own[3], named[3];
  const Policy plain = make();
  Session simple(plain);
  CHECK(plain.default_steps() == 1 && plain.default_candidates() == 1);
  CHECK(simple.act(obs, own, 1, 0) >= 0 && simple.act(obs, named, 1, 1, 1, 0) >= 0);
  CHECK(std::memcmp(own, named, sizeof own) == 0);
  for (const std::string& steps : {std::string("3"), std::string("[0.5,0.25,0.25]")}) {
    Spec spec = kSpec;
    spec.choice = "{\"rule\":\"medoid:1/3\",\"steps\":" + steps + ",\"candidates\":6}";
    const Policy policy = make(spec);
    double part = 0;
    CHECK(policy.default_rule(&part) == SORL_RULE_MEDOID && part == 1.0 / 3 && policy.default_candidates() == 6);
    CHECK(policy.default_steps() == (steps == "3" ? 3 : 0) && policy.max_steps() == 8);
    Session session(policy);  // has room for them
    CHECK(session.act(obs, own, 7, 1) >= 0 && session.act(obs, own, 0, 7, 1, 1) == SORL_ERROR_TOO_LARGE);
    const std::int32_t number = steps == "3" ? 3 : session.prepare({0.5, 0.25, 0.25});
    CHECK(session.set_rule(SORL_RULE_MEDOID, 1.0 / 3) == SORL_OK);
    CHECK(session.act(obs, named, number, 6, 7, 1) >= 0 && std::memcmp(own, named, sizeof own) == 0);
    session.set_rule(SORL_RULE_SOFT);
    session.act(obs, named, 0, 0, 7, 1);
    session.set_rule(SORL_RULE_POLICY);
    session.act(obs, named, 0, 0, 7, 1);
    CHECK(std::memcmp(own, named, sizeof own) == 0);
    Options few;
    few.max_candidates = 2;
    Session small(policy, few);
    CHECK(small.act(obs, own, 7, 1) == SORL_ERROR_TOO_LARGE && small.act(obs, own, 0, 2, 7, 1) >= 0);
  }
}

// Whichever allocation is the first to fail, and all after it: a code and a text, and nothing is left behind.
void memory_runs_out() {
  const std::string bytes = make_policy(kSpec);
  char text[256];
  long steps = 0;
  const auto until_it_works = [&](const auto& attempt) {
    for (long enough = 0;; ++enough, ++steps) {
      std::strcpy(text, "old");
      memory_left = enough;
      const std::int32_t code = attempt();
      memory_left = -1;
      if (code == SORL_OK) return;
      CHECK(code == SORL_ERROR_MEMORY && text[0] != '\0' && std::strcmp(text, "old") != 0);
    }
  };
  sorl_policy* policy = nullptr;
  until_it_works([&] {
    const std::int32_t code = sorl_policy_load_memory(bytes.data(), bytes.size(), &policy, text, sizeof text);
    CHECK((policy != nullptr) == (code == SORL_OK));
    return code;
  });
  for (const std::int32_t threads : {1, 3}) {
    Options options;
    options.threads = threads;
    sorl_session* session = nullptr;
    until_it_works([&] {
      const std::int32_t code = sorl_session_create(policy, &options, &session, text, sizeof text);
      CHECK((session != nullptr) == (code == SORL_OK));
      return code;
    });
    const double sizes[2] = {0.25, 0.75};
    std::int32_t number = 0;
    until_it_works([&] {
      number = sorl_session_prepare(session, sizes, 2, text, sizeof text);
      return number > 0 ? SORL_OK : number;
    });
    const float obs[4] = {1, 2, 3, 4};
    float action[3];
    memory_left = 0;  // acting needs none
    CHECK(sorl_act(session, obs, 1, 4, 1, 0, 0, 0, nullptr, action, nullptr, nullptr, nullptr) >= 0);
    CHECK(sorl_act(session, obs, 1, number, 1, 0, 0, 0, nullptr, action, nullptr, nullptr, nullptr) >= 0);
    memory_left = -1;
    sorl_session_free(session);
  }
  sorl_policy_free(policy);
  CHECK(steps > 10);
}

// Sessions keep what they need: the policy may be freed before them.
void lifetimes() {
  const float obs[4] = {1, 2, 3, 4};
  float one[3];
  float two[3];
  auto* policy = new Policy(make());
  Session first(*policy);
  auto* second = new Session(*policy);
  second->act(obs, two, 2, 1, 3, 0);
  delete policy;
  first.act(obs, one, 2, 1, 3, 0);
  delete second;
  Session moved = std::move(first);
  moved.act(obs, one, 2, 1, 3, 0);
  CHECK(std::memcmp(one, two, sizeof one) == 0);
}

}  // namespace

int main() {
  facts();
  forms();
  units();
  load_errors();
  session_errors();
  other_versions();
  act_arguments();
  held_action();
  outputs();
  rules();
  schedules();
  own_choice();
  memory_runs_out();
  lifetimes();
  std::puts("C interface: all passed");
}
