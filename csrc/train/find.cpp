// The training operations of an instruction set.
#include "train.hpp"

namespace sorl::train {

const Ops* find_ops(Isa isa, Precision precision) {
  using P = Precision;
  if (!available(isa)) return nullptr;
  switch (isa) {
#define TRAINS(name, ...) \
  case Isa::name:         \
    return listed(precision, __VA_ARGS__) ? name##_ops(precision) : nullptr;
#include "../isas.def"
    default: return nullptr;
  }
}

}  // namespace sorl::train
