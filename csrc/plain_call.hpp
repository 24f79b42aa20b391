// A call of a session past Python, as a C++ caller makes it: how the benchmarks' module (bench/bindings.cpp),
// which has no sampler of its own, times that of the robot's (bindings.cpp).
#pragma once

#include <cstdint>

namespace sorl {

inline constexpr char kPlainCall[] = "sorl_fast.plain_call";  // the capsule's name

// Good for as many rows and candidates as were asked for, until the session is asked for more.
struct PlainCall {
  void* engine;
  int obs_dim, act_dim;
  // obs [rows][O] -> actions [rows][A], noise of seed 0 and `call`; returns a Result.
  int (*act)(void* engine, const float* obs, int rows, int steps, int candidates, std::uint32_t call,
             float* actions) noexcept;
};

}  // namespace sorl
