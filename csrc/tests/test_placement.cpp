// Pages of weights that are put elsewhere keep their addresses and contents, whatever the system says to it. What it
// does for speed is bench/'s to show.
#include "../placement.hpp"

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "../pages.hpp"
#include "check.hpp"
#include "seccomp.hpp"

#if defined(__x86_64__)
namespace {

using sorl::kPage;
using sorl::Pages;

char value(std::size_t i) { return static_cast<char>(i * 2654435761u >> 13); }

Pages filled(std::size_t bytes) {
  Pages pages(bytes);
  for (std::size_t i = 0; i < bytes; ++i) pages.data()[i] = value(i);
  return pages;
}

bool intact(const Pages& pages, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i)
    if (pages.data()[i] != value(i)) return false;
  return true;
}

std::vector<char*> all(const Pages& pages, std::size_t bytes) {
  std::vector<char*> each;
  for (std::size_t i = 0; i < bytes; i += kPage) each.push_back(pages.data() + i);
  return each;
}

void test_a_page_is_replaced() {
  constexpr std::size_t n = 3, bytes = 7 * kPage;
  const Pages pages = filled(bytes);
  sorl::SparePages spare(n);
  for (const std::size_t page : {2, 5, 2}) CHECK(spare.replace(pages.data() + page * kPage));
  CHECK(!spare.replace(pages.data()));  // none is left
  CHECK(intact(pages, bytes));
  std::memset(pages.data(), 0, bytes);  // they can be written, and freed with the others
}

void test_all_are_placed() {
  for (const std::size_t bytes : {kPage, 100 * kPage, sorl::most_placed() / kPage * kPage}) {
    const Pages pages = filled(bytes);
    sorl::spread_over_cache(all(pages, bytes));
    CHECK(intact(pages, bytes));
  }
  sorl::spread_over_cache({});
  const std::size_t many = sorl::most_placed() + 8 * kPage;
  const Pages pages = filled(many);
  sorl::spread_over_cache(all(pages, many));  // too many: nothing is moved
  CHECK(intact(pages, many));
}

// Last, for it lasts.
void test_the_system_refuses() {
  if (!refuse(SYS_mremap)) {
    std::puts("no seccomp here: a refusal was not tried");
    return;
  }
  constexpr std::size_t bytes = 4 * kPage;
  const Pages pages = filled(bytes);
  sorl::SparePages spare(2);
  CHECK(!spare.replace(pages.data() + kPage));
  CHECK(intact(pages, bytes));
  const Pages weights = filled(sorl::most_placed() / kPage * kPage);
  sorl::spread_over_cache(all(weights, weights.bytes() / 2));
  CHECK(intact(weights, weights.bytes() / 2));
}

}  // namespace
#endif

int main() {
#if defined(__x86_64__)
  test_a_page_is_replaced();
  test_all_are_placed();
  test_the_system_refuses();
#endif
}
