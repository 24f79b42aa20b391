// Not part of the library: setup.py and CMake compile this first, with all the flags that the sources for this
// machine need, to say in a sentence what else a page of errors would.
#include <charconv>

#if !defined(__linux__)
#error the native runtime is for Linux
#endif
// 32-bit x86 computes in 80 bits unless told otherwise: other bits in each function that inlines a sum.
#if __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error float and double must be computed as such: -msse2 -mfpmath=sse
#endif

std::from_chars_result probe(const char* begin, const char* end, double& value);
std::from_chars_result probe(const char* begin, const char* end, double& value) {
  return std::from_chars(begin, end, value);
}
