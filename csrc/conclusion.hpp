// What becomes of a call's candidates: which of them acts, bounds, units, what is held, status.
#pragma once

#include <cstdint>
#include <vector>

#include "choose.hpp"
#include "sampling.hpp"

namespace sorl {

// Keeps the last good action from one call to the next.
class Conclusion {
 public:
  // For calls of at most so many candidates. `p` must outlive it.
  void lay_out(Bump& bump, const Packed& p, int candidates);

  // Of what `s` has sampled; candidate, q and status may be null, as of Engine::act.
  void conclude(const Sampling& s, float* actions, std::int32_t* candidate, float* q, std::uint32_t* status) noexcept;

  void reset(const Packed& p) noexcept;
  void continue_from(const Packed& p, const Conclusion& other) noexcept;
  std::vector<float> last(const Packed& p) const { return {last_, last_ + p.act_dim}; }
  void set_last(const std::vector<float>& action) noexcept;

 private:
  struct Chosen {
    int candidate;  // -1: none is good
    float q;        // 0 where it was not asked for
    bool rejected;  // another one was not good
  };
  Chosen best(const Sampling& s, int b) const noexcept;
  Chosen choose(const Sampling& s, int b) noexcept;

  float* last_ = nullptr;  // [A] last good action
  float* held_ = nullptr;  // [A] what rows of this call get that have none
  Chooser chooser_;
};

}  // namespace sorl
