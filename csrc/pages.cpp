#include "pages.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <utility>

namespace sorl {

Pages::Pages(std::size_t bytes, std::size_t huge_from) {
  const bool huge = bytes >= huge_from;
  const std::size_t page = huge ? kHugePage : 4096;
  bytes_ = std::max((bytes + page - 1) / page, std::size_t{1}) * page;
  mapped_bytes_ = huge ? bytes_ + page : bytes_;
  void* p = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  data_ = mapped_ = static_cast<char*>(p);
  if (!huge) return;
  data_ += (page - reinterpret_cast<std::uintptr_t>(p) % page) % page;
  madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: 4 KiB pages work too
}

Pages::~Pages() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
}

Pages::Pages(Pages&& other) noexcept { *this = std::move(other); }

Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapped_, other.mapped_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  return *this;
}

}  // namespace sorl
