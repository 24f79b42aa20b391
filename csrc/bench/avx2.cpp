#include "../kernels/avx2.hpp"
#include "loops.hpp"

namespace sorl::bench {

const Loops* avx2_loops(Precision precision) {
  static constexpr Loops floats{burn<Avx2>, read_all<Avx2>, nullptr, nullptr};
  static constexpr Loops bytes{int8_burn<Avx2Int8>, read_all<Avx2Int8>, nullptr, nullptr};
  return precision == Precision::int8 ? &bytes : &floats;
}

}  // namespace sorl::bench
