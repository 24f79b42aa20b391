// A session: checks of a call, and the order of its parts. What they do is sampling.hpp's and conclusion.hpp's.
#include "engine.hpp"

#include <cstring>
#include <limits>
#include <new>
#include <system_error>

#include "conclusion.hpp"
#include "deadline.hpp"
#include "denormals.hpp"
#include "finite.hpp"
#include "prepared.hpp"
#include "sampling.hpp"

namespace sorl {

namespace {

// What it takes to know a way's cost: its first calls do not count, and then so many do, or for so long.
constexpr int kWarmUp = 5, kLeastCalls = 20, kMostCalls = 200;
constexpr std::int64_t kMeasured = 20'000'000;  // nanoseconds
// A cost is what a call is not expected to pass; a call that another program delays is not meant.
constexpr double kHigh = 0.75;

}  // namespace

struct Engine::Impl {
  std::shared_ptr<const Model> model;
  const Packed& p;
  int max_rows, max_candidates;
  Sampling sampling;
  Conclusion conclusion;
  Pages pages;
  double temperature;
  Rule rule;
  PreparedSchedules prepared;
  std::shared_ptr<Plan> plan;  // null until a deadline was prepared
  Watch watch;
  Pace pace;
  Clock clock = Clock::steady();

  Impl(std::shared_ptr<const Model> m, int threads, int rows, int candidates)
      : model(std::move(m)),
        p(model->packed()),
        max_rows(rows),
        max_candidates(candidates),
        sampling(p, threads, rows, candidates),
        temperature(static_cast<double>(p.form.temperature)) {
    const auto lay_out = [&](char* base) {
      Bump bump(base);
      sampling.lay_out(bump, rows, candidates);
      conclusion.lay_out(bump, p, candidates);
      return bump.used();
    };
    const std::size_t bytes = lay_out(nullptr);
    pages = Pages(bytes);
    lay_out(pages.data());
    std::memset(pages.data(), 0, bytes);  // every page is there before the first call
    sampling.warm_up();
    conclusion.reset(p);
  }

  // Null where there is none of that number.
  const Schedule* schedule(int steps) const noexcept {
    const Schedule* const own = p.schedule(steps);
    return own != nullptr ? own : prepared.find(steps);
  }

  // What every call begins with, when its fields are set.
  void begin() noexcept {
    Call& c = sampling.call;
    c.total = c.rows * c.candidates;
    c.side = &p.side;
    for (int b = 0; b < c.rows; ++b) {
      bool seen = true;
      for (int i = 0; i < p.obs_dim; ++i)
        seen = seen && finite(c.obs[static_cast<std::size_t>(b) * p.obs_dim + i]);
      sampling.status[b] = seen ? 0u : static_cast<std::uint32_t>(nonfinite_obs);
    }
  }

  // By a way, until the watch, which has begun, says that the time is over.
  void act_by(const Planned& planned, const float* obs, std::uint64_t seed, std::uint32_t number,
              std::uint32_t row_offset, float* action, std::int32_t* candidate, float* q,
              std::uint32_t* status) noexcept {
    Call& c = sampling.call;
    c.obs = obs;
    c.noise = nullptr;
    c.schedule = planned.schedule;
    c.temperature = static_cast<double>(p.form.temperature);
    c.rows = 1;
    c.candidates = planned.way.candidates;
    c.seed = seed;
    c.call = number;
    c.row_offset = row_offset;
    c.rule = planned.way.rule;
    c.want_q = c.candidates > 1 && c.rule.reads_q();
    c.want_ood = p.ood.whitening.dim > 0;
    c.watch = &watch;
    c.rests = &planned.rests;
    const FlushDenormals flush;
    begin();
    for (int e = 0; e < p.ensemble; ++e) sampling.scored_by[e] = 0;
    sampling.run();
    c.scored = sampling.scored();
    if (watch.is_cut() || (c.want_q && c.scored < c.candidates)) sampling.status[0] |= cut_short;
    conclusion.conclude(sampling, action, candidate, q, status);
    watch.call_done();
  }

