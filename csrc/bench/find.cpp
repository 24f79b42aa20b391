// The loops of an instruction set.
#include <cstdlib>

#include "bench.hpp"

namespace sorl::bench {

const Loops& find_loops(Isa isa, Precision precision) {
  switch (isa) {
#define ISA(name, needs, ...) \
  case Isa::name:             \
    return *name##_loops(precision);
#include "../isas.def"
  }
  std::abort();
}

}  // namespace sorl::bench
