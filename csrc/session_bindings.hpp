// A session as Python sees it: it checks what is handed over, lets go of the interpreter lock and calls the engine.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "deadline.hpp"
#include "engine.hpp"
#include "plain_call.hpp"
#include "without_gil.hpp"

namespace sorl {

namespace py = pybind11;

using Floats = py::array_t<float, py::array::c_style>;

using Shape = std::initializer_list<py::ssize_t>;

// A shape as messages have it: [B, A].
inline std::string shown(const py::ssize_t* begin, const py::ssize_t* end) {
  std::string text;
  for (const auto* n = begin; n != end; ++n) text += (n == begin ? "" : ", ") + std::to_string(*n);
  return "[" + text + "]";
}

inline std::string shown(const py::array& a) { return shown(a.shape(), a.shape() + a.ndim()); }

// single: without the first axis, that of observations.
inline void expect_shape(const py::array& a, std::string_view what, Shape shape, bool single = false) {
  const auto* const begin = shape.begin() + single;
  if (std::equal(a.shape(), a.shape() + a.ndim(), begin, shape.end())) return;
  throw py::value_error(std::string(what) + " has the shape " + shown(a) + ", but must be " +
                        shown(begin, shape.end()));
}

// A caller's array as it is, never a copy: copies would be lost (outputs) or slow (inputs).
template <class T>
T* borrow(const py::object& object, const char* what, Shape shape, bool single, bool writeable) {
  if (!py::isinstance<py::array_t<T>>(object))
    throw py::type_error(std::string(what) + " must be a numpy array of " +
                         std::string(py::str(py::dtype::of<T>())));
  const auto a = py::reinterpret_borrow<py::array>(object);
  if ((a.flags() & py::array::c_style) == 0)
    throw py::value_error(std::string(what) + " must be C-contiguous");
  expect_shape(a, what, shape, single);
  if (writeable && !a.writeable()) throw py::value_error(std::string(what) + " is read-only");
  return static_cast<T*>(const_cast<void*>(a.data()));
}

// B of obs [O] or [B, O].
inline py::ssize_t count_rows(const py::object& obs, py::ssize_t O) {
  if (!py::isinstance<py::array>(obs)) throw py::type_error("obs must be a numpy array of float32");
  const auto a = py::reinterpret_borrow<py::array>(obs);
  const auto dims = a.ndim();
  if ((dims != 1 && dims != 2) || a.shape(dims - 1) != O)
    throw py::value_error("obs has the shape " + shown(a) + ", but must be [" + std::to_string(O) + "] or [B, " +
                          std::to_string(O) + "]");
  const auto rows = dims == 1 ? 1 : a.shape(0);
  if (rows > 1 << 30) throw py::value_error("obs has too many rows");
  return rows;
}

// Not for two threads at once: they must not share a Session, whatever the interpreter lock does.
class Session {
 public:
  Session(std::shared_ptr<Model> model, int threads, int max_rows, int max_candidates)
      : model_(std::move(model)), threads_(threads) {
    engine_ = make(max_rows, max_candidates);
  }

