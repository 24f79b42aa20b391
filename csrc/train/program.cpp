#include "program.hpp"

namespace sorl::train {

void Program::forward(std::shared_ptr<Network> network, const std::vector<Layer>& layers, const Forward& f) {
  calls_.emplace_back([network = std::move(network), layers, f] {
    network->ready(layers.data(), true, f.saved != nullptr);
    network->forward(f);
  });
}

void Program::backward(std::shared_ptr<Network> network, const std::vector<Layer>& layers, const Backward& b,
                       const std::vector<LayerGrad>& grads) {
  calls_.emplace_back([network = std::move(network), layers, call = b, grads = grads]() mutable {
    network->ready(layers.data(), false, true);
    call.layers = grads.empty() ? nullptr : grads.data();
    network->backward(call);
  });
}

void Program::adam(std::function<void(const std::vector<Packing>&)> step, Networks whole, Networks partly) {
  calls_.emplace_back([step = std::move(step), whole = std::move(whole), partly = std::move(partly),
                       packings = std::vector<Packing>()]() mutable {
    packings.clear();
    for (const auto& network : whole)
      if (const Packing packing = network->packing(); packing.ops != nullptr) packings.push_back(packing);
    try {
      step(packings);
    } catch (...) {  // no thread could be started: nothing was packed
      for (const auto& network : whole) network->changed();
      throw;
    }
    for (const auto& network : partly) network->changed();
  });
}

void Program::elementwise(const Elementwise& e) { calls_.emplace_back(e); }

void Program::increment(std::int64_t* number, std::int64_t by) {
  calls_.emplace_back([number, by] { *number += by; });
}

void Program::run() const {
  for (const auto& call : calls_) call();
}

}  // namespace sorl::train
