#include "../kernels.hpp"
namespace sorl { const Kernels* avx512_bf16_kernels(Precision) { return nullptr; } }
