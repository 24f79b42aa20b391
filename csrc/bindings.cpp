// sorl_fast._native: with session_bindings.hpp and train/bindings.cpp all that sees Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "parse.hpp"
#include "session_bindings.hpp"
#include "train/bindings.hpp"
#include "without_gil.hpp"

namespace py = pybind11;

namespace sorl {
namespace {

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
                                  const std::optional<Floats>& map_low, const std::optional<Floats>& map_high,
                                  int chunk, const std::optional<Floats>& ood_mean,
                                  const std::optional<Floats>& ood_whiten, float ood_threshold) {
  for (const int n : {obs_dim, act_dim, hidden, depth, form_text ? 1 : ensemble, m_disc, m_btt})
    if (n < 1) throw py::value_error("a dimension is below 1");
  if (ensemble < 0) throw py::value_error("ensemble is below 0");
  if (chunk < 1 || act_dim % chunk != 0) throw py::value_error("chunk must be at least 1 and divide act_dim");
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
  if (ood_mean.has_value() != ood_whiten.has_value()) throw py::value_error("ood_mean and ood_whiten go together");
  if (ood_mean) expect_shape(*ood_mean, "ood_mean", {O});
  if (ood_whiten) expect_shape(*ood_whiten, "ood_whiten", {O, O});
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
                        map_low ? map_low->data() : nullptr, map_high ? map_high->data() : nullptr, chunk,
                        ood_mean ? ood_mean->data() : nullptr, ood_whiten ? ood_whiten->data() : nullptr, ood_threshold};
  const Precision precision = parse_precision(precision_name);
  const Isa isa = parse_isa(precision, wanted);
  std::string error;
  std::shared_ptr<const Model> model;
  without_gil([&] { model = Model::make(view, precision, isa, error); });
  if (model == nullptr) throw std::runtime_error(error);
  return std::const_pointer_cast<Model>(model);  // pybind11 holds no pointer to const
}

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
chunk
    How many actions a call returns, one after another: the last of them is what is held after it.
ood_mean, ood_whiten, ood_threshold
    Mean m [O] and whitening matrix W [O, O] of the training's observations, float32, and the threshold of
    |W (x - m)|^2 above which one is out of distribution; None for both arrays: none is.

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
           arg("map_low") = py::none(), arg("map_high") = py::none(), arg("chunk") = 1,
           arg("ood_mean") = py::none(), arg("ood_whiten") = py::none(), arg("ood_threshold") = 0.0f)
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
      .def("prepare_deadline", &Session::prepare_deadline, arg("ways"), arg("own"),
           R"(Make ready and measure what `act_by` chooses from.

Parameters
----------
ways
    (steps, candidates, rule's full name) each, the best first; none: the usual ones.
own
    (sizes, candidates, rule) of the policy's own way, or None: what the usual ones begin with.

Returns
-------
list of tuple
    (steps, candidates, call, step, score, rest) of each way: what it takes, in nanoseconds.

Raises
------
ValueError
    A way or the policy's form cannot be cut short.
)")
      .def("act_by", &Session::act_by, arg("obs"), arg("action"), arg("deadline_us"), arg("seed"), arg("call"),
           arg("row_offset"), R"(Act within a deadline.

Parameters
----------
obs, action
    [O] and, to be written, [A], contiguous float32.
deadline_us
    Microseconds from now.
seed, call, row_offset
    As of `act_into`.

Returns
-------
tuple
    The way's index, evaluations, candidates scored, the winner, its Q, status bits, microseconds.

Raises
------
TypeError, ValueError
    An argument is wrong, or no deadline was prepared.
)")
      .def("_set_clock", &Session::set_clock, arg("times"), "For tests: readings in nanoseconds; none: the clock.")
      .def("_set_cost", &Session::set_cost, arg("way"), arg("call"), arg("step"), arg("score"), arg("rest"),
           arg("layer") = 0, "For tests: other costs, in nanoseconds, than those measured.")
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
