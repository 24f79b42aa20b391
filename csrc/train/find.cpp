// Which training operations this machine can run.
#include "../kernels.hpp"
#include "train.hpp"

namespace sorl::train {

const Ops* find_ops(Isa isa, Precision precision) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2: return find_kernels(isa, Precision::fp32) != nullptr ? avx2_ops(precision) : nullptr;
    case Isa::avx512: return find_kernels(isa, Precision::fp32) != nullptr ? avx512_ops(precision) : nullptr;
    case Isa::avx512_bf16:
      return find_kernels(isa, Precision::bf16) != nullptr ? avx512_bf16_ops(precision) : nullptr;
    case Isa::amx: return tiles_allowed() ? amx_ops(precision) : nullptr;
#endif
    default: return nullptr;
  }
}

}  // namespace sorl::train
