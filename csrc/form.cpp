#include "form.hpp"

namespace sorl {

Form Form::shortcut(int m_disc) {
  Form form;
  for (int steps = 1; steps <= m_disc; steps *= 2) form.counts.push_back(steps);
  return form;
}

const char* Form::name() const noexcept {
  switch (kind) {
    case Kind::shortcut: return "shortcut";
    case Kind::euler: return "euler";
    case Kind::direct: return "direct";
    case Kind::tanh: return "tanh";
    case Kind::diffusion: return "diffusion";
  }
  return "";
}

std::string Form::counts_text() const {
  std::string text;
  for (const int m : counts) text += (text.empty() ? "" : ", ") + std::to_string(m);
  return text;
}

bool Form::has_temperature() const noexcept {
  return kind == Kind::diffusion || ((kind == Kind::direct || kind == Kind::tanh) && !reads_noise);
}

int Form::draws() const noexcept {
  int draws = 1;  // z_0, or a one-step actor's noise
  for (std::size_t i = 0; i < noise_scales.size(); ++i)
    if (noise_scales[i] > 0) draws = static_cast<int>(i) + 2;
  return draws;
}

Schedule Form::schedule(int steps) const {
  if (kind == Kind::shortcut || kind == Kind::euler) return euler_schedule(even_sizes(steps), counts.back());
  Schedule made{steps, {}};
  for (int i = 0; i < steps; ++i) {
    const auto at = static_cast<std::size_t>(i);
    switch (kind) {
      case Kind::shortcut:
      case Kind::euler: break;  // above
      case Kind::direct:
      case Kind::tanh:
        made.steps.push_back({0, 0, 0.0f, 1.0f, reads_noise ? 0.0 : static_cast<double>(noise_scale), 0});
        break;
      case Kind::diffusion:
        made.steps.push_back({static_cast<double>(times[at]), 0, z_scales[at], v_scales[at],
                              static_cast<double>(noise_scales[at]), i + 1});
        break;
    }
  }
  return made;
}

}  // namespace sorl
