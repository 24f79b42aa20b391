// What outlives a training call: threads, work memory, and the blocks lent to callers. One call runs at
// a time; others wait.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "../pages.hpp"
#include "../team.hpp"
#include "train.hpp"

namespace sorl::train {

// Huge pages where they would be filled: a network's weights alone span a thousand small ones.
inline Pages memory(std::size_t bytes) { return Pages(bytes, kHugePage); }

class Runtime {
 public:
  static Runtime& get();

  // Threads of the calls to come, 1 to 8.
  void set_threads(int threads);

  // Calls run(team, scratch) with at least so much work memory.
  template <class Run>
  void call(const Ops* ops, const Shape* shape, int rows, int steps, Run run) {
    const std::lock_guard<std::mutex> lock(mutex_);
    prepare(ops, shape, rows, steps);
    run(*team_, scratch_);
  }

  double* partial_sums(std::size_t n);  // inside a call

 private:
  void prepare(const Ops* ops, const Shape* shape, int rows, int steps);

  std::mutex mutex_;
  int threads_ = 1;
  std::unique_ptr<Team> team_;
  Pages shared_, own_[8];
  std::vector<double> partial_;
  Scratch scratch_{};
};

// A block of memory that goes back to the pool, not to the system, when its last user is done: what a
// forward saves is as large at every update, and fresh pages would cost more than the arithmetic.
class Lease {
 public:
  explicit Lease(std::size_t bytes);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  void* data() const { return memory_.data(); }
  std::size_t bytes() const { return bytes_; }

  // Bytes of all blocks that are not lent now.
  static std::size_t idle_bytes();
  // From now on fills each block with this byte before it is lent, or with nothing (-1). For tests.
  static void fill_with(int byte);

 private:
  Pages memory_;
  std::size_t bytes_;
};

}  // namespace sorl::train
