// Instruction sets and precisions: what there is (isas.def), what this machine allows, and the one choice.
#pragma once

#include <string>
#include <vector>

namespace sorl {

enum class Precision { fp32, bf16, int8 };
inline constexpr Precision kPrecisions[] = {Precision::fp32, Precision::bf16, Precision::int8};

enum class Isa {
#define ISA(name, needs, ...) name,
#include "isas.def"
};
inline constexpr Isa kIsas[] = {
#define ISA(name, needs, ...) Isa::name,
#include "isas.def"
};

// The enumerators' own names.
const char* name(Isa isa) noexcept;
const char* name(Precision precision) noexcept;

// Whether this machine, kernel and process allow it. AMX counts only after CPUID, XCR0 and the kernel's
// permission, which is asked for the first time, all agree.
bool available(Isa isa);
// For tests: from now on AMX counts as there, its instructions being emulated.
void assume_tiles_for_test();

// Those that have kernels of the sampler in a precision and are available, slowest first.
std::vector<Isa> available_isas(Precision precision);

// The one choice of an instruction set: `wanted` if not null, else the environment's SORL_CPU_ISA if
// set and not empty, else the fastest. False, with the reason in `error`, if that one is not there.
bool choose_isa(Precision precision, const char* wanted, Isa& isa, std::string& error);

// Whether a row's list of precisions has this one.
template <class... Listed>
constexpr bool listed(Precision precision, Listed... precisions) {
  return ((precision == precisions) || ...);
}

}  // namespace sorl
