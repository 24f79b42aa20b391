// The native calls of a training step, recorded once and made again in one call.
//
// Between two passes of the networks a step in Python runs some tens of small operations; the passes push the code of
// Python and PyTorch out of the caches, and each operation waits for its own again. A program has all of them in a few
// kilobytes.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "elementwise.hpp"
#include "network.hpp"

namespace sorl::train {

class Program {
 public:
  using Networks = std::vector<std::shared_ptr<Network>>;

  // Each adds a call; whatever is pointed to stays where it is as long as the program.

  // Packs the network's weights where they have changed, for a backward too if something is kept; then its forward.
  void forward(std::shared_ptr<Network> network, const std::vector<Layer>& layers, const Forward& f);
  void backward(std::shared_ptr<Network> network, const std::vector<Layer>& layers, const Backward& b,
                const std::vector<LayerGrad>& grads);
  // `step` makes an optimiser's step, which packs what it is given. It writes all parameters of the networks `whole`, and
  // some of those of `partly`.
  void adam(std::function<void(const std::vector<Packing>&)> step, Networks whole, Networks partly);
  void elementwise(const Elementwise& e);
  void increment(std::int64_t* number, std::int64_t by);

  // Makes the calls, in order.
  void run() const;

 private:
  std::vector<std::function<void()>> calls_;
};

}  // namespace sorl::train
