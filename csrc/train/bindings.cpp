// The training part of sorl_fast._native. Its caller, sorl_fast.ops.native, has checked every tensor's
// dtype, device, shape and strides: here they are addresses.
#include "bindings.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "../parse.hpp"
#include "../without_gil.hpp"
#include "runtime.hpp"

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

class TrainNet {
 public:
  TrainNet(int obs, int act, int extra, int hidden, int depth, int out, int members, bool norm,
           const std::string& precision, const std::string& isa) {
    for (const int n : {obs, act + 1, hidden, depth, out, members})
      if (n < 1) throw py::value_error("a dimension is below 1");
    if (extra < 1 || extra > 2) throw py::value_error("extra must be 1 or 2");
    if (depth > kMaxDepth)
      throw py::value_error("depth is " + std::to_string(depth) + ", but must be at most " + std::to_string(kMaxDepth));
    ops_ = find(precision, isa);
    shape_ = Shape{obs, act, extra, hidden, depth, out, members, norm};
    forward_ = memory(ops_->forward_bytes(shape_));
    bias_ = memory(ops_->bias_floats(shape_) * sizeof(float));
    net_.shape = shape_;
    net_.forward = forward_.data();
    net_.bias = reinterpret_cast<float*>(bias_.data());
    net_.backward = nullptr;
  }

  static const Ops* find(const std::string& precision, const std::string& isa) {
    const Precision p = parse_precision(precision);
    for (const Isa i : kIsas)
      if (isa == name(i))
        if (const Ops* ops = find_ops(i, p)) return ops;
    throw py::value_error("no training operations for " + precision + " on " + isa);
  }

  // Packs the weights, for forward or for backward. `addresses`: w, b (g, c) of each layer.
  void pack(const std::vector<Address>& addresses, bool forward, bool backward) {
    expect_count("parameters", addresses.size(), parameters());
    std::size_t i = 0;
    Layer layers[kMaxDepth + 1] = {};
    for (int l = 0; l <= shape_.depth; ++l) {
      Layer& layer = layers[l];
      layer.w = at<const float>(addresses[i++]);
      layer.b = at<const float>(addresses[i++]);
      if (!shape_.norm || l == shape_.depth) continue;
      layer.g = at<const float>(addresses[i++]);
      layer.c = at<const float>(addresses[i++]);
    }
    without_gil([&] {
      // All of it inside the call: two threads may meet here at a network's first use.
      Runtime::get().call(nullptr, nullptr, 0, 0, [&](Team& team, const Scratch&) {
        std::copy(layers, layers + shape_.depth + 1, net_.layers);
        if (backward && net_.backward == nullptr) {
          backward_ = memory(ops_->backward_bytes(shape_));
          net_.backward = backward_.data();
        }
        ops_->pack(team, net_, forward, backward);
      });
    });
  }

  void forward(int rows, int steps, bool rollout, Address obs, Address act, Address extra0, Address extra1,
               float value0, float value1, Address out, Address saved) {
    if (rows == 0) return;
    without_gil([&] {
      Runtime::get().call(ops_, &shape_, rows, steps, [&](Team& team, const Scratch& scratch) {
        Forward f{};
        f.net = &net_;
        f.rows = rows, f.steps = steps, f.rollout = rollout;
        f.obs = at<const float>(obs), f.act = at<const float>(act);
        f.extra[0] = at<const float>(extra0), f.extra[1] = at<const float>(extra1);
        f.extra_value[0] = value0, f.extra_value[1] = value1;
        f.out = at<float>(out), f.saved = at<void>(saved), f.scratch = scratch;
        ops_->forward(team, f);
      });
    });
  }

  // `grads`: addresses as in `pack`, or empty: no gradient of the weights. 0: no gradient of that input.
  void backward(int rows, int steps, bool rollout, Address grad, Address saved,
                const std::vector<Address>& grads, Address grad_obs, Address grad_act) {
    if (!grads.empty()) expect_count("gradients", grads.size(), parameters());
    if (rows == 0) return;
    LayerGrad layers[kMaxDepth + 1] = {};
    std::size_t i = 0;
    for (int l = 0; l <= shape_.depth && !grads.empty(); ++l) {
      layers[l].w = at<float>(grads[i++]);
      layers[l].b = at<float>(grads[i++]);
      if (!shape_.norm || l == shape_.depth) continue;
      layers[l].g = at<float>(grads[i++]);
      layers[l].c = at<float>(grads[i++]);
    }
    without_gil([&] {
      Runtime::get().call(ops_, &shape_, rows, steps, [&](Team& team, const Scratch& scratch) {
        if (net_.backward == nullptr) throw py::value_error("not packed for backward");
        Backward b{};
        b.net = &net_;
        b.rows = rows, b.steps = steps, b.rollout = rollout;
        b.grad = at<const float>(grad), b.saved = at<const void>(saved);
        b.layers = grads.empty() ? nullptr : layers;
        b.grad_obs = at<float>(grad_obs), b.grad_act = at<float>(grad_act), b.scratch = scratch;
        ops_->backward(team, b);
      });
    });
  }

