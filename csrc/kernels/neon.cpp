// AArch64 NEON.
#include "neon.hpp"

#include "table.hpp"

namespace sorl {

const Kernels* neon_kernels(Precision precision) { return tables<Neon>(Isa::neon, precision, 96); }

}  // namespace sorl
