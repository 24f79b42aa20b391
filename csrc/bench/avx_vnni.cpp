#include "../kernels/avx_vnni.hpp"
#include "loops.hpp"

namespace sorl::bench {

const Loops* avx_vnni_loops(Precision) {
  static constexpr Loops bytes{int8_burn<AvxVnni>, read_all<AvxVnni>, nullptr, nullptr};
  return &bytes;
}

}  // namespace sorl::bench
