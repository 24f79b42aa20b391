// Flush denormals to zero for the length of a scope. A denormal costs over a hundred cycles on x86, so
// an observation full of them could otherwise stretch a call.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sorl {

class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(kMode); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  // FTZ, DAZ, every exception masked, to nearest: whatever the caller's own mode, same bits.
  static constexpr unsigned kMode = 0x8040 | 0x1F80;
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() noexcept {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    set(std::uint64_t{1} << 24);  // FZ, to nearest, no traps
  }
  ~FlushDenormals() { set(saved_); }

 private:
  static void set(std::uint64_t mode) noexcept { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
  std::uint64_t saved_;
#else
  FlushDenormals() noexcept {}  // nobody to tell; they are slow, and right
  ~FlushDenormals() {}
#endif
 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace sorl
