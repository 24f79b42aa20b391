// sorl_fast._native: with train/bindings.cpp all that sees Python. It checks what Python hands over, lets go
// of the interpreter lock and calls the engine.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "model.hpp"
#include "train/bindings.hpp"
#include "without_gil.hpp"

namespace py = pybind11;

namespace sorl {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

Precision parse_precision(const std::string& text) {
  if (text == "fp32") return Precision::fp32;
  if (text == "bf16") return Precision::bf16;
  if (text == "int8") return Precision::int8;
  throw py::value_error("precision is '" + text + "', but must be fp32, bf16 or int8");
}

Isa parse_isa(Precision precision, const std::optional<std::string>& wanted) {
  Isa isa;
  std::string error;
  if (!choose_isa(precision, wanted ? wanted->c_str() : nullptr, isa, error))
    throw py::value_error(error);
  return isa;
}

using Shape = std::initializer_list<py::ssize_t>;

// A shape as messages have it: [B, A].
std::string shown(const py::ssize_t* begin, const py::ssize_t* end) {
  std::string text;
  for (const auto* n = begin; n != end; ++n) text += (n == begin ? "" : ", ") + std::to_string(*n);
  return "[" + text + "]";
}

std::string shown(const py::array& a) { return shown(a.shape(), a.shape() + a.ndim()); }

// single: without the first axis, that of observations.
void expect_shape(const py::array& a, std::string_view what, Shape shape, bool single = false) {
  const auto* const begin = shape.begin() + single;
  if (std::equal(a.shape(), a.shape() + a.ndim(), begin, shape.end())) return;
  throw py::value_error(std::string(what) + " has the shape " + shown(a) + ", but must be " +
                        shown(begin, shape.end()));
}

// `actor` and `critic`: sequences of (w, b) or (w, b, g, c), as in the policy file.
std::shared_ptr<Model> make_model(int obs_dim, int act_dim, int hidden, int depth, int ensemble,
                                  int m_disc, int m_btt, bool q_min, const Floats& low,
                                  const Floats& high, const std::optional<Floats>& mean,
                                  const std::optional<Floats>& std,
                                  const std::vector<std::vector<Floats>>& actor,
                                  const std::vector<std::vector<Floats>>& critic,
                                  const std::string& precision_name,
                                  const std::optional<std::string>& wanted) {
  for (const int n : {obs_dim, act_dim, hidden, depth, ensemble, m_disc, m_btt})
    if (n < 1) throw py::value_error("a dimension is below 1");
  if ((m_disc & (m_disc - 1)) != 0) throw py::value_error("m_disc must be a power of two");
  const py::ssize_t O = obs_dim, A = act_dim, H = hidden, E = ensemble;
  expect_shape(low, "action_low", {A});
  expect_shape(high, "action_high", {A});
  if (mean.has_value() != std.has_value()) throw py::value_error("obs_mean and obs_std go together");
  if (mean) expect_shape(*mean, "obs_mean", {O});
  if (std) expect_shape(*std, "obs_std", {O});
  const auto layers = static_cast<std::size_t>(depth) + 1;
  if (actor.size() != layers || critic.size() != layers)
    throw py::value_error("actor and critic must have depth + 1 layers");
  std::vector<LayerView> actor_view, critic_view;
  for (std::size_t l = 0; l < layers; ++l) {
    const bool last = l + 1 == layers;
    const std::string i = std::to_string(l);
    const py::ssize_t in = l == 0 ? O + A + 2 : H, out = last ? A : H;
    if (actor[l].size() != 2) throw py::value_error("actor layer " + i + " must be (w, b)");
    expect_shape(actor[l][0], "actor/" + i + "/w", {in, out});
    expect_shape(actor[l][1], "actor/" + i + "/b", {out});
    actor_view.push_back({actor[l][0].data(), actor[l][1].data(), nullptr, nullptr,
                          static_cast<int>(in), static_cast<int>(out)});
    const py::ssize_t q_in = l == 0 ? O + A + 1 : H, q_out = last ? 1 : H;
    const auto& c = critic[l];
    if (c.size() != (last ? 2u : 4u)) throw py::value_error("critic layer " + i + " has the wrong parts");
    expect_shape(c[0], "critic/" + i + "/w", {E, q_in, q_out});
    expect_shape(c[1], "critic/" + i + "/b", {E, q_out});
    if (!last) {
      expect_shape(c[2], "critic/" + i + "/g", {E, q_out});
      expect_shape(c[3], "critic/" + i + "/c", {E, q_out});
    }
    critic_view.push_back({c[0].data(), c[1].data(), last ? nullptr : c[2].data(),
                           last ? nullptr : c[3].data(), static_cast<int>(q_in),
                           static_cast<int>(q_out)});
  }
  const PolicyView view{obs_dim,    act_dim,    hidden,     depth,
                        ensemble,   m_disc,     m_btt,      q_min,
                        low.data(), high.data(), mean ? mean->data() : nullptr,
                        std ? std->data() : nullptr, actor_view.data(), critic_view.data()};
  const Precision precision = parse_precision(precision_name);
  const Isa isa = parse_isa(precision, wanted);
  std::string error;
  std::shared_ptr<const Model> model;
  without_gil([&] { model = Model::make(view, precision, isa, error); });
  if (model == nullptr) throw std::runtime_error(error);
  return std::const_pointer_cast<Model>(model);  // pybind11 holds no pointer to const
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
py::ssize_t count_rows(const py::object& obs, py::ssize_t O) {
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
                const py::object& status) {
    const py::ssize_t O = model_->obs_dim(), A = model_->act_dim(), N = candidates;
    const auto rows = count_rows(obs, O);
    const bool single = py::reinterpret_borrow<py::array>(obs).ndim() == 1;
    if (N < 1) check(static_cast<int>(Result::bad_candidates), steps, candidates);
    const float* x = borrow<float>(obs, "obs", {rows, O}, single, false);
    float* out = borrow<float>(actions, "actions", {rows, A}, single, true);
    const float* z = noise.is_none() ? nullptr : borrow<float>(noise, "noise", {rows, N, A}, single, false);
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
    without_gil([&] {
      result = engine_->act(x, z, static_cast<int>(rows), steps, candidates, seed, call, row_offset,
                            out, c, value, bits);
    });
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
    if (rows > 1 << 20 || M > 1 << 20 || N < 1 || N > 1 << 20 ||
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

  // Seconds of each of `calls` calls as a C++ caller sees them.
  std::vector<double> time(const Floats& obs, int steps, int candidates, int calls) {
    const auto rows = count_rows(obs, model_->obs_dim());
    if (candidates >= 1) reserve(static_cast<int>(rows), candidates);
    std::vector<float> out(static_cast<std::size_t>(rows) * model_->act_dim());
    std::vector<double> seconds(static_cast<std::size_t>(std::max(calls, 0)));
    int result = 0;
    without_gil([&] {
      for (int i = 0; i < calls && result == 0; ++i) {
        const auto start = std::chrono::steady_clock::now();
        result = engine_->act(obs.data(), nullptr, static_cast<int>(rows), steps, candidates, 0,
                              static_cast<std::uint32_t>(i), 0, out.data(), nullptr, nullptr, nullptr);
        seconds[i] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
    });
    check(result, steps, candidates);
    return seconds;
  }

  void reset() { engine_->reset(); }

 private:
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
        throw py::value_error("steps is " + std::to_string(steps) +
                              ", but must be a power of two of at most m_disc = " +
                              std::to_string(model_->m_disc()));
      case Result::bad_candidates:
        throw py::value_error("candidates is " + std::to_string(candidates) + ", but must be at least 1");
      default: throw py::value_error("bad arguments");
    }
  }

  std::shared_ptr<Model> model_;
  int threads_;
  std::unique_ptr<Engine> engine_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Runs `measure` on `threads` threads at once and adds their rates up.
template <class Measure>
double rate(int threads, Measure measure) {
  if (threads < 1) throw py::value_error("threads is " + std::to_string(threads) + ", but must be at least 1");
  std::vector<double> rates(static_cast<std::size_t>(threads));
  without_gil([&] {
    std::vector<std::thread> team;
    for (int t = 1; t < threads; ++t) team.emplace_back([&, t] { rates[t] = measure(); });
    rates[0] = measure();
    for (std::thread& t : team) t.join();
  });
  double sum = 0;
  for (const double r : rates) sum += r;
  return sum;
}

const Kernels& kernels_of(const std::string& precision, const std::optional<std::string>& isa) {
  const Precision p = parse_precision(precision);
  return *find_kernels(parse_isa(p, isa), p);
}

// The machine's limits are those of its fastest instruction set, whatever SORL_CPU_ISA says.
const Kernels& fastest(const std::string& precision) {
  const Precision p = parse_precision(precision);
  return *find_kernels(available_isas(p).back(), p);
}

double flop_rate(const std::string& precision, const std::optional<std::string>& isa, int threads,
                 double seconds) {
  const Kernels& k = isa ? kernels_of(precision, isa) : fastest(precision);
  return rate(threads, [&] {
    if (k.enter != nullptr) k.enter();
    double flop = 0, best = 0;
    const auto start = std::chrono::steady_clock::now();
    do {
      const auto round = std::chrono::steady_clock::now();
      flop = k.burn(20000);
      best = std::max(best, flop / seconds_since(round));
    } while (seconds_since(start) < seconds);
    if (k.leave != nullptr) k.leave();
    return best;
  });
}

// Forwards again and again, and forwards and backwards in turns: then each pass begins with what the last one
// left in the caches, the most that any order of reading can find there.
double read_rate(std::size_t bytes, int threads, double seconds) {
  const Kernels& k = fastest("fp32");
  bytes = std::max<std::size_t>(bytes / 1024 * 1024, 1024);
  constexpr int places = 4;
  return rate(threads, [&] {
    volatile float sink = 0;
    double best = 0;
    const long rounds = 2 * std::max<long>(1, static_cast<long>(4e6 / static_cast<double>(bytes)));
    // Where pages lie decides by chance how much of them a cache holds.
    std::vector<Pages> pages;
    for (int p = 0; p < places; ++p) {
      pages.emplace_back(bytes);
      float* data = reinterpret_cast<float*>(pages.back().data());
      std::fill(data, data + bytes / sizeof(float), 1.0f);
    }
    for (const Pages& place : pages) {
      const auto start = std::chrono::steady_clock::now();
      do {
        for (const bool turns : {false, true}) {
          const auto round = std::chrono::steady_clock::now();
          for (long i = 0; i < rounds; ++i) sink = k.read(place.data(), bytes, turns && i % 2 == 1);
          best = std::max(best, static_cast<double>(bytes) * rounds / seconds_since(round));
        }
      } while (seconds_since(start) < seconds / places);
    }
    (void)sink;
    return best;
  });
}

std::vector<std::string> isas(const std::string& precision) {
  std::vector<std::string> names;
  for (const Isa isa : available_isas(parse_precision(precision))) names.emplace_back(name(isa));
  return names;
}

Floats normals(std::uint64_t seed, int rows, int candidates, int act_dim, std::uint32_t call,
               std::uint32_t row_offset, const std::optional<std::string>& isa) {
  if (rows < 0 || candidates < 1 || act_dim < 1) throw py::value_error("a dimension is too small");
  if (std::int64_t{rows} * candidates > std::numeric_limits<int>::max())
    throw py::value_error("rows * candidates is " + std::to_string(std::int64_t{rows} * candidates) +
                          ", but must be below 2^31");
  Floats z({rows, candidates, act_dim});
  kernels_of("fp32", isa).normals(seed, call, row_offset, candidates, act_dim, 0, rows * candidates,
                                  z.mutable_data());
  return z;
}

}  // namespace
}  // namespace sorl

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  using namespace sorl;
  using py::arg;
  m.doc() = "The native sampler. sorl_fast.act.backends.native is its caller; see there.";

