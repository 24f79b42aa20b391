#include "../kernels/neon.hpp"
#include "loops.hpp"

namespace sorl::bench {

const Loops* neon_loops(Precision) {
  static constexpr Loops floats{burn<Neon>, read_all<Neon>, nullptr, nullptr};
  return &floats;
}

}  // namespace sorl::bench
