// What act must not do, counted in the whole program: the malloc family, mutexes, and wakes of parked threads.
// Replaces these functions: included by one file of a program.
#pragma once

#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstdarg>
#include <cstddef>

// ---- the malloc family and mutexes, counted -------------------------------------------------------
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
namespace {
std::atomic<long> allocations{0}, locks{0};
}
extern "C" {
// Not even an uncontended one, which the kernel would not see.
int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
  static const auto next = reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  locks.fetch_add(1, std::memory_order_relaxed);
  return next(mutex);
}
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);
void* malloc(std::size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(n);
}
void* calloc(std::size_t n, std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(p, n);
}
void* aligned_alloc(std::size_t alignment, std::size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, n);
}
int posix_memalign(void** p, std::size_t alignment, std::size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  *p = __libc_memalign(alignment, n);
  return *p == nullptr ? 12 : 0;
}
void free(void* p) {
  if (p != nullptr) allocations.fetch_add(1, std::memory_order_relaxed);
  __libc_free(p);
}
}
#endif

// ---- wakes of parked threads, counted -------------------------------------------------------------
namespace {
std::atomic<long> wakes{0};
}
extern "C" long syscall(long number, ...) noexcept {
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& x : a) x = va_arg(list, long);
  va_end(list);
  if (number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAKE) wakes.fetch_add(1, std::memory_order_relaxed);
  static const auto next = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
  return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

namespace {

// Allocations, frees and locks so far.
#if defined(COUNTS_ALLOCATIONS)
constexpr bool kCounts = true;
long counted() { return allocations.load() + locks.load(); }
#else
constexpr bool kCounts = false;
long counted() { return 0; }
#endif

}  // namespace
