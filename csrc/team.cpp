#include "team.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <mutex>
#include <system_error>

namespace sorl {

namespace {

// Polls between looks at the clock, and before a waiting thread offers its core to another.
constexpr int kPolls = 64, kPatience = 20000;

std::atomic<unsigned> forks{0};

void count_forks() {
  static std::once_flag once;
  std::call_once(once, [] {
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  });
}

// FUTEX_WAIT_PRIVATE and FUTEX_WAKE_PRIVATE of <linux/futex.h>, which not every C library brings.
constexpr int kFutexWait = 128, kFutexWake = 129;

void futex_wait(std::atomic<std::uint32_t>* word, std::uint32_t value) noexcept {
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(word), kFutexWait, value, nullptr,
          nullptr, 0);
}

void futex_wake_all(std::atomic<std::uint32_t>* word) noexcept {
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(word), kFutexWake, INT_MAX, nullptr,
          nullptr, 0);
}

// Waits for `done`; a machine with fewer cores than threads would never get there by spinning alone.
template <class Done>
void spin_until(Done done) noexcept {
  for (int polls = 0; !done(); ++polls) {
    if (polls < kPatience)
      relax();
    else
      sched_yield();
  }
}

}  // namespace

struct Team::Shared {
  int size = 1;
  cpu_set_t cores;  // where the workers might run when they were made
  cpu_set_t others;  // where we let them run
  std::chrono::microseconds spin{};
  Work work = nullptr;
  void* context = nullptr;
  bool quit = false;
  alignas(64) std::atomic<std::uint32_t> job{0};  // counts runs; parked workers wait on it
  alignas(64) std::atomic<std::uint32_t> parked{0};
  alignas(64) std::atomic<std::uint32_t> finished{0};
  alignas(64) std::atomic<std::uint32_t> arrived{0};
  alignas(64) std::atomic<std::uint32_t> phase{0};
};

Team::Team(int threads, int spin_microseconds) : size_(threads), spin_(spin_microseconds) {
  if (size_ == 1) return;
  count_forks();
  start();
}

Team::~Team() { stop(); }

void Team::start() {
  forks_ = forks.load(std::memory_order_relaxed);
  shared_ = std::make_unique<Shared>();
  shared_->size = size_;
  shared_->spin = std::chrono::microseconds(spin_);
  avoided_ = -1;
  if (sched_getaffinity(0, sizeof shared_->cores, &shared_->cores) != 0) CPU_ZERO(&shared_->cores);
  shared_->others = shared_->cores;
  // Signals are the caller's business: workers inherit a mask that blocks all but a thread's own faults.
  sigset_t mask, before;
  sigfillset(&mask);
  for (const int fault : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP}) sigdelset(&mask, fault);
  pthread_sigmask(SIG_SETMASK, &mask, &before);
  try {
    for (int t = 1; t < size_; ++t) threads_.emplace_back(worker, shared_.get(), t);
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    stop();
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Team::stop() noexcept {
  if (shared_ == nullptr) return;
  if (forks_ == forks.load(std::memory_order_relaxed)) {
    shared_->quit = true;
    shared_->job.fetch_add(1);
    futex_wake_all(&shared_->job);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  } else {
    // A child of fork: the workers exist in the parent only. Their handles can't be joined, and a
    // std::thread may not be destroyed unjoined, so both stay behind.
    new std::vector<std::thread>(std::move(threads_));
    threads_.clear();
    shared_.release();
  }
  shared_.reset();
}

bool Team::alive() noexcept {
  if (size_ == 1) return true;
  if (shared_ != nullptr && forks_ == forks.load(std::memory_order_relaxed)) return true;
  try {
    stop();
    start();
    return true;
  } catch (...) {
    return false;
  }
}

// A worker is often woken on its waker's core, or its caller moves there. Both then spin for each other, and
// the scheduler was seen to leave them together for milliseconds to seconds, the other core idle. So workers
// stay off the caller's core, unless somebody else has said where they run. Only a caller that has moved
// since the last run makes system calls here.
void Team::avoid_this_core() noexcept {
  const int core = sched_getcpu();
  if (core < 0 || core >= CPU_SETSIZE || core == avoided_) return;
  cpu_set_t others = shared_->cores;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0) return;
  for (std::thread& thread : threads_) {
    cpu_set_t now;
    const pthread_t handle = thread.native_handle();
    if (pthread_getaffinity_np(handle, sizeof now, &now) == 0 && CPU_EQUAL(&now, &shared_->others))
      pthread_setaffinity_np(handle, sizeof others, &others);
  }
  shared_->others = others;
  avoided_ = core;
}

void Team::run(Work work, void* context) noexcept {
  if (size_ == 1) return work(context, 0);
  Shared& s = *shared_;
  avoid_this_core();
  s.work = work;
  s.context = context;
  s.finished.store(0, std::memory_order_relaxed);
  // Sequentially consistent on both sides, so that a worker about to park is either seen here or
  // itself sees the new job when the futex compares.
  s.job.fetch_add(1);
  if (s.parked.load() != 0) futex_wake_all(&s.job);
  work(context, 0);
  spin_until([&] {
    return s.finished.load(std::memory_order_acquire) == static_cast<std::uint32_t>(size_ - 1);
  });
}

void Team::barrier() noexcept {
  if (size_ == 1) return;
  Shared& s = *shared_;
  const std::uint32_t phase = s.phase.load(std::memory_order_relaxed);
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(size_)) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.phase.store(phase + 1, std::memory_order_release);
  } else {
    spin_until([&] { return s.phase.load(std::memory_order_acquire) != phase; });
  }
}

void Team::worker(Shared* shared, int thread) noexcept {
  Shared& s = *shared;
  std::uint32_t seen = 0;
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + s.spin;
    for (int polls = 1; s.job.load(std::memory_order_acquire) == seen; ++polls) {
      relax();
      if (polls % kPolls == 0 && std::chrono::steady_clock::now() > until) {
        s.parked.fetch_add(1);
        while (s.job.load() == seen) futex_wait(&s.job, seen);
        s.parked.fetch_sub(1);
      }
    }
    ++seen;
    if (s.quit) return;
    s.work(s.context, thread);
    s.finished.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace sorl
