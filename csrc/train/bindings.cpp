// The training part of sorl_fast._native. Its caller, sorl_fast.ops.native, has checked every tensor's
// dtype, device, shape and strides: here they are addresses.
#include "bindings.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "../parse.hpp"
#include "../without_gil.hpp"
#include "program.hpp"

namespace py = pybind11;

namespace sorl::train {
namespace {

using Address = std::uintptr_t;

template <class X>
X* at(Address address) {
  return reinterpret_cast<X*>(address);
}

void expect_count(const char* what, std::size_t given, std::size_t expected) {
  if (given != expected)
    throw py::value_error(std::string(what) + " are " + std::to_string(given) + " arrays, but must be " +
                          std::to_string(expected));
}

const Ops* find(const std::string& precision, const std::string& isa) {
  const Precision p = parse_precision(precision);
  for (const Isa i : kIsas)
    if (isa == name(i))
      if (const Ops* ops = find_ops(i, p)) return ops;
  throw py::value_error("no training operations for " + precision + " on " + isa);
}

std::shared_ptr<Network> make_network(int obs, int act, int extra, int hidden, int depth, int out, int members, bool norm,
                                      const std::string& precision, const std::string& isa) {
  for (const int n : {obs, act + 1, hidden, depth, out, members})
    if (n < 1) throw py::value_error("a dimension is below 1");
  if (extra < 1 || extra > 2) throw py::value_error("extra must be 1 or 2");
  if (depth > kMaxDepth)
    throw py::value_error("depth is " + std::to_string(depth) + ", but must be at most " + std::to_string(kMaxDepth));
  return std::make_shared<Network>(find(precision, isa), Shape{obs, act, extra, hidden, depth, out, members, norm});
}

using Addresses = std::vector<Address>;

// Layers as an operation has them, from the addresses of w, b (g, c) of each; X: Layer, or LayerGrad.
template <class X>
std::vector<X> layers(const char* what, const Shape& s, const Addresses& addresses) {
  const auto depth = static_cast<std::size_t>(s.depth);
  expect_count(what, addresses.size(), s.norm ? 4 * depth + 2 : 2 * (depth + 1));
  std::vector<X> all(depth + 1);
  const Address* next = addresses.data();
  for (std::size_t l = 0; l <= depth; ++l) {
    const auto take = [&](auto*& pointer) { pointer = at<std::remove_pointer_t<std::decay_t<decltype(pointer)>>>(*next++); };
    take(all[l].w), take(all[l].b);
    if (s.norm && l < depth) take(all[l].g), take(all[l].c);
  }
  return all;
}

Forward forward_of(int rows, int steps, bool rollout, Address obs, Address act, Address extra0, Address extra1,
                   float value0, float value1, Address out, Address saved) {
  Forward f{};
  f.rows = rows, f.steps = steps, f.rollout = rollout;
  f.obs = at<const float>(obs), f.act = at<const float>(act);
  f.extra[0] = at<const float>(extra0), f.extra[1] = at<const float>(extra1);
  f.extra_value[0] = value0, f.extra_value[1] = value1;
  f.out = at<float>(out), f.saved = at<void>(saved);
  return f;
}

Backward backward_of(int rows, int steps, bool rollout, Address grad, Address saved, Address grad_obs,
                     Address grad_act) {
  Backward b{};
  b.rows = rows, b.steps = steps, b.rollout = rollout;
  b.grad = at<const float>(grad), b.saved = at<const void>(saved);
  b.grad_obs = at<float>(grad_obs), b.grad_act = at<float>(grad_act);
  return b;
}

// No addresses: no gradient of the weights.
std::vector<LayerGrad> gradients_of(const Shape& s, const Addresses& grads) {
  return grads.empty() ? std::vector<LayerGrad>{} : layers<LayerGrad>("gradients", s, grads);
}

// An optimiser's step, with the lists that it goes through.
struct AdamStep {
  const Ops* ops;
  Addresses params, first, second, targets;
  std::vector<Addresses> grads;
  std::vector<std::int64_t> sizes;
  double lr, b1, b2, eps, clip_norm, tau;
  bool ema_before;

