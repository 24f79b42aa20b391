#include "deadline.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

namespace sorl {

namespace {

// Candidates of a policy of which no evaluation says how many are best: few, for more are not always better.
constexpr int kUsualCandidates = 4;

// A pace goes up by 99 times as much as down: it rests where 99 of a hundred calls are below it.
constexpr double kFaster = 1 - 1. / 2000, kSlower = 1 + 99. / 2000, kMostPace = 16;

std::int64_t read_steady(void*) noexcept {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// A step from each step's beginning to the end.
Schedule rests_of(const Schedule& schedule, const Form& form) {
  Schedule made{schedule.k, schedule.steps};
  const double most = std::log2(static_cast<double>(form.counts.back()));
  for (std::size_t i = 0; i < made.steps.size(); ++i) {
    Step& step = made.steps[i];
    if (i == 0 || i + 1 == made.steps.size()) continue;  // nothing is cut before the first; the last ends there
    const double left = 1 - step.t;
    step.b = static_cast<float>(left);
    if (form.kind == Form::Kind::shortcut) step.log2_steps = std::min(-std::log2(left), most);
  }
  return made;
}

}  // namespace

Clock Clock::steady() noexcept { return {read_steady, nullptr}; }

void Watch::begin(const Clock& clock, std::int64_t budget, const Cost& cost) noexcept {
  clock_ = clock;
  begin_ = mark_ = now();
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  end_ = budget < most - begin_ ? begin_ + budget : most;
  cost_ = cost;
  taken_ = Cost{};
  steps_ = groups_ = 0;
  for (std::atomic<int>* mark : {&stop_, &end_step_, &last_step_}) mark->store(kNever, std::memory_order_relaxed);
  stop_step_ = kNever;
}

void Watch::layer_done(int layer, int step, bool last, int steps) noexcept {
  const std::int64_t at = now();
  // a layer is begun if it is expected to be in time
  if (at + (last ? 0 : cost_.layer) >= end_) {
    stop_step_ = step;
    stop_.store(layer, std::memory_order_relaxed);
    return;
  }
  if (!last) return;
  taken_.step += at - mark_;
  ++steps_;
  mark_ = at;
  const int next = step + 1;
  if (next >= steps || is_last(step)) return;
  const std::int64_t left = end_ - at;
  if (left < cost_.step + cost_.rest)
    end_step_.store(next, std::memory_order_relaxed);
  else if (next + 1 < steps && left < 2 * cost_.step + cost_.rest)
    last_step_.store(next, std::memory_order_relaxed);
}

void Watch::group_done(std::int64_t begun) noexcept {
  mark_ = now();
  taken_.score += mark_ - begun;
  ++groups_;
}

void Watch::call_done() noexcept {
  const std::int64_t at = now();
  taken_.call = at - begin_;
  taken_.rest = at - mark_;
  taken_.step /= std::max(1, steps_);
  taken_.score /= std::max(1, groups_);
}

void Watch::tell(Pace& pace, const Cost& measured) const noexcept {
  if (steps_ > 0)
    pace.saw(steps_ * taken_.step + groups_ * taken_.score, steps_ * measured.step + groups_ * measured.score);
  else if (taken_.call > measured.step)
    pace.saw(taken_.call, measured.step);
}

void Pace::late() noexcept { value_ = std::min(value_ * kSlower, kMostPace); }

void Pace::saw(std::int64_t took, std::int64_t expected) noexcept {
  if (expected <= 0) return;
  const bool slower = static_cast<double>(took) > value_ * static_cast<double>(expected);
  value_ = std::clamp(value_ * (slower ? kSlower : kFaster), 1 / kMostPace, kMostPace);
}

std::int64_t Pace::times(std::int64_t nanoseconds) const noexcept {
  return static_cast<std::int64_t>(value_ * static_cast<double>(nanoseconds));
}

Cost Pace::times(const Cost& c) const noexcept {
  return {times(c.call), times(c.step), times(c.score), times(c.rest), times(c.layer)};
}

int Watch::evaluations(int steps) const noexcept {
  const int last = last_step_.load(std::memory_order_relaxed);
  const int ended = end_step_.load(std::memory_order_relaxed);
  return std::min({steps, stop_step_, ended, last == kNever ? kNever : last + 1});
}

bool Watch::is_cut() const noexcept {
  return stop_step_ != kNever || end_step_.load(std::memory_order_relaxed) != kNever ||
         last_step_.load(std::memory_order_relaxed) != kNever;
}

void Plan::add(const Packed& p, const Way& way, const Schedule& schedule) {
  auto made = std::make_unique<Planned>();
  made->way = way;
  made->schedule = &schedule;
  made->rests = rests_of(schedule, p.form);
  made->biases = Pages(p.bias_floats(made->rests) * sizeof(float), kHugePage);
  p.fold(made->rests, reinterpret_cast<float*>(made->biases.data()));
  ways_.push_back(std::move(made));
}

void Plan::set_cost(std::size_t index, const Cost& cost) noexcept {
  ways_[index]->cost = cost;
  for (std::size_t i = 0; i < ways_.size(); ++i)
    if (ways_[i]->cost.call < ways_[cheapest_]->cost.call) cheapest_ = i;
}

std::size_t Plan::choose(std::int64_t budget, const Pace& pace) const noexcept {
  for (std::size_t i = 0; i < ways_.size(); ++i)
    if (pace.times(ways_[i]->cost.call) <= budget) return i;
  return cheapest_;
}

std::vector<Wanted> usual_ways(const Form& form, bool has_critic, const Choice* own, int most_candidates) {
  std::vector<std::vector<double>> schedules;
  if (own != nullptr) schedules.push_back(own->sizes);
  const std::size_t most = own == nullptr ? std::numeric_limits<std::size_t>::max() : own->sizes.size();
  for (auto count = form.counts.rbegin(); count != form.counts.rend(); ++count)
    if (static_cast<std::size_t>(*count) < most) schedules.push_back(even_sizes(*count));
  const int first = own != nullptr ? own->candidates : has_critic ? kUsualCandidates : 1;
  std::vector<Wanted> wanted;
  for (const std::vector<double>& sizes : schedules)
    for (int N = first; N > 0; N /= 2)
      if (N <= most_candidates) wanted.push_back({sizes, N});
  return wanted;
}

std::int64_t quantile(std::vector<std::int64_t>& values, double q) {
  const auto at = static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

}  // namespace sorl
