// AVX-VNNI.
#include "avx_vnni.hpp"

#include "int8.hpp"

namespace sorl {

const Kernels* avx_vnni_kernels(Precision) {
  static const Kernels int8 = int8_table<AvxVnni>(*avx2_kernels(Precision::bf16), Isa::avx_vnni);
  return &int8;
}

}  // namespace sorl
