// Which physical pages a policy's weights lie in.
//
// A second-level cache is found by physical address: the pages of a process fall into its parts (of a cache of
// 2 MiB and 16 ways, 32 parts of 64 KiB) as the system hands them out, or a virtual machine's host does. By chance
// some parts get more pages than they hold, and each walk through the weights finds those pages gone. `sorl-bench
// placement` shows what it costs.
#pragma once

#include <cstddef>
#include <vector>

namespace sorl {

inline constexpr std::size_t kPage = 4096;

// So many bytes may lie in a core's second-level cache together, with room for what else a call reads; 0 where the
// system does not say.
std::size_t most_placed() noexcept;

#if defined(__x86_64__)
// Pages to put in others' places, each once.
class SparePages {
 public:
  explicit SparePages(std::size_t n) : n_(n) {}
  SparePages(const SparePages&) = delete;
  SparePages& operator=(const SparePages&) = delete;
  ~SparePages();
  // Has another page of memory stand where `page` does, with the same contents. False: there is none left, or the
  // system refuses; nothing has changed then. Throws std::bad_alloc.
  bool replace(char* page);

 private:
  std::size_t n_, used_ = 0;
  char* first_ = nullptr;
};
#endif

// Of pages that are read one after another, again and again: times each, and has those that are not found in the
// cache replaced by others, until all are or 40 ms are over. Their addresses and contents stay. They must lie in a
// private anonymous mapping that nobody else touches meanwhile. Nothing happens if they are more than most_placed(),
// or so few that chance leaves no part too full, where the system refuses, or on processors that this was never timed on (all but x86-64). Throws std::bad_alloc.
void spread_over_cache(const std::vector<char*>& pages);

}  // namespace sorl
