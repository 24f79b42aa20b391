// A policy as it is read while sampling: every weight in panels, every constant folded.
#pragma once

#include <cstring>
#include <vector>

#include "action_map.hpp"
#include "engine.hpp"
#include "kernels.hpp"
#include "pages.hpp"

namespace sorl {

struct PackedLayer {
  const void* w;
  const float *b, *g, *c;  // [width]; g and c in the critic only
};

// One actor or one critic. Its first layer is split: obs_w takes the observation (once a call), in_w
// the partly denoised action or the action; t, log2 M and k are in the schedules' biases.
struct Net {
  const void* obs_w;
  const void* in_w;
  const void* joint_w;  // both, one above the other; or null
  const float *g, *c;  // the first layer's LayerNorm, critic only
  std::vector<PackedLayer> hidden;
  const void* head_w;         // actor: panels [width][head_width]; critic: float [width]
  const float* in_rows;       // actor, for few rows: float [A][width], or null
  const float* head_rows;     // actor, for few rows: float [A][width], or null
  const float* head_b;        // actor: [head_width]; critic: [1]
};

// What tells an observation that is out of distribution.
struct Ood {
  Whitening whitening{};  // dim 0: nothing does
  float threshold = 0;
  std::vector<float> mean;
  std::vector<int> ends;
};

// The networks, packed for a table of kernels.
struct Side {
  const Kernels* kernels = nullptr;
  int obs_k = 0, in_k = 0;  // padded inputs
  int joint_k = 0;          // both together; 0 where they are never one product
  int head_width = 0;       // padded actions
  std::size_t obs_stride = 0, in_stride = 0, joint_stride = 0, act_stride = 0;  // bytes of an activation row
  Net actor;
  std::vector<Net> critics;
};

// Of the first layers' float rows those that a schedule's constants meet: t, log2(1/h) and k.
struct FirstLayers {
  const float *b, *t, *log2_steps;  // [H] of the actor
  const float *q_b, *k;             // [E][H] of the critics
};

struct Packed {
  int obs_dim, act_dim, hidden, depth, ensemble;
  int width;  // hidden, padded
  bool q_min;
  Precision precision;
  Isa isa;
  std::vector<float> low, high, mean, std;  // mean and std empty where there is no normaliser
  std::vector<float> scale;  // [A] 2 / (high - low), by which rules measure distances; 0 where that is not finite
  ActionMap map;            // of what was chosen
  int chunk;                // h, actions of a call
  // What is held after a good call: its last action, h times. To begin a chunk anew would be to jump back.
  void hold_after(const float* actions, float* last) const noexcept {
    const int each = act_dim / chunk;
    for (int i = 0; i < chunk; ++i) std::memcpy(last + i * each, actions + act_dim - each, each * sizeof(float));
  }
  std::vector<float> rest;  // [A] 0, clipped to the bounds of what is returned: held before there is a good action
  // An action's component within its bounds. NaN stays NaN: it is judged later.
  float clip(float x, int a) const noexcept {
    x = x < low[a] ? low[a] : x;
    return x > high[a] ? high[a] : x;
  }
  const float* zero;                        // [width]
  Form form;
  int draws;  // the form's
  std::vector<Schedule> schedules;  // one for each of the form's counts, in their order
  // Null where the policy does not act with so many steps.
  const Schedule* schedule(int steps) const {
    for (const Schedule& each : schedules)
      if (each.k == steps) return &each;
    return nullptr;
  }
  FirstLayers first;
  // Floats of a schedule's biases, and makes them there: every input that a step or a call holds constant.
  std::size_t bias_floats(const Schedule& schedule) const;
  void fold(Schedule& schedule, float* biases) const;
  Side side;
  Ood ood;
  Pages pages;
};

}  // namespace sorl
