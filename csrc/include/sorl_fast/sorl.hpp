// The C interface of sorl.h as two C++ classes that free themselves; header-only, C++17.
//
// Making a Policy or a Session throws sorl_fast::Error; acting never throws. What is said in sorl.h
// of threads, real time, shapes and units holds here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "sorl.h"

namespace sorl_fast {

/// A failed load or session: what() names value, bound and remedy; code() is a SORL_ERROR_*.
class Error : public std::runtime_error {
 public:
  Error(std::int32_t code, const std::string& what) : std::runtime_error(what), code_(code) {}
  std::int32_t code() const noexcept { return code_; }

 private:
  std::int32_t code_;
};

/// sorl_options with its defaults, to be changed field by field.
struct Options : sorl_options {
  Options() noexcept : sorl_options() { sorl_options_init(this); }
};

namespace detail {
inline void check(std::int32_t code, const char* text) {
  if (code < 0) throw Error(code, *text != '\0' ? text : sorl_error_name(code));
}
}  // namespace detail

/// A policy file in memory: immutable, movable, shared by threads.
class Policy {
 public:
  explicit Policy(const std::string& path) {
    char text[512] = "";
    sorl_policy* handle = nullptr;
    const std::int32_t code = sorl_policy_load(path.c_str(), &handle, text, sizeof text);
    detail::check(code, text);
    handle_.reset(handle);
  }

  Policy(const void* bytes, std::size_t size) {
    char text[512] = "";
    sorl_policy* handle = nullptr;
    const std::int32_t code = sorl_policy_load_memory(bytes, size, &handle, text, sizeof text);
    detail::check(code, text);
    handle_.reset(handle);
  }

  std::int32_t obs_dim() const noexcept { return sorl_policy_obs_dim(get()); }
  std::int32_t act_dim() const noexcept { return sorl_policy_act_dim(get()); }
  std::int32_t chunk() const noexcept { return sorl_policy_chunk(get()); }
  const char* form() const noexcept { return sorl_policy_form(get()); }
  std::int32_t steps(std::int32_t index) const noexcept { return sorl_policy_steps(get(), index); }
  std::int32_t max_steps() const noexcept { return sorl_policy_max_steps(get()); }
  std::int32_t default_steps() const noexcept { return sorl_policy_default_steps(get()); }
  std::int32_t default_candidates() const noexcept { return sorl_policy_default_candidates(get()); }
  std::int32_t default_rule(double* parameter = nullptr) const noexcept {
    return sorl_policy_default_rule(get(), parameter);
  }
  std::int32_t draws() const noexcept { return sorl_policy_draws(get()); }
  float temperature() const noexcept { return sorl_policy_temperature(get()); }
  const float* action_low() const noexcept { return sorl_policy_action_low(get()); }
  const float* action_high() const noexcept { return sorl_policy_action_high(get()); }
  const char* env() const noexcept { return sorl_policy_env(get()); }
  const char* sha256() const noexcept { return sorl_policy_sha256(get()); }
  const sorl_policy* get() const noexcept { return handle_.get(); }

 private:
  struct Free {
    void operator()(sorl_policy* handle) const noexcept { sorl_policy_free(handle); }
  };
  std::unique_ptr<sorl_policy, Free> handle_;
};

/// Samples from a policy; one thread at a time. It may outlive its Policy.
class Session {
 public:
  explicit Session(const Policy& policy, const Options& options = Options()) {
    char text[512] = "";
    sorl_session* handle = nullptr;
    const std::int32_t code =
        sorl_session_create(policy.get(), &options, &handle, text, sizeof text);
    detail::check(code, text);
    handle_.reset(handle);
  }

  /// One observation [O] to one action [A]; returns sorl_act's result. Real-time safe.
  std::int32_t act(const float* obs, float* action, std::int32_t steps, std::int32_t candidates,
                   std::uint64_t seed, std::uint32_t call) noexcept {
    return sorl_act(get(), obs, 1, steps, candidates, seed, call, 0, nullptr, action, nullptr,
                    nullptr, nullptr);
  }

  /// The policy's own steps, candidates and rule.
  std::int32_t act(const float* obs, float* action, std::uint64_t seed, std::uint32_t call) noexcept {
    return act(obs, action, 0, 0, seed, call);
  }

  /// One tick: the next action [A / h] of the last call's chunk, or the first of a new call. Real-time safe.
  std::int32_t replay(const float* obs, float* action, std::int32_t steps, std::int32_t candidates, std::uint64_t seed,
                      std::uint32_t call) noexcept {
    return sorl_replay(get(), obs, steps, candidates, seed, call, action);
  }

  /// The same by the policy's own steps, candidates and rule.
  std::int32_t replay(const float* obs, float* action, std::uint64_t seed, std::uint32_t call) noexcept {
    return replay(obs, action, 0, 0, seed, call);
  }

  /// Makes a schedule of these step sizes ready and returns what to give as `steps`; throws. Before the loop.
  std::int32_t prepare(const std::vector<double>& sizes) {
    char text[512] = "";
    const std::size_t most = static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max());
    const auto count = static_cast<std::int32_t>(sizes.size() < most ? sizes.size() : most);
    const std::int32_t number = sorl_session_prepare(get(), sizes.data(), count, text, sizeof text);
    detail::check(number, text);
    return number;
  }

  /// Measures the ways that act_by chooses from, the best first, or the policy's own and cheaper ones; returns how
  /// many; throws. Before the loop.
  std::int32_t prepare_deadline(const std::vector<sorl_way>& ways = {}) {
    char text[512] = "";
    const std::int32_t count = sorl_session_prepare_deadline(get(), ways.empty() ? nullptr : ways.data(),
                                                             static_cast<std::int32_t>(ways.size()), text, sizeof text);
    detail::check(count, text);
    return count;
  }

  /// One observation [O] to one action [A] within so many microseconds; returns sorl_act_deadline's result.
  /// Real-time safe.
  std::int32_t act_by(const float* obs, float* action, double deadline_us, std::uint64_t seed, std::uint32_t call,
                      sorl_done* done = nullptr) noexcept {
    return sorl_act_deadline(get(), obs, deadline_us, seed, call, 0, action, done);
  }

  /// SORL_RULE_* and its parameter, from the next call on; returns SORL_OK or SORL_ERROR_ARGUMENT. Real-time safe.
  std::int32_t set_rule(std::int32_t rule, double parameter = 0) noexcept {
    return sorl_session_set_rule(get(), rule, parameter);
  }

  /// Of the noise that the form adds, from the next call on; returns SORL_OK or SORL_ERROR_ARGUMENT. Real-time safe.
  std::int32_t set_temperature(float temperature) noexcept { return sorl_session_set_temperature(get(), temperature); }

  std::int32_t last_status() const noexcept { return sorl_last_status(get()); }
  const char* isa() const noexcept { return sorl_isa_name(get()); }
  void reset() noexcept { sorl_session_reset(get()); }

  /// For everything else, such as batches: sorl_act(session.get(), ...).
  sorl_session* get() const noexcept { return handle_.get(); }

 private:
  struct Free {
    void operator()(sorl_session* handle) const noexcept { sorl_session_free(handle); }
  };
  std::unique_ptr<sorl_session, Free> handle_;
};

}  // namespace sorl_fast
