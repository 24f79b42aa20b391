// Schedules: the steps of one action, as a call walks them, and step sizes that a caller names.
//
// sorl_fast/act/schedule.py says what sizes mean and which are taken.
#pragma once

#include <string>
#include <vector>

namespace sorl {

inline constexpr int kMostSizes = 1 << 11;  // of one schedule

// z <- clip(a z + b v(x, z, t, log2_steps) + clip(s temperature noise)), with the clips of the form.
struct Step {
  double t, log2_steps;         // what the network reads
  float a, b;
  double s = 0;                 // 0: no noise is added, nor read
  int draw = 0;                 // of the candidate's normal numbers, the one that is added
  const float* bias = nullptr;  // [width] of the actor's first layer, t and log2_steps folded in (Packed::fold)
};

// Made before any call; a call only walks it.
struct Schedule {
  int k;  // the number of steps, as the critic reads it
  std::vector<Step> steps;
  const float* critic_bias = nullptr;  // [E][width] of the critics' first layers, k folded in (Packed::fold)
};

// Sizes as a caller gave them, to those of a schedule: whose sum is 1, all 1 / M where the steps are equal. False
// where they are none, with what is wrong in `error`: "steps is VALUE, but must be BOUND".
bool normalise_sizes(std::vector<double>& sizes, std::string& error);

// M equal steps.
std::vector<double> even_sizes(int steps);
// Whether the sizes of a schedule are so.
bool are_even(const std::vector<double>& sizes) noexcept;

// Euler steps z <- z + h v(x, z, t, min(log2(1/h), log2(finest))), t the sum of the h before. The critic reads
// k = min(M, finest). Biases are left null.
Schedule euler_schedule(const std::vector<double>& sizes, int finest);

}  // namespace sorl
