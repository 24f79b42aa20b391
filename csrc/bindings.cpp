// sorl_fast._native: with train/bindings.cpp all that sees Python. It checks what Python hands over, lets go
// of the interpreter lock and calls the engine.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "kernels.hpp"
#include "parse.hpp"
#include "plain_call.hpp"
#include "train/bindings.hpp"
#include "without_gil.hpp"

namespace py = pybind11;

namespace sorl {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

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
                                  const std::optional<std::string>& wanted,
                                  const std::optional<std::string>& form_text,
                                  const std::optional<Floats>& map_low, const std::optional<Floats>& map_high) {
  for (const int n : {obs_dim, act_dim, hidden, depth, form_text ? 1 : ensemble, m_disc, m_btt})
    if (n < 1) throw py::value_error("a dimension is below 1");
  if (ensemble < 0) throw py::value_error("ensemble is below 0");
  if ((m_disc & (m_disc - 1)) != 0) throw py::value_error("m_disc must be a power of two");
  Form form = Form::shortcut(m_disc);
  if (form_text) {
    std::string error;
    const char* remedy = nullptr;
    form = Form{};
    if (!parse_form({form_text->data(), form_text->size()}, form, error, remedy)) throw py::value_error(error);
    if (form.draws() > 1 && act_dim >= kMostNoisyAct)
      throw py::value_error("act_dim must be below 2^26 where later steps add noise");
  }
  const py::ssize_t O = obs_dim, A = act_dim, H = hidden, E = ensemble;
  expect_shape(low, "action_low", {A});
  expect_shape(high, "action_high", {A});
  if (mean.has_value() != std.has_value()) throw py::value_error("obs_mean and obs_std go together");
  if (mean) expect_shape(*mean, "obs_mean", {O});
  if (map_low.has_value() != map_high.has_value()) throw py::value_error("map_low and map_high go together");
  if (map_low) expect_shape(*map_low, "map_low", {A});
  if (map_high) expect_shape(*map_high, "map_high", {A});
  if (std) expect_shape(*std, "obs_std", {O});
  const auto layers = static_cast<std::size_t>(depth) + 1;
  if (actor.size() != layers || critic.size() != (ensemble == 0 ? 0 : layers))
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
    if (ensemble == 0) continue;
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
                        ensemble,   m_disc,     m_btt,      q_min, &form,
                        low.data(), high.data(), mean ? mean->data() : nullptr,
                        std ? std->data() : nullptr, actor_view.data(), critic_view.data(), nullptr,
                        map_low ? map_low->data() : nullptr, map_high ? map_high->data() : nullptr};
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

  void reset() { engine_->reset(); }

  int prepare(std::vector<double> sizes) {
    std::string error;
    const int number = engine_->prepare(std::move(sizes), error);
    if (number == 0) throw py::value_error(error);
    return number;
  }

  void set_rule(const std::string& name) {
    Rule rule;
    if (!Rule::of(name, rule)) throw py::value_error("rule is " + name + ", which is no rule's full name");
    rule_ = rule;
    engine_->set_rule(rule);
  }

 private:
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
  std::unique_ptr<Engine> engine_;
};

