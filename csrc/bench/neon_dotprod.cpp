#include "../kernels/neon_dotprod.hpp"
#include "loops.hpp"

namespace sorl::bench {

const Loops* neon_dotprod_loops(Precision) {
  static constexpr Loops bytes{int8_burn<NeonDotprod>, read_all<NeonDotprod>, nullptr, nullptr};
  return &bytes;
}

}  // namespace sorl::bench
