// AVX-512: 6 rows by 64 columns keep 24 sums in registers and read 10 values for 24 multiply-adds, two a cycle.
#include "bf16_in_f32.hpp"

namespace sorl::train {

const Ops* avx512_ops(Precision precision) {
  static const Ops fp32 = table<F32<6, 4>>(Isa::avx512, Precision::fp32);
  static const Ops bf16 = table<Bf16InF32<6, 4>>(Isa::avx512, Precision::bf16);
  return precision == Precision::fp32 ? &fp32 : &bf16;
}

}  // namespace sorl::train
