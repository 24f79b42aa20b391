// AVX512_VNNI.
#include "avx512_vnni.hpp"

#include "int8.hpp"

namespace sorl {

const Kernels* avx512_vnni_kernels(Precision) {
  static const Kernels int8 = int8_table<Avx512Vnni>(*avx512_kernels(Precision::bf16), Isa::avx512_vnni);
  return &int8;
}

}  // namespace sorl