  py::class_<Model, std::shared_ptr<Model>>(m, "Model", py::module_local(), "A policy packed for one instruction set.")
      .def(py::init(&make_model), py::kw_only(), arg("obs_dim"), arg("act_dim"), arg("hidden"),
           arg("depth"), arg("ensemble"), arg("m_disc"), arg("m_btt"), arg("q_min"),
           arg("action_low"), arg("action_high"), arg("obs_mean"), arg("obs_std"), arg("actor"),
           arg("critic"), arg("precision"), arg("isa") = py::none())
      .def_property_readonly("isa", [](const Model& model) { return name(model.isa()); });

  py::class_<Session>(m, "Session", py::module_local(), "Scratch, last good action and worker threads over a Model.")
      .def(py::init<std::shared_ptr<Model>, int, int, int>(), arg("model"), arg("threads"),
           arg("max_rows"), arg("max_candidates"))
      .def("act_into", &Session::act_into, arg("obs"), arg("actions"), arg("steps"),
           arg("candidates"), arg("seed"), arg("call"), arg("row_offset"), arg("noise") = py::none(),
           arg("candidate") = py::none(), arg("q") = py::none(), arg("status") = py::none())
      .def("act", &Session::act)
      .def("time", &Session::time, arg("obs"), arg("steps"), arg("candidates"), arg("calls"))
      .def("reset", &Session::reset);

  m.def("isas", &isas, arg("precision"), "Instruction sets that are there, slowest first.");
  m.def("_assume_tiles_for_test", &assume_tiles_for_test, "For a test that emulates the instructions.");
  m.def("normals", &normals, arg("seed"), arg("rows"), arg("candidates"), arg("act_dim"),
        arg("call") = 0, arg("row_offset") = 0, arg("isa") = py::none(), "Noise [B, N, A].");
  m.def("flop_rate", &flop_rate, arg("precision"), arg("isa") = py::none(), arg("threads") = 1,
        arg("seconds") = 0.05, "Multiply-add limit, FLOP a second.");
  m.def("burn", [](long rounds) {
    static const Kernels& kernels = fastest("fp32");
    double flop = 0;
    without_gil([&] { flop = kernels.burn(rounds); });
    return flop;
  }, arg("rounds"), "Multiply-adds in registers; returns their FLOP.");
  m.def("read_rate", &read_rate, arg("bytes"), arg("threads") = 1, arg("seconds") = 0.05,
        "Read bandwidth of a working set per thread, bytes a second, all threads.");

  train::bind(m);
}