  // A way's numbers, of calls that nothing cuts short.
  Cost measure(const Planned& planned, const float* obs, float* action) {
    std::vector<std::int64_t> times[4];
    for (auto& each : times) each.reserve(kMostCalls);
    std::int64_t spent = 0;
    for (int i = -kWarmUp; i < kMostCalls && (i < kLeastCalls || spent < kMeasured); ++i) {
      watch.begin(clock, std::numeric_limits<std::int64_t>::max(), Cost{});
      act_by(planned, obs, 0, 0, 0, action, nullptr, nullptr, nullptr);
      if (i < 0) continue;
      const Cost& taken = watch.taken();
      spent += taken.call;
      times[0].push_back(taken.call);
      times[1].push_back(taken.step);
      times[2].push_back(taken.score);
      times[3].push_back(taken.rest);
    }
    const auto layers = static_cast<std::int64_t>(p.side.actor.hidden.size()) + 1;
    const auto high = [&](int i) { return quantile(times[i], kHigh); };
    Cost cost{high(0), high(1), high(2), high(3), high(1) / layers};
    // A call that is chosen because it fits must not be cut because its parts, expected one by one, do not.
    const Way& way = planned.way;
    const int groups = way.candidates > 1 && way.rule.reads_q() ? (way.candidates + kScoreRows - 1) / kScoreRows : 0;
    const auto steps = static_cast<std::int64_t>(planned.schedule->steps.size());
    cost.call = std::max(cost.call, steps * cost.step + groups * cost.score + cost.rest);
    return cost;
  }

  bool refuse(const Way& way, std::string& error) const {
    const auto bad = [&](const char* what, int value, const std::string& bound) {
      error = std::string(what) + " is " + std::to_string(value) + ", but must be " + bound;
      return true;
    };
    const int most = std::min(max_candidates, p.side.kernels->block_rows);
    if (schedule(way.steps) == nullptr)
      return bad("steps", way.steps, "one of " + p.form.counts_text() + ", or what was prepared");
    if (way.candidates < 1 || way.candidates > most)
      return bad("candidates", way.candidates, "1 to " + std::to_string(most) + " with a deadline");
    if (way.candidates > 1 && way.rule.reads_q() && p.ensemble == 0)
      return bad("candidates", way.candidates, "1, or the rule centre, for this policy has no critic");
    return false;
  }

