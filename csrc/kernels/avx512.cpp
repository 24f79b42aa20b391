// AVX-512 with FMA.
#include "avx512.hpp"

#include "table.hpp"

namespace sorl {

const Kernels* avx512_kernels(Precision precision) {
  return tables<Avx512>(Isa::avx512, precision, 128);
}

}  // namespace sorl
