#include "../kernels/scalar.hpp"
#include "loops.hpp"

namespace sorl::bench {

const Loops* scalar_loops(Precision precision) {
  static constexpr Loops floats{burn<Scalar>, read_all<Scalar>, nullptr, nullptr};
  static constexpr Loops bytes{int8_burn<ScalarInt8>, read_all<ScalarInt8>, nullptr, nullptr};
  return precision == Precision::int8 ? &bytes : &floats;
}

}  // namespace sorl::bench
