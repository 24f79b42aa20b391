// The one place where an instruction set is chosen.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sorl {

const char* name(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::neon: return "neon";
    case Isa::neon_dotprod: return "neon_dotprod";
    case Isa::avx2: return "avx2";
    case Isa::avx_vnni: return "avx_vnni";
    case Isa::avx512: return "avx512";
    case Isa::avx512_vnni: return "avx512_vnni";
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::amx: return "amx";
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

#if defined(__x86_64__)

namespace {

bool assume_tiles = false;

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

constexpr bool bit(unsigned word, int i) { return (word >> i & 1) != 0; }

// What the processor has and the operating system saves and restores.
struct Cpu {
  bool avx2 = false, avx_vnni = false, avx512 = false, avx512_vnni = false, avx512_bf16 = false, tiles = false,
       amd = false;

  Cpu() {
    const Leaf vendor(0, 0), one(1, 0), seven(7, 0), seven_one(7, 1);
    amd = vendor.b == signature_AMD_ebx;
    if (!bit(one.c, 27)) return;  // OSXSAVE: XGETBV exists
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xE6) == 0xE6, tmm = (low & 0x60000) == 0x60000;
    avx2 = ymm && bit(one.c, 28) && bit(one.c, 12) && bit(seven.b, 5);  // AVX, FMA, AVX2
    avx512 = avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) &&
             bit(seven.b, 31);  // F, DQ, BW, VL
    avx_vnni = avx2 && bit(seven_one.a, 4);
    avx512_vnni = avx512 && bit(seven.c, 11);
    avx512_bf16 = avx512 && bit(seven_one.a, 5);
    tiles = avx512_bf16 && tmm && bit(seven.d, 24) && bit(seven.d, 22);  // AMX-TILE, AMX-BF16
  }
};

const Cpu& cpu() {
  static const Cpu found;
  return found;
}

// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): a permission of the whole process, kept by its
// threads. Kernels before 5.16 and sandboxes refuse.
bool ask_kernel() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

}  // namespace

bool tiles_allowed() {
  if (assume_tiles) return true;
  static const bool allowed = cpu().tiles && ask_kernel();
  return allowed;
}

void assume_tiles_for_test() { assume_tiles = true; }

#else

bool tiles_allowed() { return false; }
void assume_tiles_for_test() {}

#if defined(__aarch64__)
namespace {

bool dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;  // nobody to ask in a way that is the same everywhere
#endif
}

}  // namespace
#endif

#endif

const Kernels* find_kernels(Isa isa, Precision precision) {
  switch (isa) {
    case Isa::scalar: return scalar_kernels(precision);
#if defined(__aarch64__)
    case Isa::neon: return neon_kernels(precision);
    case Isa::neon_dotprod: return dotprod() ? neon_dotprod_kernels(precision) : nullptr;
#endif
#if defined(__x86_64__)
    case Isa::avx2: return cpu().avx2 ? avx2_kernels(precision) : nullptr;
    case Isa::avx_vnni: return cpu().avx_vnni ? avx_vnni_kernels(precision) : nullptr;
    case Isa::avx512_vnni: return cpu().avx512_vnni ? avx512_vnni_kernels(precision) : nullptr;
    case Isa::avx512: return cpu().avx512 ? avx512_kernels(precision) : nullptr;
    case Isa::avx512_bf16: return cpu().avx512_bf16 ? avx512_bf16_kernels(precision) : nullptr;
    case Isa::amx: return tiles_allowed() ? amx_kernels(precision) : nullptr;
#endif
    default: return nullptr;
  }
}

std::vector<Isa> available_isas(Precision precision) {
  std::vector<Isa> order{Isa::scalar,   Isa::neon,        Isa::neon_dotprod, Isa::avx2,
                         Isa::avx_vnni, Isa::avx512_vnni, Isa::avx512_bf16,  Isa::avx512, Isa::amx};
#if defined(__x86_64__)
  // Intel issues vdpbf16ps every other cycle on one port: half the rate of two fp32 multiply-adds on
  // widened weights (measured on Emerald Rapids: 78 against 166 GFLOP/s). AMD issues it at full rate.
  if (cpu().amd)
    std::iter_swap(std::find(order.begin(), order.end(), Isa::avx512_bf16),
                   std::find(order.begin(), order.end(), Isa::avx512));
#endif
  std::vector<Isa> there;
  for (const Isa isa : order)
    if (find_kernels(isa, precision) != nullptr) there.push_back(isa);
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