  bool prepare_deadline(std::vector<Way> ways, const Choice* own, std::string& error) {
    if (p.form.kind == Form::Kind::diffusion) {
      error = "a diffusion's steps cannot be cut short: act without a deadline";
      return false;
    }
    if (ways.empty()) {
      const int most = std::min(max_candidates, p.side.kernels->block_rows);
      const Rule by = own != nullptr ? own->rule : Rule{};
      for (const Wanted& wanted : usual_ways(p.form, p.ensemble > 0, own, most)) {
        const int steps = prepared.prepare(p, wanted.sizes, error);
        if (steps == 0) return false;
        ways.push_back({steps, wanted.candidates, by});
      }
    }
    for (const Way& way : ways)
      if (refuse(way, error)) return false;
    auto made = std::make_shared<Plan>();
    for (const Way& way : ways) made->add(p, way, *schedule(way.steps));
    const std::vector<float> obs(static_cast<std::size_t>(p.obs_dim)), held = conclusion.last(p);
    std::vector<float> action(static_cast<std::size_t>(p.act_dim));
    for (std::size_t i = 0; i < made->size(); ++i) made->set_cost(i, measure(made->at(i), obs.data(), action.data()));
    conclusion.set_last(held);
    plan = std::move(made);
    pace = Pace{};
    return true;
  }
};

std::unique_ptr<Engine> Engine::make(std::shared_ptr<const Model> model, int threads, int max_rows,
                                     int max_candidates, std::string& error) {
  const auto refuse = [&](const char* what, std::int64_t value, const std::string& bound) {
    error = std::string(what) + " is " + std::to_string(value) + ", but must be " + bound;
    return nullptr;
  };
  if (model == nullptr) {
    error = "a session needs a model";
    return nullptr;
  }
  if (threads < 1 || threads > max_threads)
    return refuse("threads", threads, "in [1, " + std::to_string(max_threads) + "]");
  if (max_rows < 1) return refuse("max_rows", max_rows, "at least 1");
  if (max_candidates < 1) return refuse("max_candidates", max_candidates, "at least 1");
  const std::int64_t total = static_cast<std::int64_t>(max_rows) * max_candidates;
  if (total > max_numbers / model->act_dim())
    return refuse("max_rows * max_candidates", total, "at most 2^30 / act_dim");
  try {
    return std::unique_ptr<Engine>(new Engine(
        std::make_unique<Impl>(std::move(model), threads, max_rows, max_candidates)));
  } catch (const std::bad_alloc&) {
    error = "memory is short for a session's scratch: ask for fewer rows, candidates or threads";
  } catch (const std::system_error& e) {
    error = std::string("can't start a worker thread: ") + e.what();
  }
  return nullptr;
}

int Engine::act(const float* obs, const float* noise, int rows, int steps, int candidates,
                std::uint64_t seed, std::uint32_t call, std::uint32_t row_offset, float* actions,
                std::int32_t* candidate, float* q, std::uint32_t* status) noexcept {
  Impl& m = *impl_;
  const auto code = [](Result result) { return static_cast<int>(result); };
  const Schedule* schedule = m.schedule(steps);
  if (schedule == nullptr) return code(Result::bad_steps);
  if (rows < 0) return code(Result::bad_rows);
  if (candidates < 1) return code(Result::bad_candidates);
  const bool choosing = candidates > 1 && m.rule.reads_q();
  if (choosing && m.p.ensemble == 0) return code(Result::no_critic);
  if (rows > m.max_rows || candidates > m.max_candidates) return code(Result::too_large);
  if (rows == 0) return code(Result::ok);
  if (obs == nullptr || actions == nullptr) return code(Result::null_pointer);

  Call& c = m.sampling.call;
  c.obs = obs;
  c.noise = noise;
  c.schedule = schedule;
  c.temperature = m.temperature;
  c.rows = rows;
  c.candidates = candidates;
  c.seed = seed;
  c.call = call;
  c.row_offset = row_offset;
  c.rule = m.rule;
  c.want_q = m.p.ensemble > 0 && (choosing || q != nullptr);
  c.want_ood = m.p.ood.whitening.dim > 0 && status != nullptr;
  c.scored = c.want_q ? candidates : 0;
  c.watch = nullptr;
  const FlushDenormals flush;
  m.begin();
  m.sampling.run();
  m.conclusion.conclude(m.sampling, actions, candidate, q, status);
  return code(Result::ok);
}

int Engine::act_by(const float* obs, std::int64_t budget, std::uint64_t seed, std::uint32_t call,
                   std::uint32_t row_offset, float* action, std::int32_t* candidate, float* q, std::uint32_t* status,
                   Done* done) noexcept {
  Impl& m = *impl_;
  if (m.plan == nullptr) return static_cast<int>(Result::no_plan);
  if (obs == nullptr || action == nullptr) return static_cast<int>(Result::null_pointer);
  const std::size_t index = m.plan->choose(budget, m.pace);
  const Planned& planned = m.plan->at(index);
  if (planned.way.candidates > m.max_candidates) return static_cast<int>(Result::too_large);
  m.watch.begin(m.clock, budget, m.pace.times(planned.cost));
  m.act_by(planned, obs, seed, call, row_offset, action, candidate, q, status);
  if (m.plan->is_late(budget))
    m.pace.late();
  else
    m.watch.tell(m.pace, planned.cost);
  if (done != nullptr) {
    const auto steps = static_cast<int>(planned.schedule->steps.size());
    *done = {static_cast<int>(index), steps, m.watch.evaluations(steps), planned.way.candidates,
             m.sampling.call.scored, m.watch.taken().call};
  }
  return static_cast<int>(Result::ok);
}

bool Engine::prepare_deadline(const std::vector<Way>& ways, const Choice* own, std::string& error) {
  return impl_->prepare_deadline(ways, own, error);
}
std::size_t Engine::planned() const noexcept { return impl_->plan == nullptr ? 0 : impl_->plan->size(); }
const Planned& Engine::planned(std::size_t index) const noexcept { return impl_->plan->at(index); }
void Engine::set_clock(const Clock& clock) noexcept { impl_->clock = clock; }
void Engine::set_cost(std::size_t way, const Cost& cost) noexcept {
  impl_->plan->set_cost(way, cost);
  impl_->pace = Pace{};
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;
int Engine::prepare(std::vector<double> sizes, std::string& error) {
  return impl_->prepared.prepare(impl_->p, std::move(sizes), error);
}
void Engine::set_rule(const Rule& rule) noexcept { impl_->rule = rule; }
void Engine::set_temperature(double temperature) noexcept { impl_->temperature = temperature; }
void Engine::reset() noexcept { impl_->conclusion.reset(impl_->p); }
void Engine::continue_from(const Engine& other) {
  impl_->prepared = other.impl_->prepared;
  impl_->rule = other.impl_->rule;
  impl_->plan = other.impl_->plan;
  impl_->pace = other.impl_->pace;
  impl_->clock = other.impl_->clock;
  impl_->conclusion.continue_from(impl_->p, other.impl_->conclusion);
  impl_->temperature = other.impl_->temperature;
}
const Model& Engine::model() const noexcept { return *impl_->model; }
int Engine::threads() const noexcept { return impl_->sampling.team.size(); }
int Engine::max_rows() const noexcept { return impl_->max_rows; }
int Engine::max_candidates() const noexcept { return impl_->max_candidates; }

}  // namespace sorl