  void check() const {
    const std::size_t n = params.size();
    if (grads.empty() || grads.size() > 2) throw py::value_error("one or two lists of gradients");
    for (const auto& g : grads) expect_count("gradients", g.size(), n);
    expect_count("first moments", first.size(), n);
    expect_count("second moments", second.size(), n);
    if (!targets.empty()) expect_count("targets", targets.size(), n);
    expect_count("sizes", sizes.size(), n);
  }

  // Returns the norm before clipping.
  float operator()(std::int64_t step, const std::vector<Packing>& packings) const {
    float norm = 0;
    std::size_t chunks = 0;
    for (const std::int64_t size : sizes) chunks += static_cast<std::size_t>((size + kAdamChunk - 1) / kAdamChunk);
    const float* const* sums[2] = {};
    for (std::size_t i = 0; i < grads.size(); ++i) sums[i] = reinterpret_cast<const float* const*>(grads[i].data());
    const auto pointers = [](const Addresses& v) { return reinterpret_cast<float* const*>(v.data()); };
    Runtime& runtime = Runtime::get();
    runtime.call(nullptr, nullptr, 0, 0, [&](Team& team, const Scratch&) {
      Adam a{};
      a.tensors = static_cast<int>(params.size());
      a.param = pointers(params), a.grads = sums, a.sums = static_cast<int>(grads.size());
      a.first = pointers(first), a.second = pointers(second), a.target = targets.empty() ? nullptr : pointers(targets);
      a.sizes = sizes.data(), a.step = step;
      a.lr = lr, a.b1 = b1, a.b2 = b2, a.eps = eps, a.clip_norm = clip_norm, a.tau = tau;
      a.ema_before = ema_before;
      a.packings = packings.data(), a.packed = static_cast<int>(packings.size());
      a.partial = runtime.partial_sums(chunks);
      a.norm = &norm;
      ops->adam(team, a);
    });
    return norm;
  }
};

AdamStep adam_of(const std::string& isa, Addresses params, std::vector<Addresses> grads, Addresses first,
                 Addresses second, Addresses targets, std::vector<std::int64_t> sizes, double lr, double b1, double b2,
                 double eps, double clip_norm, double tau, bool ema_before) {
  AdamStep adam{find("fp32", isa), std::move(params), std::move(first), std::move(second), std::move(targets),
                std::move(grads), std::move(sizes), lr, b1, b2, eps, clip_norm, tau, ema_before};
  adam.check();
  return adam;
}

// An operand as Python has it: address, elements from a row and from a column to the next, and the number
// that stands where the address is 0.
using PyOperand = std::tuple<Address, std::ptrdiff_t, std::ptrdiff_t, double>;

Operand operand(const PyOperand& x) {
  const auto& [address, rows, columns, value] = x;
  return {at<void>(address), address == 0 ? 0 : rows, address == 0 ? 0 : columns, static_cast<float>(value)};
}

std::vector<std::string> isas(const std::string& precision) {
  const Precision p = parse_precision(precision);
  std::vector<std::string> names;
  for (const Isa isa : available_isas(p))
    if (find_ops(isa, p) != nullptr) names.emplace_back(name(isa));
  return names;
}

std::size_t element_bytes(const std::string& precision, const std::string& isa) {
  return find(precision, isa)->element_bytes;
}

}  // namespace

void bind(py::module_& m) {
  using py::arg;
  py::class_<Network, std::shared_ptr<Network>>(m, "TrainNet", R"(A network's packed weights, and its passes; csrc/train/train.hpp.

Tensors are addresses of contiguous float32 on the CPU, 0 for none; the caller has checked their shapes and
keeps them alive. B rows, S Euler steps (1: the network is evaluated once), E members.

Parameters
----------
obs, act, extra
    Columns of the first layer's input: observation, action, 1 or 2 scalars.
hidden, depth, out, members
    Width and number of the hidden layers, outputs, E.
norm
    Whether a LayerNorm follows each hidden layer's GELU.
precision, isa
    fp32 or bf16, on an instruction set of `train_isas(precision)`.

Raises
------
ValueError
    A size is out of its bounds, or there are no such operations.
)")
      .def(py::init(&make_network), py::kw_only(), arg("obs"), arg("act"), arg("extra"), arg("hidden"), arg("depth"), arg("out"),
           arg("members"), arg("norm"), arg("precision"), arg("isa"))
      .def("ready", [](Network& net, const Addresses& parameters, bool forward, bool backward) {
        const std::vector<Layer> all = layers<Layer>("parameters", net.shape(), parameters);
        without_gil([&] { net.ready(all.data(), forward, backward); });
      }, arg("parameters"), arg("forward"), arg("backward"), R"(Pack the weights, unless that has been done since they changed.

Parameters
----------
parameters
    Of each layer w [E, in, out], b [E, out] and, with a LayerNorm, g and c [E, out].
forward, backward
    For which passes. Where they were ever packed for backward, they are again.
)")
      .def("changed", &Network::changed, "Say that the parameters may hold other numbers than when they were packed.")
      .def_property_readonly("packed", [](const Network& net) {
        return std::make_tuple(net.packed().forward, net.packed().backward);
      }, "How often the weights were packed for forward, and for backward.")
      .def("forward", [](Network& net, int rows, int steps, bool rollout, Address obs, Address act, Address extra0,
                         Address extra1, float value0, float value1, Address out, Address saved) {
        const Forward f = forward_of(rows, steps, rollout, obs, act, extra0, extra1, value0, value1, out, saved);
        without_gil([&] { net.forward(f); });
      }, arg("rows"), arg("steps"), arg("rollout"), arg("obs"), arg("act"),
           arg("extra0"), arg("extra1"), arg("value0"), arg("value1"), arg("out"), arg("saved"),
           R"(Evaluate the network.

Parameters
----------
rows, steps
    B and S.
rollout
    Whether z <- z + net / S, S times, and then clip; else `out` is the network's output.
obs, act
    [B, O] and [B, A]: z_0, or actions.
extra0, extra1
    [B] each, or 0: value0, value1 in every row. Of a rollout the first is the time, whatever this says.
out
    To be written: of a rollout [B, A], else [E, B, out].
saved
    To be written: `saved_bytes` for backward, or 0: nothing is kept.
)")
      .def("backward", [](Network& net, int rows, int steps, bool rollout, Address grad, Address saved,
                          const Addresses& grads, Address grad_obs, Address grad_act) {
        std::vector<LayerGrad> to = gradients_of(net.shape(), grads);
        Backward b = backward_of(rows, steps, rollout, grad, saved, grad_obs, grad_act);
        b.layers = to.empty() ? nullptr : to.data();
        without_gil([&] { net.backward(b); });
      }, arg("rows"), arg("steps"), arg("rollout"), arg("grad"), arg("saved"),
           arg("grads"), arg("grad_obs"), arg("grad_act"), R"(Differentiate what forward kept.

Parameters
----------
rows, steps, rollout, saved
    As forward had them.
grad
    The gradient of its `out`.
grads
    To be written, as the parameters of `ready`; empty: no gradient of the weights.
grad_obs, grad_act
    To be written: [B, O] and [B, A], summed over the members; 0: no gradient of that input.

Raises
------
ValueError
    The weights were not packed for backward.
)")
      .def("saved_bytes", &Network::saved_bytes, arg("rows"), arg("steps"), "Bytes that forward keeps.");
  py::class_<Lease>(m, "Lease", py::buffer_protocol(), R"(Memory from a pool, given back when it dies: a buffer of bytes.

Parameters
----------
bytes
    How many; their values are whatever the last user left.
)")
      .def(py::init<std::size_t>(), arg("bytes"))
      .def_buffer([](Lease& lease) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(lease.data()),
                               static_cast<py::ssize_t>(lease.bytes()));
      });
  m.def("lease_idle_bytes", &Lease::idle_bytes, "Bytes of the pool that nobody has leased.");
  m.def("lease_fill", &Lease::fill_with, arg("byte"),
        "Fill each lease with this byte from now on, or with nothing (-1). For tests.");
  m.def("adam", [](const std::string& isa, Addresses params, std::vector<Addresses> grads, Addresses first,
                   Addresses second, Addresses targets, std::vector<std::int64_t> sizes, std::int64_t step, double lr,
                   double b1, double b2, double eps, double clip_norm, double tau, bool ema_before) {
    const AdamStep adam = adam_of(isa, std::move(params), std::move(grads), std::move(first), std::move(second),
                                  std::move(targets), std::move(sizes), lr, b1, b2, eps, clip_norm, tau, ema_before);
    float norm = 0;
    without_gil([&] { norm = adam(step, {}); });
    return norm;
  }, arg("isa"), arg("params"), arg("grads"), arg("first"), arg("second"), arg("targets"),
        arg("sizes"), arg("step"), arg("lr"), arg("b1"), arg("b2"), arg("eps"), arg("clip_norm"), arg("tau"), arg("ema_before"),
        R"(One step of Adam, of gradients clipped by their global norm, and of the target network.

Parameters
----------
isa
    An instruction set of `train_isas("fp32")`.
params, first, second, targets
    Addresses of each tensor, of its moments and of its target; all are updated. No targets: there are none.
grads
    One or two lists of gradients; two are added up.
sizes
    Elements of each tensor.
step
    The number of this step, from 1.
lr, b1, b2, eps
    Adam's settings.
clip_norm
    The largest norm that is let through; infinite: no clip.
tau
    Targets become (1 - tau) of themselves plus tau of the parameters.
ema_before
    Of the parameters as they were before this step.

Returns
-------
float
    The norm before clipping.

Raises
------
ValueError
    The lists differ in length, or there are no such operations.
)");
  py::class_<Program>(m, "TrainProgram", R"(Native calls of a training step, made again in one call; csrc/train/program.hpp.

What an address stands for must stay where it is as long as the program.
)")
      .def(py::init<>())
      .def("forward", [](Program& program, std::shared_ptr<Network> net, const Addresses& parameters, int rows, int steps,
                         bool rollout, Address obs, Address act, Address extra0, Address extra1, float value0,
                         float value1, Address out, Address saved) {
        auto all = layers<Layer>("parameters", net->shape(), parameters);
        program.forward(std::move(net), std::move(all),
                        forward_of(rows, steps, rollout, obs, act, extra0, extra1, value0, value1, out, saved));
      }, arg("net"), arg("parameters"), arg("rows"), arg("steps"), arg("rollout"), arg("obs"), arg("act"), arg("extra0"),
           arg("extra1"), arg("value0"), arg("value1"), arg("out"), arg("saved"),
           R"(Add `net.ready` for this pass, and `net.forward`.

Parameters
----------
net, parameters
    Whose, as `net.ready` has them.
rows, steps, rollout, obs, act, extra0, extra1, value0, value1, out, saved
    As `net.forward` has them.
)")
      .def("backward", [](Program& program, std::shared_ptr<Network> net, const Addresses& parameters, int rows, int steps,
                          bool rollout, Address grad, Address saved, const Addresses& grads, Address grad_obs,
                          Address grad_act) {
        auto all = layers<Layer>("parameters", net->shape(), parameters);
        auto to = gradients_of(net->shape(), grads);
        program.backward(std::move(net), std::move(all),
                         backward_of(rows, steps, rollout, grad, saved, grad_obs, grad_act), std::move(to));
      }, arg("net"), arg("parameters"), arg("rows"), arg("steps"), arg("rollout"), arg("grad"), arg("saved"), arg("grads"),
           arg("grad_obs"), arg("grad_act"), R"(Add `net.ready` for this pass, and `net.backward`.

Parameters
----------
net, parameters
    Whose, as `net.ready` has them.
rows, steps, rollout, grad, saved, grads, grad_obs, grad_act
    As `net.backward` has them.
)")
      .def("adam", [](Program& program, const std::string& isa, Addresses params, std::vector<Addresses> grads,
                      Addresses first, Addresses second, Addresses targets, std::vector<std::int64_t> sizes, Address step,
                      double lr, double b1, double b2, double eps, double clip_norm, double tau, bool ema_before,
                      Address norm, Program::Networks whole,
                      Program::Networks partly) {
        program.adam([adam = adam_of(isa, std::move(params), std::move(grads), std::move(first), std::move(second),
                                     std::move(targets), std::move(sizes), lr, b1, b2, eps, clip_norm, tau, ema_before),
                      step = at<const std::int64_t>(step), norm = at<float>(norm)](const std::vector<Packing>& packings) {
                       *norm = adam(*step, packings);
                     },
                     std::move(whole), std::move(partly));
      }, arg("isa"), arg("params"), arg("grads"), arg("first"), arg("second"), arg("targets"), arg("sizes"), arg("step"),
           arg("lr"), arg("b1"), arg("b2"), arg("eps"), arg("clip_norm"), arg("tau"), arg("ema_before"), arg("norm"),
           arg("whole"), arg("partly"), R"(Add `adam`.

Parameters
----------
isa, params, grads, first, second, targets, sizes, lr, b1, b2, eps, clip_norm, tau, ema_before
    As `adam` has them.
step
    Where the number of the step is, an int64.
norm
    Where to write the norm.
whole, partly
    Networks all of whose parameters are `params` or `targets`, which are packed on the way, and those of which some are.
)")
      .def("elementwise", [](Program& program, const std::string& op, int rows, int columns, const PyOperand& out,
                             const std::vector<PyOperand>& operands) {
        std::vector<Operand> in;
        for (const PyOperand& x : operands) in.push_back(operand(x));
        program.elementwise(elementwise(op, rows, columns, operand(out), in));
      }, arg("op"), arg("rows"), arg("columns"), arg("out"), arg("operands"), R"(Add an operation of csrc/train/elementwise.hpp.

Parameters
----------
op
    Its name.
rows, columns
    The shape of what it writes.
out, operands
    Address, elements from a row and from a column to the next, and the number that stands where the address is 0.

Raises
------
ValueError
    There is no such operation, or it takes another number of operands.
)")
      .def("increment", [](Program& program, Address number, std::int64_t by) {
        program.increment(at<std::int64_t>(number), by);
      }, arg("number"), arg("by"), "Add to an int64.")
      .def("run", [](const Program& program) { without_gil([&] { program.run(); }); }, "Make the calls, in order.");
  m.def("train_isas", &isas, arg("precision"), R"(The instruction sets that train in a precision, slowest first.

Parameters
----------
precision
    fp32 or bf16.

Returns
-------
list of str
    Those that this machine, its kernel and this process allow.
)");
  m.def("train_element_bytes", &element_bytes, arg("precision"), arg("isa"),
        "Bytes of an activation that is kept: 2 where bf16 is stored as such, else 4.");
  m.def("set_train_threads", [](int n) {
    if (n < 1 || n > 8) throw py::value_error("threads is " + std::to_string(n) + ", but must be 1 to 8");
    Runtime::get().set_threads(n);
  }, arg("threads"), "Set the threads of the training calls to come, 1 to 8.");
}

}  // namespace sorl::train
