#include "network.hpp"

#include <algorithm>
#include <stdexcept>

namespace sorl::train {

Network::Network(const Ops* ops, const Shape& shape)
    : ops_(ops),
      forward_(memory(ops->forward_bytes(shape))),
      bias_(memory(ops->bias_floats(shape) * sizeof(float))) {
  net_.shape = shape;
  net_.forward = forward_.data();
  net_.bias = reinterpret_cast<float*>(bias_.data());
}

void Network::ready(const Layer* layers, bool forward, bool backward) {
  // All of it inside the call: two threads may meet here at a network's first use.
  Runtime::get().call(nullptr, nullptr, 0, 0, [&](Team& team, const Scratch&) {
    forward = forward && !forward_fresh_;
    backward = (backward || net_.backward != nullptr) && !backward_fresh_;
    if (!forward && !backward) return;
    std::copy(layers, layers + net_.shape.depth + 1, net_.layers);
    if (backward && net_.backward == nullptr) {
      backward_ = memory(ops_->backward_bytes(net_.shape));
      net_.backward = backward_.data();
    }
    // before: what changes meanwhile is to be packed again
    if (forward) forward_fresh_ = true, ++packed_.forward;
    if (backward) backward_fresh_ = true, ++packed_.backward;
    ops_->pack(team, net_, forward, backward);
  });
}

Packing Network::packing() {
  const bool backward = net_.backward != nullptr;
  if (packed_.forward == 0) return {};
  forward_fresh_ = true, ++packed_.forward;
  backward_fresh_ = backward;
  if (backward) ++packed_.backward;
  return {ops_, &net_, backward};
}

void Network::forward(Forward f) {
  if (f.rows == 0) return;
  Runtime::get().call(ops_, &net_.shape, f.rows, f.steps, [&](Team& team, const Scratch& scratch) {
    f.net = &net_, f.scratch = scratch;
    ops_->forward(team, f);
  });
}

void Network::backward(Backward b) {
  if (b.rows == 0) return;
  Runtime::get().call(ops_, &net_.shape, b.rows, b.steps, [&](Team& team, const Scratch& scratch) {
    if (net_.backward == nullptr) throw std::invalid_argument("not packed for backward");
    b.net = &net_, b.scratch = scratch;
    ops_->backward(team, b);
  });
}

}  // namespace sorl::train
