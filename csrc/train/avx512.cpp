// AVX-512: 11 rows by 32 columns keep 22 sums in registers and read 13 values for 22 multiply-adds, two a
// cycle. (12 and 14 rows do not divide a block of 32 as evenly.)
#include "bf16_in_f32.hpp"

namespace sorl::train {

const Ops* avx512_ops(Precision precision) {
  static const Ops fp32 = table<F32<6, 4>>(Isa::avx512, Precision::fp32);
  static const Ops bf16 = table<Bf16InF32<6, 4>>(Isa::avx512, Precision::bf16);
  return precision == Precision::fp32 ? &fp32 : &bf16;
}

}  // namespace sorl::train
