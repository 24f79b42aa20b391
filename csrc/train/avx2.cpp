// fp32 on AVX2 with FMA: 16 floats are two registers; 6 rows by 16 columns keep 12 sums.
#include "f32.hpp"

namespace sorl::train {

const Ops* avx2_ops(Precision precision) {
  static const Ops ops = table<F32<6, 1>>(Isa::avx2, Precision::fp32);
  return precision == Precision::fp32 ? &ops : nullptr;
}

}  // namespace sorl::train
