// Plain C++: runs anywhere, and is what the other instruction sets are compared with.
#include "scalar.hpp"

#include "table.hpp"

namespace sorl {

const Kernels* scalar_kernels(Precision precision) {
  if (precision != Precision::int8) return tables<Scalar>(Isa::scalar, precision, 64);
  static const Kernels int8 = int8_table<ScalarInt8>(*scalar_kernels(Precision::bf16), Isa::scalar);
  return &int8;
}

}  // namespace sorl
