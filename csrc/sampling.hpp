// The arithmetic of a call: from observations to every candidate's z and Q. Which of them acts is conclusion.hpp's.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "deadline.hpp"
#include "model.hpp"
#include "rule.hpp"
#include "scratch.hpp"
#include "team.hpp"

namespace sorl {

struct Call {
  const float *obs, *noise;
  const Schedule* schedule;
  double temperature;
  int rows, candidates;
  std::uint64_t seed;
  std::uint32_t call, row_offset;
  Rule rule;
  bool want_q;
  bool want_ood;  // whether anybody reads which observations are out of distribution
  int scored;  // candidates that have a Q
  int total;  // rows * candidates
  const Side* side;
  bool together;
  bool joint;  // the first layers read observation and z, or action, as one
  int block;  // rows of a block, where threads work apart
  int blocks;
  Watch* watch;           // null: there is no deadline
  const Schedule* rests;  // with one: what each step is if it is the last
};

// What a session computes in. Everything is allocated before the first call.
class Sampling {
 public:
  // For calls of at most so many rows and candidates; `packed` must outlive it. Throws std::bad_alloc or
  // std::system_error.
  Sampling(const Packed& packed, int threads, int rows, int candidates);
  void lay_out(Bump& bump, int rows, int candidates);
  void warm_up() noexcept { team.run(touch, this); }

  // Does `call`, whose last three fields it sets: fills in z and, where it is wanted, q.
  void run() noexcept;

  // Of a call with a deadline, how many candidates all critics have seen.
  int scored() const noexcept;

  // A row's Q.
  float aggregate(int row) const noexcept {
    float value = q[row];
    for (int e = 1; e < p.ensemble; ++e) {
      const float other = q[static_cast<std::size_t>(e) * call.total + row];
      if (!p.q_min)
        value += other;
      else if (other < value || other != other)
        value = other;
    }
    return p.q_min ? value : value / static_cast<float>(p.ensemble);
  }

  const Packed& p;
  Team team;
  Call call{};
  float* z = nullptr;               // [rows][A] noise, then z, of the whole call
  float* q = nullptr;               // [E][rows]
  std::uint32_t* status = nullptr;  // [B]
  float* far = nullptr;             // [B] |W (observation - mean)|^2, where it was wanted
  std::int32_t* scored_by = nullptr;  // [E] candidates that each critic has seen, of a call with a deadline

 private:
  int share(int n, int t) const noexcept;
  void observe(const Scratch& s, int first, int count) const noexcept;
  void judge(int first, int first_obs, int count_obs) const noexcept;
  void observation_part(const Scratch& s, const Net& net, int count, int panel_begin, int panel_end) const noexcept;
  void first_layer(Dense& d, const Net& net, const Scratch& s, const char* in) const noexcept;
  void draw(int d, int first, int count, float* to) const noexcept;
  void advance(const Step& step, const Scratch& own, const Side& side, int first, int count, float* z_mine) const
      noexcept;
  void sample(int thread, int first, int n) noexcept;
  bool vectors_head(const Side& side) const noexcept;
  void velocities(const Side& side, const char* act, int rows, float* velocity) const noexcept;
  void extend(const Step& rest, const Scratch& own, const Side& side, int count, float* z_mine) const noexcept;
  void score(int thread, int first, int n, int first_obs, int count_obs, const float* z_all) noexcept;
  bool critic(const Scratch& s, const Side& side, int e, int first, int n, int first_obs, int count_obs,
              const float* z_all) noexcept;
  void thread_work(int thread) noexcept;
  static void touch(void* self, int) noexcept;
  static void work(void* self, int thread) noexcept;

  int capacity_;                  // rows of a thread's scratch
  std::vector<Scratch> scratch_;  // one a thread
  int team_size_ = 1;             // threads of this call
  std::atomic<int> next_block_{0};
};

}  // namespace sorl