  void act_into(const py::object& obs, const py::object& actions, int steps, int candidates,
                std::uint64_t seed, std::uint32_t call, std::uint32_t row_offset,
                const py::object& noise, const py::object& candidate, const py::object& q,
                const py::object& status, const std::optional<double>& temperature) {
    const py::ssize_t O = model_->obs_dim(), A = model_->act_dim(), N = candidates;
    const auto rows = count_rows(obs, O);
    const bool single = py::reinterpret_borrow<py::array>(obs).ndim() == 1;
    if (N < 1) check(static_cast<int>(Result::bad_candidates), steps, candidates);
    if (N > 1 && !can_choose()) check(static_cast<int>(Result::no_critic), steps, candidates);
    if (temperature && !(*temperature >= 0 && *temperature <= std::numeric_limits<double>::max()))
      throw py::value_error("temperature is " + std::to_string(*temperature) +
                            ", but must be a finite number of at least 0");
    const float* x = borrow<float>(obs, "obs", {rows, O}, single, false);
    float* out = borrow<float>(actions, "actions", {rows, A}, single, true);
    const float* z = nullptr;
    if (!noise.is_none())
      z = model_->form().draws() == 1 ? borrow<float>(noise, "noise", {rows, N, A}, single, false)
                                      : borrow<float>(noise, "noise", {rows, N, model_->form().draws(), A}, single, false);
    std::int32_t* c =
        candidate.is_none() ? nullptr : borrow<std::int32_t>(candidate, "candidate", {rows}, false, true);
    float* value = q.is_none() ? nullptr : borrow<float>(q, "q", {rows}, false, true);
    std::uint32_t* bits =
        status.is_none() ? nullptr : borrow<std::uint32_t>(status, "status", {rows}, false, true);
    const std::int64_t most = (std::int64_t{1} << 32) - std::max<py::ssize_t>(rows, 1);
    if (row_offset > most)
      throw py::value_error("row_offset is " + std::to_string(row_offset) + ", but must be at most 2^32 - B = " +
                            std::to_string(most));
    reserve(static_cast<int>(rows), candidates);
    int result;
    if (temperature) engine_->set_temperature(*temperature);
    without_gil([&] {
      result = engine_->act(x, z, static_cast<int>(rows), steps, candidates, seed, call, row_offset,
                            out, c, value, bits);
    });
    if (temperature) engine_->set_temperature(static_cast<double>(model_->form().temperature));
    check(result, steps, candidates);
  }

  // The common case of Sampler.act in one step: contiguous float32 [O] or [B, O] and plain ints give the
  // actions. None for anything else, right or wrong: Python then converts it or says what is wrong.
  py::object act(const py::object& obs, const py::object& steps, const py::object& candidates,
                 const py::object& seed, const py::object& call, const py::object& row_offset) {
    if (!py::isinstance<py::array_t<float>>(obs)) return py::none();
    const auto x = py::reinterpret_borrow<py::array>(obs);
    const auto dims = x.ndim();
    if ((x.flags() & py::array::c_style) == 0 || dims < 1 || dims > 2 ||
        x.shape(dims - 1) != model_->obs_dim())
      return py::none();
    const py::ssize_t rows = dims == 1 ? 1 : x.shape(0);
    std::uint64_t numbers[5];
    const py::object* const given[5] = {&steps, &candidates, &row_offset, &call, &seed};
    for (int i = 0; i < 5; ++i) {
      if (!PyLong_CheckExact(given[i]->ptr())) return py::none();
      numbers[i] = PyLong_AsUnsignedLongLong(given[i]->ptr());
      if (numbers[i] == ~std::uint64_t{0} && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        return py::none();
      }
    }
    const std::uint64_t M = numbers[0], N = numbers[1];
    if (rows > 1 << 20 || M > 1 << 20 || N < 1 || N > (can_choose() ? 1 << 20 : 1) ||
        numbers[2] > UINT32_MAX - static_cast<std::uint64_t>(rows) || numbers[3] > UINT32_MAX)
      return py::none();
    reserve(static_cast<int>(rows), static_cast<int>(N));
    const auto A = static_cast<py::ssize_t>(model_->act_dim());
    Floats out(dims == 1 ? std::vector<py::ssize_t>{A} : std::vector<py::ssize_t>{rows, A});
    const auto* from = static_cast<const float*>(x.data());
    float* to = out.mutable_data();
    int result;
    without_gil([&] {
      result = engine_->act(from, nullptr, static_cast<int>(rows), static_cast<int>(M),
                            static_cast<int>(N), numbers[4], static_cast<std::uint32_t>(numbers[3]),
                            static_cast<std::uint32_t>(numbers[2]), to, nullptr, nullptr, nullptr);
    });
    if (result != static_cast<int>(Result::ok)) return py::none();
    return std::move(out);
  }

