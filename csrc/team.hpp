// The threads of one session: the caller and its workers, which spin for a bounded time between calls
// and then park. A team of one has no thread, no atomic and no system call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace sorl {

inline void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

class Team {
 public:
  using Work = void (*)(void* context, int thread) noexcept;

  // How long a worker spins after a run before it parks: long enough for a caller that comes straight
  // back, short enough not to burn a core between the calls of a 1 kHz loop.
  static constexpr int kSpinMicroseconds = 200;

  // Starts threads - 1 workers; throws std::system_error or std::bad_alloc.
  explicit Team(int threads, int spin_microseconds = kSpinMicroseconds);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const noexcept { return size_; }

  // Runs work(context, t) for t in [0, size), t = 0 on this thread, and returns when all are done.
  // Only while alive().
  void run(Work work, void* context) noexcept;

  // All threads of a run meet here.
  void barrier() noexcept;

  // Whether the workers live in this process. In a child of fork, where they did not come along, they
  // are started anew; false where the system has no thread to give.
  bool alive() noexcept;

 private:
  struct Shared;
  static void worker(Shared* shared, int thread) noexcept;
  void start();
  void stop() noexcept;
  void avoid_this_core() noexcept;

  int size_, spin_;
  int avoided_ = -1;  // the core that the workers stay off
  unsigned forks_;  // forks of the process when the workers were started
  std::unique_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

}  // namespace sorl
