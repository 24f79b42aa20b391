// AVX2 with FMA.
#include "avx2.hpp"

#include "int8.hpp"
#include "table.hpp"

namespace sorl {

const Kernels* avx2_kernels(Precision precision) {
  if (precision != Precision::int8) return tables<Avx2>(Isa::avx2, precision, 96);
  static const Kernels int8 = int8_table<Avx2Int8>(*avx2_kernels(Precision::bf16), Isa::avx2);
  return &int8;
}

}  // namespace sorl