  std::size_t saved_bytes(int rows, int steps) const { return ops_->saved_bytes(shape_, rows, steps); }

 private:
  std::size_t parameters() const {
    const auto depth = static_cast<std::size_t>(shape_.depth);
    return shape_.norm ? 4 * depth + 2 : 2 * (depth + 1);
  }

  const Ops* ops_;
  Shape shape_;
  Pages forward_, backward_, bias_;
  Net net_{};
};

float adam(const std::string& isa, const std::vector<Address>& params, const std::vector<std::vector<Address>>& grads,
           const std::vector<Address>& first, const std::vector<Address>& second,
           const std::vector<Address>& targets, const std::vector<std::int64_t>& sizes, std::int64_t step,
           double lr, double b1, double b2, double eps, double clip_norm, double tau, bool ema_before) {
  const std::size_t n = params.size();
  if (grads.empty() || grads.size() > 2) throw py::value_error("one or two lists of gradients");
  for (const auto& g : grads) expect_count("gradients", g.size(), n);
  expect_count("first moments", first.size(), n);
  expect_count("second moments", second.size(), n);
  if (!targets.empty()) expect_count("targets", targets.size(), n);
  expect_count("sizes", sizes.size(), n);
  const Ops* ops = TrainNet::find("fp32", isa);
  float norm = 0;
  without_gil([&] {
    std::size_t chunks = 0;
    for (const std::int64_t size : sizes) chunks += static_cast<std::size_t>((size + kAdamChunk - 1) / kAdamChunk);
    const float* const* sums[2] = {};
    for (std::size_t i = 0; i < grads.size(); ++i) sums[i] = reinterpret_cast<const float* const*>(grads[i].data());
    const auto pointers = [](const std::vector<Address>& v) { return reinterpret_cast<float* const*>(v.data()); };
    Runtime& runtime = Runtime::get();
    runtime.call(nullptr, nullptr, 0, 0, [&](Team& team, const Scratch&) {
      Adam a{};
      a.tensors = static_cast<int>(n);
      a.param = pointers(params), a.grads = sums, a.sums = static_cast<int>(grads.size());
      a.first = pointers(first), a.second = pointers(second), a.target = targets.empty() ? nullptr : pointers(targets);
      a.sizes = sizes.data(), a.step = step;
      a.lr = lr, a.b1 = b1, a.b2 = b2, a.eps = eps, a.clip_norm = clip_norm, a.tau = tau;
      a.ema_before = ema_before;
      a.partial = runtime.partial_sums(chunks);
      a.norm = &norm;
      ops->adam(team, a);
    });
  });
  return norm;
}

std::vector<std::string> isas(const std::string& precision) {
  const Precision p = parse_precision(precision);
  std::vector<std::string> names;
  for (const Isa isa : available_isas(p))
    if (find_ops(isa, p) != nullptr) names.emplace_back(name(isa));
  return names;
}

std::size_t element_bytes(const std::string& precision, const std::string& isa) {
  return TrainNet::find(precision, isa)->element_bytes;
}

}  // namespace

void bind(py::module_& m) {
  using py::arg;
  py::class_<TrainNet>(m, "TrainNet", R"(A network's packed weights, and its passes; csrc/train/train.hpp.

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
      .def(py::init<int, int, int, int, int, int, int, bool, const std::string&, const std::string&>(),
           py::kw_only(), arg("obs"), arg("act"), arg("extra"), arg("hidden"), arg("depth"), arg("out"),
           arg("members"), arg("norm"), arg("precision"), arg("isa"))
      .def("pack", &TrainNet::pack, arg("parameters"), arg("forward"), arg("backward"), R"(Pack the weights.

Parameters
----------
parameters
    Of each layer w [E, in, out], b [E, out] and, with a LayerNorm, g and c [E, out].
forward, backward
    For which passes.
)")
      .def("forward", &TrainNet::forward, arg("rows"), arg("steps"), arg("rollout"), arg("obs"), arg("act"),
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
      .def("backward", &TrainNet::backward, arg("rows"), arg("steps"), arg("rollout"), arg("grad"), arg("saved"),
           arg("grads"), arg("grad_obs"), arg("grad_act"), R"(Differentiate what forward kept.

Parameters
----------
rows, steps, rollout, saved
    As forward had them.
grad
    The gradient of its `out`.
grads
    To be written, as the parameters of `pack`; empty: no gradient of the weights.
grad_obs, grad_act
    To be written: [B, O] and [B, A], summed over the members; 0: no gradient of that input.

Raises
------
ValueError
    The weights were not packed for backward.
)")
      .def("saved_bytes", &TrainNet::saved_bytes, arg("rows"), arg("steps"), "Bytes that forward keeps.");
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
  m.def("adam", &adam, arg("isa"), arg("params"), arg("grads"), arg("first"), arg("second"), arg("targets"),
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
