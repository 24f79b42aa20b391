// AVX2 with FMA: 16 floats are two registers; 6 rows by 16 columns keep 12 sums.
#include "bf16_in_f32.hpp"

namespace sorl::train {

const Ops* avx2_ops(Precision precision) {
  static const Ops fp32 = table<F32<6, 1>>(Isa::avx2, Precision::fp32);
  static const Ops bf16 = table<Bf16InF32<6, 1>>(Isa::avx2, Precision::bf16);
  return precision == Precision::fp32 ? &fp32 : &bf16;
}

}  // namespace sorl::train
