// A session: checks of a call, and the order of its parts. What they do is sampling.hpp's and conclusion.hpp's.
#include "engine.hpp"

#include <cstring>
#include <new>
#include <system_error>

#include "conclusion.hpp"
#include "denormals.hpp"
#include "finite.hpp"
#include "prepared.hpp"
#include "sampling.hpp"

namespace sorl {

struct Engine::Impl {
  std::shared_ptr<const Model> model;
  const Packed& p;
  int max_rows, max_candidates;
  Sampling sampling;
  Conclusion conclusion;
  Pages pages;
  double temperature;
  PreparedSchedules prepared;

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
  const Schedule* schedule = m.p.schedule(steps);
  if (schedule == nullptr) schedule = m.prepared.find(steps);
  if (schedule == nullptr) return code(Result::bad_steps);
  if (rows < 0) return code(Result::bad_rows);
  if (candidates < 1) return code(Result::bad_candidates);
  const bool choosing = candidates > 1 && m.conclusion.rule.reads_q();
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
  c.want_q = m.p.ensemble > 0 && (choosing || q != nullptr);
  c.total = rows * candidates;
  c.side = &m.p.side(c.total);
  const FlushDenormals flush;
  for (int b = 0; b < rows; ++b) {
    bool seen = true;
    for (int i = 0; i < m.p.obs_dim; ++i)
      seen = seen && finite(obs[static_cast<std::size_t>(b) * m.p.obs_dim + i]);
    m.sampling.status[b] = seen ? 0u : static_cast<std::uint32_t>(nonfinite_obs);
  }
  m.sampling.run();
  m.conclusion.conclude(m.sampling, actions, candidate, q, status);
  return code(Result::ok);
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;
int Engine::prepare(std::vector<double> sizes, std::string& error) {
  return impl_->prepared.prepare(impl_->p, std::move(sizes), error);
}
void Engine::set_rule(const Rule& rule) noexcept { impl_->conclusion.rule = rule; }
void Engine::set_temperature(double temperature) noexcept { impl_->temperature = temperature; }
void Engine::reset() noexcept { impl_->conclusion.reset(impl_->p); }
void Engine::continue_from(const Engine& other) {
  impl_->prepared = other.impl_->prepared;
  impl_->conclusion.continue_from(impl_->p, other.impl_->conclusion);
  impl_->temperature = other.impl_->temperature;
}
const Model& Engine::model() const noexcept { return *impl_->model; }
int Engine::threads() const noexcept { return impl_->sampling.team.size(); }
int Engine::max_rows() const noexcept { return impl_->max_rows; }
int Engine::max_candidates() const noexcept { return impl_->max_candidates; }

}  // namespace sorl
