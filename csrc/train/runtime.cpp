#include "runtime.hpp"

#include <cstring>
#include <stdexcept>

namespace sorl::train {

namespace {

// Microseconds that workers wait for the next call before they park: between two operations of an update
// Python has less to do than that, and to wake a parked thread costs as much as a small product.
constexpr int kSpin = 2000;

struct Pool {
  std::mutex mutex;
  std::vector<Pages> idle;
  int fill = -1;
  // Never destroyed: Python may give blocks back while the process ends.
  static Pool& get() {
    static Pool* pool = new Pool;
    return *pool;
  }
};

}  // namespace

Runtime& Runtime::get() {
  static Runtime* runtime = new Runtime;  // its threads end with the process
  return *runtime;
}

void Runtime::set_threads(int threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  threads_ = threads;
  if (team_ != nullptr && team_->size() != threads) team_.reset();
}

void Runtime::prepare(const Ops* ops, const Shape* shape, int rows, int steps) {
  if (team_ == nullptr) team_ = std::make_unique<Team>(threads_, kSpin);
  if (!team_->alive()) throw std::runtime_error("can't start a worker thread: free some, or set --threads 1");
  if (ops == nullptr) return;
  const std::size_t shared = ops->shared_bytes(*shape, rows, steps);
  const std::size_t own = ops->own_bytes(*shape);
  if (shared_.bytes() < shared) shared_ = memory(shared);
  scratch_.shared = shared_.data();
  for (int t = 0; t < threads_; ++t) {
    if (own_[t].bytes() < own) own_[t] = memory(own);
    scratch_.own[t] = own_[t].data();
  }
}

double* Runtime::partial_sums(std::size_t n) {
  if (partial_.size() < n) partial_.resize(n);
  return partial_.data();
}

Lease::Lease(std::size_t bytes) : bytes_(bytes) {
  Pool& pool = Pool::get();
  const std::lock_guard<std::mutex> lock(pool.mutex);
  auto best = pool.idle.end();
  for (auto m = pool.idle.begin(); m != pool.idle.end(); ++m)
    if (m->bytes() >= bytes && (best == pool.idle.end() || m->bytes() < best->bytes())) best = m;
  // A small request never takes a large block: the next large one would need another.
  if (best != pool.idle.end() && (best->bytes() <= 16 * bytes || best->bytes() <= 4096)) {
    memory_ = std::move(*best);
    pool.idle.erase(best);
  } else {
    memory_ = memory(bytes);
  }
  if (pool.fill >= 0) std::memset(memory_.data(), pool.fill, bytes);
}

Lease::~Lease() {
  Pool& pool = Pool::get();
  const std::lock_guard<std::mutex> lock(pool.mutex);
  pool.idle.push_back(std::move(memory_));
}

std::size_t Lease::idle_bytes() {
  Pool& pool = Pool::get();
  const std::lock_guard<std::mutex> lock(pool.mutex);
  std::size_t bytes = 0;
  for (const Pages& m : pool.idle) bytes += m.bytes();
  return bytes;
}

void Lease::fill_with(int byte) {
  Pool& pool = Pool::get();
  const std::lock_guard<std::mutex> lock(pool.mutex);
  pool.fill = byte;
}

}  // namespace sorl::train
