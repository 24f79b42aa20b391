// Which of an observation's candidates becomes its action, where that is not just the one of the highest Q.
//
// sorl_fast/act/rules.py defines it; here in float32, each sum in one order: the same bits wherever a row stands.
#pragma once

#include <cstdint>

#include "kernels.hpp"
#include "model.hpp"
#include "rule.hpp"

namespace sorl {

// One observation at a time: clear, add each good candidate in order, pick. Allocates nothing.
class Chooser {
 public:
  // For at most so many candidates. `p` must outlive it.
  void lay_out(Bump& bump, const Packed& p, int candidates);

  void clear() noexcept { n_ = 0; }
  void add(int candidate, float q) noexcept {
    index_[n_] = candidate;
    q_[n_++] = q;
  }
  // The chosen candidate, -1 where none was added. z [N][A]: every candidate's action before the clip, finite
  // where added. u in [0, 1): read by a rule that draws. q: read by a rule that reads it.
  int pick(const Rule& rule, const float* z, double u) noexcept;

 private:
  // Brings the `size` foremost by value, of equal ones the first, to the front of order_, ascending.
  template <class Before>
  void part(int size, Before before) noexcept;
  void part_by_q(int size) noexcept;
  void gather(const float* z, int size) noexcept;
  int medoid(const float* z, int size) noexcept;
  int nearest(const float* z, int size) noexcept;
  int soft(float tau, double u) noexcept;

  const Packed* p_ = nullptr;
  int n_ = 0;
  std::int32_t* index_ = nullptr;  // [N] the candidates that were added
  std::int32_t* order_ = nullptr;  // [N] of 0 .. n - 1
  float* q_ = nullptr;             // [N]
  float* value_ = nullptr;         // [N] distances, or weights
  float* points_ = nullptr;        // [A][stride_] actions within the bounds
  std::size_t stride_ = 0;
};

}  // namespace sorl
