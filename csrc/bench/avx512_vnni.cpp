#include "../kernels/avx512_vnni.hpp"
#include "loops.hpp"

namespace sorl::bench {

const Loops* avx512_vnni_loops(Precision) {
  static constexpr Loops bytes{int8_burn<Avx512Vnni>, read_all<Avx512Vnni>, nullptr, nullptr};
  return &bytes;
}

}  // namespace sorl::bench