  // For the benchmarks, which call past Python: plain_call.hpp.
  py::capsule plain_call(int rows, int candidates) {
    if (candidates < 1) check(static_cast<int>(Result::bad_candidates), 1, candidates);
    if (candidates > 1 && !can_choose()) check(static_cast<int>(Result::no_critic), 1, candidates);
    reserve(rows, candidates);
    const auto act = [](void* engine, const float* obs, int B, int steps, int N, std::uint32_t call,
                        float* actions) noexcept {
      return static_cast<Engine*>(engine)->act(obs, nullptr, B, steps, N, 0, call, 0, actions, nullptr, nullptr,
                                               nullptr);
    };
    return py::capsule(
        new PlainCall{engine_.get(), model_->obs_dim(), model_->act_dim(), act}, kPlainCall,
        [](PyObject* capsule) { delete static_cast<PlainCall*>(PyCapsule_GetPointer(capsule, kPlainCall)); });
  }

  // (steps, candidates, rule) each; own: (sizes, candidates, rule), what the policy's file says.
  std::vector<py::tuple> prepare_deadline(const std::vector<std::tuple<int, int, std::string>>& ways,
                                          const std::optional<std::tuple<std::vector<double>, int, std::string>>& own) {
    std::vector<Way> wanted;
    Choice choice;
    int most = kUsualRoom;
    for (const auto& [steps, candidates, rule] : ways) {
      wanted.push_back({steps, candidates, named_rule(rule)});
      most = std::max(most, std::min(candidates, kMostOwnCandidates));
    }
    if (own) {
      choice.sizes = std::get<0>(*own);
      choice.candidates = std::get<1>(*own);
      choice.rule = named_rule(std::get<2>(*own));
      most = std::max(most, std::min(choice.candidates, kMostOwnCandidates));
    }
    reserve(1, most);
    std::string error;
    bool done = false;
    without_gil([&] { done = engine_->prepare_deadline(wanted, own ? &choice : nullptr, error); });
    if (!done) throw py::value_error(error);
    planned_candidates_ = 1;
    std::vector<py::tuple> planned;
    for (std::size_t i = 0; i < engine_->planned(); ++i) {
      const Planned& way = engine_->planned(i);
      planned_candidates_ = std::max(planned_candidates_, way.way.candidates);
      planned.push_back(py::make_tuple(way.way.steps, way.way.candidates, way.cost.call, way.cost.step, way.cost.score,
                                       way.cost.rest));
    }
    return planned;
  }

  py::tuple act_by(const py::object& obs, const py::object& action, double deadline_us, std::uint64_t seed,
                   std::uint32_t call, std::uint32_t row_offset) {
    const float* x = borrow<float>(obs, "obs", {0, model_->obs_dim()}, true, false);
    float* out = borrow<float>(action, "action", {0, model_->act_dim()}, true, true);
    if (!(deadline_us >= 0))
      throw py::value_error("deadline_us is " + std::to_string(deadline_us) + ", but must be at least 0");
    reserve(1, planned_candidates_);
    const auto budget = static_cast<std::int64_t>(std::min(deadline_us, 1e12) * 1e3);
    std::int32_t candidate = -1;
    float q = 0;
    std::uint32_t status = 0;
    Done done;
    int result = 0;
    without_gil([&] {
      result = engine_->act_by(x, budget, seed, call, row_offset, out, &candidate, &q, &status, &done);
    });
    if (result == static_cast<int>(Result::no_plan)) throw py::value_error("no deadline was prepared");
    check(result, 1, 1);
    return py::make_tuple(done.way, done.evaluations, done.scored, candidate, q, status,
                          static_cast<double>(done.elapsed) * 1e-3);
  }

