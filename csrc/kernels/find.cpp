// The sampler's kernels of an instruction set.
#include "../kernels.hpp"

namespace sorl {

const Kernels* find_kernels(Isa isa, Precision precision) {
  using P = Precision;
  if (!available(isa)) return nullptr;
  switch (isa) {
#define ISA(name, needs, ...) \
  case Isa::name:             \
    return listed(precision, __VA_ARGS__) ? name##_kernels(precision) : nullptr;
#include "../isas.def"
  }
  return nullptr;
}

}  // namespace sorl
