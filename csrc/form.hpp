// How an actor becomes an action: a form, which comes down to a schedule of steps.
//
// sorl_fast/act/form.py says what the fields of a file mean, sorl_fast/act/reference.py what is computed.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "json.hpp"
#include "schedule.hpp"

namespace sorl {

inline constexpr int kMostSteps = 1 << 10;  // of one action
inline constexpr int kMostCounts = 11;      // as many as there are powers of two up to it
inline constexpr int kMostNoisy = 255;      // steps of a diffusion: a step's number is a byte of the noise's counter
inline constexpr int kMostNoisyAct = 1 << 26;  // where later steps add noise, A is below

struct Form {
  enum class Kind { shortcut, euler, direct, tanh, diffusion };
  static constexpr float kNoClip = std::numeric_limits<float>::infinity();

  Kind kind = Kind::shortcut;
  std::vector<int> counts;  // the step counts that a caller may ask for, ascending
  // direct, tanh
  bool reads_noise = true;  // z begins as noise, not as 0
  float noise_scale = 0;
  float noise_clip = kNoClip;
  // diffusion: one a step
  std::vector<float> times, z_scales, v_scales, noise_scales;
  float clip = kNoClip;
  // direct, tanh, diffusion
  float temperature = 0;

  // A shortcut actor's: counts 1, 2, 4, ..., m_disc.
  static Form shortcut(int m_disc);

  const char* name() const noexcept;
  // "1, 2, 4"
  std::string counts_text() const;
  // Whether a caller may say what multiplies the noise that is added.
  bool has_temperature() const noexcept;
  // S, how many normal numbers a candidate takes for each component of its action.
  int draws() const noexcept;
  // Of one of `counts`. Biases are left null.
  Schedule schedule(int steps) const;
};

// Reads the value of the field `form` of a policy file: form_parser.cpp. False, with what is wrong in `error`,
// "form NAME is VALUE, but must be BOUND", and in `remedy` what to do if that is not to save the file again.
bool parse_form(json::Reader reader, Form& form, std::string& error, const char*& remedy);

}  // namespace sorl
