// NEON with the dot products of Armv8.2.
#include "neon_dotprod.hpp"

#include "int8.hpp"

namespace sorl {

const Kernels* neon_dotprod_kernels(Precision) {
  static const Kernels int8 = int8_table<NeonDotprod>(*neon_kernels(Precision::bf16), Isa::neon_dotprod);
  return &int8;
}

}  // namespace sorl
