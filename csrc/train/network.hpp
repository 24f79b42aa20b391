// A network as training calls it: its packed weights, and whether they still are its parameters'.
#pragma once

#include <atomic>

#include "runtime.hpp"

namespace sorl::train {

class Network {
 public:
  // How often the weights were packed for each pass, since the network was made.
  struct Packed {
    int forward = 0, backward = 0;
  };

  Network(const Ops* ops, const Shape& shape);

  const Shape& shape() const { return net_.shape; }
  Packed packed() const { return packed_; }

  // The parameters may hold other numbers than when they were packed. May be said during another thread's call.
  void changed() { forward_fresh_ = false, backward_fresh_ = false; }

  // Packs `layers` for the passes that are asked for, unless that has been done. Who asked for both before will ask
  // for both again, and one pass over the weights is cheaper than two.
  void ready(const Layer* layers, bool forward, bool backward);

  // The network for an optimiser that packs what it changes, after which it is ready for all that it has been; ops is
  // null where it hasn't been packed yet.
  Packing packing();

  // As train.hpp says; net and scratch are filled in here. No rows: nothing is done.
  void forward(Forward f);
  void backward(Backward b);

  std::size_t saved_bytes(int rows, int steps) const { return ops_->saved_bytes(net_.shape, rows, steps); }

 private:
  const Ops* ops_;
  Pages forward_, backward_, bias_;
  Net net_{};
  std::atomic<bool> forward_fresh_{false}, backward_fresh_{false};
  Packed packed_;
};

}  // namespace sorl::train
