#include "placement.hpp"

#include <unistd.h>

#if defined(__x86_64__)
#include <sys/mman.h>
#include <sys/prctl.h>
#include <x86intrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <numeric>

#include "pages.hpp"

namespace sorl {

std::size_t most_placed() noexcept {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return cache > 0 ? static_cast<std::size_t>(cache) / 10 * 9 : 0;
#else
  return 0;
#endif
}

#if defined(__x86_64__)

namespace {

using Clock = std::chrono::steady_clock;
using Ticks = std::uint64_t;

constexpr auto kMostTime = std::chrono::milliseconds(40);
constexpr int kWarmUp = 3, kPasses = 9, kCounted = 5;  // the shortest of the passes count
// Of the time of a page that surely is in the cache, from where on it is not.
constexpr double kSlow = 1.4;
// One in so many slow pages is replaced at a time: of a part that has one page too many, all are slow.
constexpr std::size_t kPart = 6;

inline void read_page(const char* page) noexcept {
  for (std::size_t line = 0; line < kPage; line += kLine)
    (void)*reinterpret_cast<const volatile std::uint64_t*>(page + line);
}

// What each page takes to read while all are read in a circle.
class Watched {
 public:
  explicit Watched(const std::vector<char*>& pages)
      : pages_(pages), times_(pages.size() * kPasses), sums_(pages.size()), sorted_(pages.size()) {}

  // The pages that are not found in the cache.
  void slow(std::vector<std::size_t>& found) {
    for (int pass = -kWarmUp; pass < kPasses; ++pass)
      for (std::size_t i = 0; i < pages_.size(); ++i) {
        const Ticks begin = __rdtsc();
        read_page(pages_[i]);
        _mm_lfence();
        if (pass >= 0) times_[i * kPasses + static_cast<std::size_t>(pass)] = __rdtsc() - begin;
      }
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      Ticks* const own = &times_[i * kPasses];
      std::sort(own, own + kPasses);
      sums_[i] = std::accumulate(own, own + kCounted, Ticks{0});
    }
    sorted_ = sums_;
    const auto tenth = sorted_.begin() + static_cast<std::ptrdiff_t>(sorted_.size() / 10);
    std::nth_element(sorted_.begin(), tenth, sorted_.end());
    const double most = kSlow * static_cast<double>(*tenth);
    found.clear();
    for (std::size_t i = 0; i < pages_.size(); ++i)
      if (static_cast<double>(sums_[i]) > most) found.push_back(i);
  }

 private:
  const std::vector<char*>& pages_;
  std::vector<Ticks> times_, sums_, sorted_;
};

}  // namespace

SparePages::~SparePages() {
  if (first_ != nullptr && used_ < n_) munmap(first_ + used_ * kPage, (n_ - used_) * kPage);
}

bool SparePages::replace(char* page) {
  if (first_ == nullptr) {
    void* const all = mmap(nullptr, n_ * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return false;
    first_ = static_cast<char*>(all);
    madvise(first_, n_ * kPage, MADV_NOHUGEPAGE);
  }
  if (used_ == n_) return false;
  char* const other = first_ + used_ * kPage;
  std::memcpy(other, page, kPage);
  if (mremap(other, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, page) != MAP_FAILED) {
    ++used_;
    return true;
  }
  // The page may be gone already: in its place comes a new one.
  if (mmap(page, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
    throw std::bad_alloc();
  std::memcpy(page, other, kPage);
  return false;
}

void spread_over_cache(const std::vector<char*>& pages) {
  const std::size_t n = pages.size();
  int stamps = 0;  // a sandbox may take the time-stamp counter away
  // Few pages are few a part; and some would be read from the first level, beside which all others look slow.
  if (n == 0 || n * kPage < most_placed() / 3 || n * kPage > most_placed()) return;
  if (prctl(PR_GET_TSC, &stamps) != 0 || stamps != PR_TSC_ENABLE) return;
  Watched watched(pages);
  SparePages spare(n);
  std::vector<std::size_t> slow;
  std::uint32_t random = 1;
  for (const auto end = Clock::now() + kMostTime; Clock::now() < end;) {
    watched.slow(slow);
    if (slow.size() <= n / 100) return;
    const std::size_t replaced = (slow.size() + kPart - 1) / kPart;
    for (std::size_t i = 0; i < replaced; ++i) {
      random = random * 1664525u + 1013904223u;
      std::swap(slow[i], slow[i + (random >> 8) % (slow.size() - i)]);
      if (!spare.replace(pages[slow[i]])) return;
    }
  }
}

#else

void spread_over_cache(const std::vector<char*>&) {}

#endif

}  // namespace sorl