  // For tests: the clock's readings one after the other in nanoseconds, the last for ever; none: the true clock.
  void set_clock(std::vector<std::int64_t> times) {
    readings_.times = std::move(times);
    readings_.next = 0;
    if (readings_.times.empty()) return engine_->set_clock(Clock::steady());
    const auto read = [](void* self) noexcept {
      auto& readings = *static_cast<Readings*>(self);
      return readings.times[std::min(readings.next.fetch_add(1), readings.times.size() - 1)];
    };
    engine_->set_clock({read, &readings_});
  }

  void set_cost(std::size_t way, std::int64_t call, std::int64_t step, std::int64_t score, std::int64_t rest,
                std::int64_t layer) {
    if (way >= engine_->planned()) throw py::value_error("there is no such way");
    engine_->set_cost(way, {call, step, score, rest, layer});
  }

  void reset() { engine_->reset(); }

  int prepare(std::vector<double> sizes) {
    std::string error;
    const int number = engine_->prepare(std::move(sizes), error);
    if (number == 0) throw py::value_error(error);
    return number;
  }

  void set_rule(const std::string& name) {
    rule_ = named_rule(name);
    engine_->set_rule(rule_);
  }

 private:
  static constexpr int kUsualRoom = 4;  // candidates of the ways of a policy that has none of its own
  struct Readings {
    std::vector<std::int64_t> times;
    std::atomic<std::size_t> next{0};
  };

  static Rule named_rule(const std::string& name) {
    Rule rule;
    if (!Rule::of(name, rule)) throw py::value_error("rule is " + name + ", which is no rule's full name");
    return rule;
  }

  // Whether there is what it takes to choose one of several candidates.
  bool can_choose() const { return model_->ensemble() != 0 || !rule_.reads_q(); }

  // Room for larger calls; the last good action stays.
  void reserve(int rows, int candidates) {
    if (rows <= engine_->max_rows() && candidates <= engine_->max_candidates()) return;
    int max_rows = std::max(rows, engine_->max_rows());
    int max_candidates = std::max(candidates, engine_->max_candidates());
    // A large batch after many candidates, or the other way round, needs no room for both at once.
    constexpr std::int64_t plenty = std::int64_t{1} << 22;
    if (static_cast<std::int64_t>(max_rows) * max_candidates > plenty) {
      max_rows = std::max(rows, 1);
      max_candidates = candidates;
    }
    auto larger = make(max_rows, max_candidates);
    larger->continue_from(*engine_);
    engine_ = std::move(larger);
  }

  std::unique_ptr<Engine> make(int max_rows, int max_candidates) const {
    std::string error;
    std::unique_ptr<Engine> engine;
    without_gil([&] { engine = Engine::make(model_, threads_, max_rows, max_candidates, error); });
    if (engine == nullptr) throw py::value_error(error);
    return engine;
  }

  void check(int result, int steps, int candidates) const {
    switch (static_cast<Result>(result)) {
      case Result::ok: return;
      case Result::bad_steps:
        throw py::value_error("steps is " + std::to_string(steps) + ", but " + allowed());
      case Result::bad_candidates:
        throw py::value_error("candidates is " + std::to_string(candidates) + ", but must be at least 1");
      case Result::no_critic:
        throw py::value_error("candidates is " + std::to_string(candidates) +
                              ", but this policy has no critic to choose the best by: give candidates=1, or "
                              "rule='centre', which needs none");
      default: throw py::value_error("bad arguments");
    }
  }

  std::string allowed() const {
    const std::vector<int>& counts = model_->form().counts;
    if (model_->form().kind == Form::Kind::shortcut)
      return "must be a power of two of at most m_disc = " + std::to_string(counts.back());
    return "this policy acts with " + model_->form().counts_text();
  }

  std::shared_ptr<Model> model_;
  int threads_;
  Rule rule_;  // the engine's
  int planned_candidates_ = 1;  // most of a planned way
  Readings readings_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace sorl
