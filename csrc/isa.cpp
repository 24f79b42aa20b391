// The one place where an instruction set is chosen.
#include "isa.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sorl {

namespace {

#if defined(__x86_64__)

bool tiles_assumed = false;

// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): a permission of the whole process, kept by its
// threads. Kernels before 5.16 and sandboxes refuse.
bool tiles_granted() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
}

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

constexpr bool bit(unsigned word, int i) { return (word >> i & 1) != 0; }

#endif

// What the processor has and the operating system saves and restores.
struct Machine {
#if defined(__x86_64__)
  Leaf vendor{0, 0}, one{1, 0}, seven{7, 0}, seven_one{7, 1};
  bool ymm = false, zmm = false, tmm = false;  // registers

  Machine() {
    if (!bit(one.c, 27)) return;  // OSXSAVE: XGETBV exists
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    ymm = (low & 0x6) == 0x6;
    zmm = (low & 0xE6) == 0xE6;
    tmm = (low & 0x60000) == 0x60000;
  }
#elif defined(__aarch64__)
  static bool capability(unsigned long bits) { return (getauxval(AT_HWCAP) & bits) != 0; }
#endif

  bool has(Isa isa) const {
    switch (isa) {
#define ISA(name, needs, ...) \
  case Isa::name:             \
    return needs;
#include "isas.def"
    }
    return false;
  }

  static const Machine& here() {
    static const Machine machine;
    return machine;
  }
};

// Whether there are kernels of the sampler.
bool acts(Isa isa, Precision precision) {
  using P = Precision;
  switch (isa) {
#define ISA(name, needs, ...) \
  case Isa::name:             \
    return listed(precision, __VA_ARGS__);
#include "isas.def"
  }
  return false;
}

}  // namespace

const char* name(Isa isa) noexcept {
  switch (isa) {
#define ISA(name, needs, ...) \
  case Isa::name:             \
    return #name;
#include "isas.def"
  }
  return "";
}

const char* name(Precision precision) noexcept {
  switch (precision) {
    case Precision::fp32: return "fp32";
    case Precision::bf16: return "bf16";
    case Precision::int8: return "int8";
  }
  return "";
}

bool available(Isa isa) { return Machine::here().has(isa); }

void assume_tiles_for_test() {
#if defined(__x86_64__)
  tiles_assumed = true;
#endif
}

std::vector<Isa> available_isas(Precision precision) {
  std::vector<Isa> there;
  for (const Isa isa : kIsas)
    if (acts(isa, precision) && available(isa)) there.push_back(isa);
#if defined(__x86_64__)
  // Intel issues vdpbf16ps every other cycle on one port: half the rate of two fp32 multiply-adds on
  // widened weights (measured on Emerald Rapids: 78 against 166 GFLOP/s). AMD issues it at full rate.
  if (Machine::here().vendor.b == signature_AMD_ebx) {
    const auto pairs = std::find(there.begin(), there.end(), Isa::avx512_bf16);
    const auto widened = std::find(there.begin(), there.end(), Isa::avx512);
    if (pairs != there.end() && widened != there.end()) std::iter_swap(pairs, widened);
  }
#endif
  return there;
}

bool choose_isa(Precision precision, const char* wanted, Isa& isa, std::string& error) {
  const std::vector<Isa> there = available_isas(precision);
  const char* source = "isa";
  if (wanted == nullptr) {
    wanted = std::getenv("SORL_CPU_ISA");
    source = "SORL_CPU_ISA";
    if (wanted == nullptr || *wanted == '\0') {
      isa = there.back();
      return true;
    }
  }
  std::string list;
  for (const Isa candidate : there) {
    if (std::strcmp(name(candidate), wanted) == 0) {
      isa = candidate;
      return true;
    }
    list += list.empty() ? "" : ", ";
    list += name(candidate);
  }
  error = std::string(source) + " is '" + wanted + "', but this build on this machine has for " +
          name(precision) + ": " + list + ". Choose one of these or leave it unset.";
  return false;
}

}  // namespace sorl