Floats normals(std::uint64_t seed, int rows, int candidates, int act_dim, std::uint32_t call,
               std::uint32_t row_offset, const std::optional<std::string>& isa, int draw) {
  if (draw < 0 || draw > 255) throw py::value_error("draw is " + std::to_string(draw) + ", but must be from 0 to 255");
  if (rows < 0 || candidates < 1 || act_dim < 1) throw py::value_error("a dimension is too small");
  if (std::int64_t{rows} * candidates > std::numeric_limits<int>::max())
    throw py::value_error("rows * candidates is " + std::to_string(std::int64_t{rows} * candidates) +
                          ", but must be below 2^31");
  Floats z({rows, candidates, act_dim});
  const Kernels& kernels = *find_kernels(parse_isa(Precision::fp32, isa), Precision::fp32);
  kernels.normals(seed, call, row_offset, candidates, act_dim, 0, rows * candidates, draw, z.mutable_data());
  return z;
}

}  // namespace
}  // namespace sorl

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  using namespace sorl;
  using py::arg;
  m.doc() = "The native sampler. sorl_fast.act.backends.native is its caller; see there.";

  py::class_<Model, std::shared_ptr<Model>>(m, "Model", py::module_local(), R"(A policy packed for one instruction set.

Any number of sessions on any number of threads may share it. It keeps nothing of its arguments.

Parameters
----------
obs_dim, act_dim, hidden, depth, ensemble, m_disc, m_btt
    Sizes as in the policy file: O, A, H, hidden layers, E, the most Euler steps (a power of two) where there
    is no form. E may be 0 where there is one.
q_min
    Whether the ensemble aggregates by min, not by mean.
action_low, action_high
    Bounds [A] of what the networks' actions are clipped to, float32.
obs_mean, obs_std
    The normaliser [O], float32, or None for both.
actor
    depth + 1 layers (w [in, out], b [out]), float32; the first reads [x, z, t, log2 M].
critic
    depth + 1 layers (w [E, in, out], b [E, out]), the hidden ones also g and c [E, out]; the first reads
    [x, a, M]. None where E is 0.
precision
    fp32, bf16 or int8.
isa
    An instruction set of `isas(precision)`; None: SORL_CPU_ISA's, or the fastest.
form
    The form of the policy as JSON, as `Form.to_json` has it; None: a shortcut actor's Euler steps.
map_low, map_high
    What -1 and 1 stand for in the units of the actions that a call returns, [A] float32, as of an `ActionMap`;
    None for both: themselves.

Raises
------
ValueError
    A shape or size is wrong, the form is, or the instruction set is not there.
RuntimeError
    Memory is short.
)")
      .def(py::init(&make_model), py::kw_only(), arg("obs_dim"), arg("act_dim"), arg("hidden"),
           arg("depth"), arg("ensemble"), arg("m_disc"), arg("m_btt"), arg("q_min"),
           arg("action_low"), arg("action_high"), arg("obs_mean"), arg("obs_std"), arg("actor"),
           arg("critic"), arg("precision"), arg("isa") = py::none(), arg("form") = py::none(),
           arg("map_low") = py::none(), arg("map_high") = py::none())
      .def_property_readonly("isa", [](const Model& model) { return name(model.isa()); },
                             "The instruction set that it is packed for.");

  py::class_<Session>(m, "Session", py::module_local(), R"(Scratch, last good action and worker threads over a Model.

Not for two threads at once.

Parameters
----------
model
    The policy.
threads
    1 to 64, the caller among them.
max_rows, max_candidates
    Room that is made at once, each at least 1; a larger call makes more.

Raises
------
ValueError
    An argument is out of its bounds, or memory or threads are short.
)")
      .def(py::init<std::shared_ptr<Model>, int, int, int>(), arg("model"), arg("threads"),
           arg("max_rows"), arg("max_candidates"))
      .def("act_into", &Session::act_into, arg("obs"), arg("actions"), arg("steps"),
           arg("candidates"), arg("seed"), arg("call"), arg("row_offset"), arg("noise") = py::none(),
           arg("candidate") = py::none(), arg("q") = py::none(), arg("status") = py::none(),
           arg("temperature") = py::none(),
           R"(Act, into the caller's arrays: contiguous ones, none of which is copied.

Parameters
----------
obs
    Observations [O] or [B, O], float32.
actions
    To be written: [A] or [B, A], float32.
steps
    M, one of the policy's step counts: without a form a power of two of at most m_disc; or what `prepare` returned.
candidates
    N candidates an observation, at least 1; of several the rule chooses. 1 without critics, unless by the centre.
seed, call, row_offset
    The key of the noise: 64, 32 and 32 bits; the first row is row_offset.
noise
    [B, N, A] float32 (of one observation [N, A]) instead of the key's; [B, N, S, A] where the form draws
    S > 1 numbers.
candidate, q, status
    To be written, or None: the chosen candidate [B], int32, -1 where none is good; its Q [B], float32, NaN
    without critics; status bits [B], uint32, as sorl.h has them.
temperature
    What multiplies the noise that the form adds, finite and at least 0; None: the form's own.

Raises
------
TypeError
    An array has another dtype.
ValueError
    A shape or an argument is wrong; nothing is written.
)")
      .def("act", &Session::act, arg("obs"), arg("steps"), arg("candidates"), arg("seed"), arg("call"),
           arg("row_offset"), R"(Act, in the common case of `Sampler.act`.

Parameters
----------
obs
    Observations [O] or [B, O], contiguous float32.
steps, candidates, seed, call, row_offset
    As of `act_into`, plain ints.

Returns
-------
array or None
    Actions [A] or [B, A], float32; None for any other arguments, right or wrong: the caller then converts
    them, or says what is wrong.
)")
      .def("_plain_call", &Session::plain_call, arg("rows"), arg("candidates"), "For sorl_fast._bench.time.")
      .def("prepare", &Session::prepare, arg("sizes"), R"(Make a schedule of Euler steps ready, once.

Parameters
----------
sizes
    h_0, h_1, ... above 0, at most 2 m_disc of them, that sum to 1.

Returns
-------
int
    What to give as `steps`: M where the steps are equal, another number elsewhere; the same for the same sizes.

Raises
------
ValueError
    The sizes are wrong, the policy does not take them, or the session has 1024 schedules already.
)")
      .def("set_rule", &Session::set_rule, arg("name"), R"(Say how one of several candidates is chosen from now on.

Parameters
----------
name
    The rule's full name, as `str` of it gives: argmax, medoid:1/2.

Raises
------
ValueError
    There is no such rule.
)")
      .def("reset", &Session::reset, "Forget the last good action.");

  m.def("isas", &isa_names, arg("precision"), R"(The instruction sets that act in a precision, slowest first.

Parameters
----------
precision
    fp32, bf16 or int8.

Returns
-------
list of str
    Those that this machine, its kernel and this process allow. SORL_CPU_ISA changes nothing of it.

Raises
------
ValueError
    There is no such precision.
)");
  m.def("_assume_tiles_for_test", &assume_tiles_for_test, "For a test that emulates the instructions.");
  m.def("normals", &normals, arg("seed"), arg("rows"), arg("candidates"), arg("act_dim"),
        arg("call") = 0, arg("row_offset") = 0, arg("isa") = py::none(), arg("draw") = 0, R"(The noise of a call.

Parameters
----------
seed, call, row_offset
    The key, as of `Session.act_into`.
rows, candidates, act_dim
    B, N and A.
isa
    An instruction set of `isas("fp32")`; None: SORL_CPU_ISA's, or the fastest.
draw
    Which of a candidate's normal numbers, 0 to 255; above 0, A is below 2^26.

Returns
-------
array
    Standard normals [B, N, A], float32: Philox4x32-10 and Box-Muller.

Raises
------
ValueError
    A dimension is too small, or there are 2^31 candidates or more.
)");

  train::bind(m);
}
