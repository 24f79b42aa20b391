// Acting inside a deadline: the way to act that a time budget allows, and what becomes of a call whose time runs
// out in the middle. docs/robot.md says what a caller may rely on.
#pragma once

#include <atomic>
#include <climits>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "choice.hpp"
#include "model.hpp"
#include "rule.hpp"

namespace sorl {

// A way to act.
struct Way {
  int steps = 1;  // as Engine::act takes it
  int candidates = 1;
  Rule rule;
};

// What a way takes, in nanoseconds.
struct Cost {
  std::int64_t call = 0;   // all of it: no less than the parts
  std::int64_t step = 0;   // one evaluation of the actor, for all candidates, on average over a call
  std::int64_t score = 0;  // the critics, for one group of candidates, likewise
  std::int64_t rest = 0;   // what follows the last of either
  std::int64_t layer = 0;  // one of the actor's
};

// Of a call with a deadline, candidates that the critics see before the next ones: what a cut may lose.
constexpr int kScoreRows = 8;

// Nanoseconds since any moment.
struct Clock {
  std::int64_t (*read)(void* context) noexcept;
  void* context;
  // The system's monotonic one, which Linux reads without a system call where its clock source allows that.
  static Clock steady() noexcept;
};

// How many times as long as when the ways were measured a call's parts now take: what all but one in a hundred of the
// last calls did not pass. So a machine that has become slower costs some calls and no more, and where other
// programs take the core from more of them than that, what is chosen becomes cheap enough for the share that is left.
class Pace {
 public:
  void late() noexcept;  // not even the cheapest way fits into a call's budget: the loop woke too late
  void saw(std::int64_t took, std::int64_t expected) noexcept;
  Cost times(const Cost& cost) const noexcept;
  std::int64_t times(std::int64_t nanoseconds) const noexcept;

 private:
  double value_ = 1;
};

// What was done of a way.
struct Done {
  int way = 0;               // its index
  int steps = 0;             // that it has
  int evaluations = 0;       // of the actor that became part of the action
  int candidates = 0;        // that it has
  int scored = 0;            // of which the critics have seen so many
  std::int64_t elapsed = 0;  // nanoseconds, all in all
};

// The clock of one call, and where its plan was cut short. The calling thread alone decides about steps, before
// the threads meet; the others obey after it. Its marks only ever name a layer or a step that no thread is past.
class Watch {
 public:
  void begin(const Clock& clock, std::int64_t budget, const Cost& cost) noexcept;

  std::int64_t now() const noexcept { return clock_.read(clock_.context); }
  bool passed() const noexcept { return now() >= end_; }
  bool can_score() const noexcept { return end_ - now() >= cost_.score + cost_.rest; }

  // After a layer of step `step` of `steps`, its last before the head if `last`; layers are counted over the call.
  void layer_done(int layer, int step, bool last, int steps) noexcept;
  void group_done(std::int64_t begun) noexcept;
  void call_done() noexcept;

  // No layer follows this one.
  bool stopped(int layer) const noexcept { return stop_.load(std::memory_order_relaxed) <= layer; }
  // No step from this one on is evaluated: there was no time for it.
  bool ended(int step) const noexcept { return end_step_.load(std::memory_order_relaxed) <= step; }
  // This one is taken to the end.
  bool is_last(int step) const noexcept { return last_step_.load(std::memory_order_relaxed) == step; }

  int evaluations(int steps) const noexcept;
  bool is_cut() const noexcept;
  // Before there was a velocity: the call has no action.
  bool is_empty() const noexcept { return stop_step_ == 0; }
  const Cost& taken() const noexcept { return taken_; }
  // Of the way that was chosen, as `measured`, what those of its parts took that were done.
  void tell(Pace& pace, const Cost& measured) const noexcept;

 private:
  static constexpr int kNever = INT_MAX;
  Clock clock_{};
  std::int64_t begin_ = 0, end_ = 0, mark_ = 0;
  Cost cost_;   // as expected
  Cost taken_;  // by this call; of steps and groups their sums, until call_done
  int steps_ = 0, groups_ = 0;
  std::atomic<int> stop_{kNever}, end_step_{kNever}, last_step_{kNever};
  int stop_step_ = kNever;
};

// A way as it is called.
struct Planned {
  Way way;
  const Schedule* schedule;  // of the model or of the session's prepared ones
  Schedule rests;  // for each of its steps one from there to the end
  Pages biases;    // of those
  Cost cost;
};

// The ways that a session chooses from, the best first.
class Plan {
 public:
  // Throws std::bad_alloc.
  void add(const Packed& p, const Way& way, const Schedule& schedule);
  void set_cost(std::size_t index, const Cost& cost) noexcept;
  bool empty() const noexcept { return ways_.empty(); }
  std::size_t size() const noexcept { return ways_.size(); }
  const Planned& at(std::size_t index) const noexcept { return *ways_[index]; }
  // Whether even the cheapest needs more than the budget, as it was measured.
  bool is_late(std::int64_t budget) const noexcept { return budget < ways_[cheapest_]->cost.call; }
  // The first that fits into the budget, else the cheapest.
  std::size_t choose(std::int64_t budget, const Pace& pace) const noexcept;

 private:
  std::vector<std::unique_ptr<Planned>> ways_;
  std::size_t cheapest_ = 0;
};

// Sizes and candidates of the ways where nobody has ordered any, the best first: more steps, then more candidates,
// none more than the policy's own where its file says which.
struct Wanted {
  std::vector<double> sizes;
  int candidates;
};
std::vector<Wanted> usual_ways(const Form& form, bool has_critic, const Choice* own, int most_candidates);

// The value below which the part `q` of them lies; reorders them. At least one.
std::int64_t quantile(std::vector<std::int64_t>& values, double q);

}  // namespace sorl
