// What the benchmarks' module times a machine with.
#pragma once

#include <cstddef>

#include "../isa.hpp"

namespace sorl::bench {

// Of an instruction set and precision.
struct Loops {
  // Runs `n` rounds of multiply-adds of values like a policy's; returns FLOP done.
  double (*burn)(long n) noexcept;
  // Sums `bytes` of memory, a multiple of 256, aligned to 64.
  float (*read)(const void* p, std::size_t bytes, bool backwards) noexcept;
  // Machine state around them, on each thread (AMX tiles), or null.
  void (*enter)() noexcept;
  void (*leave)() noexcept;
};

// bench/NAME.cpp: NAME_loops, of the precisions of the sampler's kernels.
#define ISA(name, needs, ...) const Loops* name##_loops(Precision);
#include "../isas.def"

// Of one that is there in this precision (available_isas).
const Loops& find_loops(Isa, Precision);

}  // namespace sorl::bench
