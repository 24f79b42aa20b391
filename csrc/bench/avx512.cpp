#include "../kernels/avx512.hpp"
#include "loops.hpp"

namespace sorl::bench {

const Loops* avx512_loops(Precision) {
  static constexpr Loops floats{burn<Avx512>, read_all<Avx512>, nullptr, nullptr};
  return &floats;
}

}  // namespace sorl::bench
