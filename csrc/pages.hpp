// Memory of pages of its own, and how it is handed out.
#pragma once

#include <cstddef>

namespace sorl {

inline constexpr std::size_t kLine = 64;  // bytes of a cache line
inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Zeroed, and on huge pages where the system gives them: a cycle through 3 MB of weights on 4 KiB pages would
// spend a sixth of its loads on page walks.
class Pages {
 public:
  Pages() = default;
  // Fewer bytes than `huge_from` go without huge pages, and so don't fill one each. Throws std::bad_alloc.
  explicit Pages(std::size_t bytes, std::size_t huge_from = 0);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }  // whole pages

 private:
  char* data_ = nullptr;
  std::size_t bytes_ = 0;
  char* mapped_ = nullptr;
  std::size_t mapped_bytes_ = 0;
};

// Hands out aligned pieces of a region; over a null region it only counts.
class Bump {
 public:
  explicit Bump(char* base) : base_(base) {}
  template <class T>
  T* take(std::size_t n, std::size_t align = kLine) {
    used_ = (used_ + align - 1) / align * align;
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += n * sizeof(T);
    return p;
  }
  bool counting() const { return base_ == nullptr; }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace sorl
