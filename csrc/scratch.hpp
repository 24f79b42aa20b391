// What one thread of a session works in.
#pragma once

#include <cstring>

#include "model.hpp"

namespace sorl {

// One thread's working memory for up to `rows` rows of any block.
struct Scratch {
  float* obs;          // [rows][O] normalised
  char* obs_in;        // activations of the same
  float* obs_part;     // [rows][width] the observation's part of a first layer
  const float** init;  // [rows] that row's observation's obs_part
  float* z;            // [rows][A] this thread's copy
  char* in;            // activations of z, or of the clipped actions
  char* joint;         // [rows] activations of the observations, then z or the clipped actions
  char* first;         // [alone] activations of the first layer, where a thread has all of it
  char* act[2];        // activations of a layer, and of the one before it
  float* pre;          // [rows][width] a critic's layer before its LayerNorm
  RowAffine* affine;   // [rows] a critic's LayerNorm, in int8
  float* velocity;     // [rows][head_width]
  float* added;        // [rows][A] a step's noise, where the form adds any

  void lay_out(Bump& bump, const Packed& p, std::size_t rows, std::size_t alone) {
    const std::size_t width = p.width;
    // Tiles read whole groups of rows: 32 rows of slack.
    const std::size_t held = rows + 32;
    obs = bump.take<float>(held * p.obs_dim);
    obs_in = bump.take<char>(held * p.side.obs_stride);
    obs_part = bump.take<float>(held * width);
    init = bump.take<const float*>(held);
    z = bump.take<float>(held * p.act_dim);
    in = bump.take<char>(held * p.side.in_stride);
    joint = bump.take<char>(held * p.side.joint_stride);
    first = bump.take<char>((alone + 32) * p.side.act_stride);
    for (char*& a : act) a = bump.take<char>(held * p.side.act_stride);
    pre = bump.take<float>(held * width);
    affine = bump.take<RowAffine>(held);
    velocity = bump.take<float>(held * p.side.head_width);
    added = bump.take<float>(p.form.has_temperature() ? held * p.act_dim : 0);
    bump.take<char>(0, 256);  // neighbours' lines apart
  }
};

// From a velocity an observation to one for each of `n` candidates, of which `first` is the call's row: in
// place, rows of `stride` floats. No row is overwritten before it was read: its source is not above it.
inline void spread(float* velocity, int stride, int first, int n, int candidates) noexcept {
  const int first_obs = first / candidates;
  const auto row = [&](int r) { return velocity + static_cast<std::size_t>(r) * stride; };
  for (int r = n - 1; r >= 0; --r)
    std::memmove(row(r), row((first + r) / candidates - first_obs), stride * sizeof(float));
}

}  // namespace sorl
