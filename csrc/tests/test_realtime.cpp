// What a control loop relies on, for every instruction set of this machine: act neither allocates, nor
// calls the system, nor faults a page in, leaves the floating-point mode as it was, gives the same bits
// on any number of threads, and always a finite action within its bounds.
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "../engine.hpp"
#include "../policy_file.hpp"
#include "check.hpp"
#include "counted.hpp"
#include "make_policy.hpp"
#include "seccomp.hpp"
#include "sorl_fast/sorl.hpp"

namespace {

using sorl::Engine;
using sorl::Isa;
using sorl::Model;
using sorl::Precision;
using sorl_test::Spec;

struct Policy {
  std::string bytes;
  std::unique_ptr<const sorl::PolicyFile> file;
  explicit Policy(const Spec& spec)
      : bytes(sorl_test::make_policy(spec)), file(sorl::PolicyFile::parse(bytes.data(), bytes.size(), "test").policy) {
    CHECK(file != nullptr);
  }
  std::shared_ptr<const Model> model(Precision precision, Isa isa) const {
    std::string error;
    auto model = Model::make(file->view(), precision, isa, error);
    CHECK(model != nullptr);
    return model;
  }
};

std::unique_ptr<Engine> session(std::shared_ptr<const Model> model, int threads, int rows, int candidates) {
  std::string error;
  auto engine = Engine::make(std::move(model), threads, rows, candidates, error);
  CHECK(engine != nullptr);
  return engine;
}

struct Answer {
  std::vector<float> actions, q;
  std::vector<std::int32_t> candidate;
  std::vector<std::uint32_t> status;
  Answer(int rows, int act_dim)
      : actions(static_cast<std::size_t>(rows * act_dim)),
        q(static_cast<std::size_t>(rows)),
        candidate(static_cast<std::size_t>(rows)),
        status(static_cast<std::size_t>(rows)) {}
  bool operator==(const Answer& other) const {
    return std::memcmp(actions.data(), other.actions.data(), actions.size() * sizeof(float)) == 0 &&
           std::memcmp(q.data(), other.q.data(), q.size() * sizeof(float)) == 0 &&
           candidate == other.candidate && status == other.status;
  }
};

void act(Engine& engine, const std::vector<float>& obs, int rows, int steps, int candidates, Answer& answer,
         std::uint32_t call = 0) {
  const int result =
      engine.act(obs.data(), nullptr, rows, steps, candidates, 99, call, 0, answer.actions.data(),
                 answer.candidate.data(), answer.q.data(), answer.status.data());
  CHECK(result == 0);
}

// qemu-user can't fork a process of several threads; under it /proc/cpuinfo is the host's.
bool foreign_processor() {
#if defined(__aarch64__)
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.compare(0, 9, "vendor_id") == 0) return true;
#endif
  return false;
}

std::vector<float> observations(int rows, int obs_dim) {
  std::vector<float> obs(static_cast<std::size_t>(rows * obs_dim));
  for (std::size_t i = 0; i < obs.size(); ++i) obs[i] = std::sin(0.9f * static_cast<float>(i));
  return obs;
}

struct Shape {
  int rows, steps, candidates;
};
const std::vector<Shape> kShapes = {{1, 8, 1}, {1, 4, 8}, {1, 1, 33}, {2, 2, 1}, {5, 2, 3}, {70, 1, 2}};

// Every kind of call that a control loop may make, through the C interface.
class Loop {
 public:
  // After so many calls each kind has met each shape, each rule too.
  static constexpr long kRound = 16 * 6 * 6 * 7;

  Loop(const Policy& policy, Precision precision, Isa isa, int threads)
      : policy_(policy.bytes.data(), policy.bytes.size()),
        session_(policy_, options(precision, isa, threads)),
        obs_(observations(70, policy_.obs_dim())),
        bad_(obs_),
        noise_(static_cast<std::size_t>(140 * policy_.act_dim() * policy_.draws()), 0.25f),
        answer_(70, policy_.act_dim()) {
    if (std::strcmp(policy_.form(), "shortcut") == 0) uneven_ = session_.prepare({0.5, 0.3, 0.2});
    if (std::strcmp(policy_.form(), "diffusion") != 0) timed_ = session_.prepare_deadline() > 0;
    bad_[1] = std::nanf("");
    for (int a = 0; a < policy_.act_dim(); ++a) noise_[static_cast<std::size_t>(a)] = std::nanf("");
  }

  // Mostly the usual call: one observation, all steps, one candidate.
  void act(long i) {
    const bool usual = i % 16 != 0;
    Shape s = kShapes[usual ? 0 : static_cast<std::size_t>(i / 16) % kShapes.size()];
    if (std::strcmp(policy_.form(), "shortcut") != 0) {  // its own steps, and another temperature each time
      s.steps = policy_.max_steps();
      session_.set_temperature(static_cast<float>(i % 3));
    } else if (i / 16 % 2 != 0) {
      s.steps = uneven_;
    }
    // 7 is prime to the kinds and shapes
    CHECK(session_.set_rule(static_cast<std::int32_t>(i / 16 % (SORL_RULE_CENTRE + 1))) == SORL_OK);
    const auto call = [&](const std::vector<float>& obs, const float* noise, bool outputs) {
      const std::int32_t status = sorl_act(
          session_.get(), obs.data(), s.rows, s.steps, s.candidates, 99, static_cast<std::uint32_t>(i), 0, noise,
          answer_.actions.data(), outputs ? answer_.candidate.data() : nullptr, outputs ? answer_.q.data() : nullptr,
          outputs ? answer_.status.data() : nullptr);
      CHECK(status >= 0);
      return status;
    };
    switch (usual ? 0 : i / 16 / static_cast<long>(kShapes.size()) % 6) {
      case 0: call(obs_, nullptr, true); break;
      case 1: CHECK((call(bad_, nullptr, true) & SORL_STATUS_HELD) != 0); break;
      case 2:
        session_.set_temperature(1);  // at 0 a step's noise is not read
        CHECK((call(obs_, noise_.data(), true) & (SORL_STATUS_HELD | SORL_STATUS_CANDIDATE_REJECTED)) != 0);
        break;
      case 3: call(obs_, nullptr, false); break;
      case 4:
        sorl_session_reset(session_.get());
        call(obs_, nullptr, true);
        break;
      case 5:  // of chunks every other tick, unless it holds
        CHECK(session_.replay((i / 16 % 6 == 5 ? bad_ : obs_).data(), answer_.actions.data(), s.steps, 1, 99,
                              static_cast<std::uint32_t>(i)) >= 0);
        if (timed_) by_deadline(i);
        break;
    }
  }

 private:
  // With plenty of time, with some, of which the clock decides, and with none.
  void by_deadline(long i) {
    sorl_done done{};
    done.struct_size = sizeof done;
    const double deadline = i % 7 < 3 ? 1e9 : i % 7 < 6 ? static_cast<double>(i % 5) : 0;
    const auto status = session_.act_by(obs_.data(), answer_.actions.data(), deadline, 99,
                                        static_cast<std::uint32_t>(i), &done);
    const bool cut = (status & SORL_STATUS_CUT_SHORT) != 0;
    CHECK(status >= 0 && status == static_cast<std::int32_t>(done.status));
    CHECK(cut == (done.evaluations < done.steps || (done.scored > 0 && done.scored < done.candidates) ||
                  (cut && done.scored == 0)));
    CHECK(deadline != 0 || (cut && (status & SORL_STATUS_HELD) != 0));
    for (int a = 0; a < policy_.act_dim(); ++a)
      CHECK(answer_.actions[static_cast<std::size_t>(a)] >= policy_.action_low()[a] &&
            answer_.actions[static_cast<std::size_t>(a)] <= policy_.action_high()[a]);
  }

  static sorl_fast::Options options(Precision precision, Isa isa, int threads) {
    sorl_fast::Options options;
    options.precision = static_cast<std::int32_t>(precision);
    options.isa = name(isa);
    options.threads = threads;
    options.max_rows = 70;
    options.max_candidates = 33;
    return options;
  }

  sorl_fast::Policy policy_;
  sorl_fast::Session session_;
  std::int32_t uneven_ = 0;
  bool timed_ = false;
  std::vector<float> obs_, bad_, noise_;
  Answer answer_;
};

long least = Loop::kRound;  // calls of each kind; fewer if main is told so: under qemu they are slow
bool memory_locked = true;  // in all of them: else a few page faults are let pass

void test_allocations_and_faults(const Policy& policy, Precision precision, Isa isa, long calls) {
  for (const int threads : {1, 2}) {
    const long idle = counted();
    Loop loop(policy, precision, isa, threads);
    CHECK(!kCounts || counted() > idle);
    loop.act(1);  // one call warms up
    const bool locked = mlockall(MCL_CURRENT | MCL_FUTURE) == 0;  // needs a right or a limit; not vital
    const long before = counted();
    rusage start{}, end{};
    getrusage(RUSAGE_SELF, &start);
    const long n = std::max(least, threads == 1 ? calls : calls / 100);
    for (long i = 0; i < n; ++i) loop.act(i);
    getrusage(RUSAGE_SELF, &end);
    if (locked) munlockall();
    memory_locked = memory_locked && locked;
    CHECK(counted() == before);
    // A moved or merged page may fault without us; none at all in the single-thread case.
    if (threads == 1 && !foreign_processor()) CHECK(end.ru_minflt - start.ru_minflt <= (locked ? 0 : 8));
  }
}

// The counters count, or the tests of what they count would pass for nothing.
void test_the_counters() {
#if defined(COUNTS_ALLOCATIONS)
  long before = counted();
  void* volatile p = std::malloc(1);
  CHECK(counted() == before + 1);
  std::free(p);
  CHECK(counted() == before + 2);
  before = counted();
  std::mutex mutex;
  mutex.lock();
  mutex.unlock();
  CHECK(counted() == before + 1);
#endif
}

bool calls_watched = true;  // of the system, in all of them: else seccomp is not to be had

void test_no_system_call(const Policy& policy, Precision precision, Isa isa) {
  for (const bool misbehave : {false, true}) {
    Loop loop(policy, precision, isa, 1);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      loop.act(1);
      if (!allow_nothing()) _exit(3);
      if (misbehave) syscall(SYS_getpid);
      for (long i = 0; i < least; ++i) loop.act(i);
      syscall(SYS_exit, 0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 3) {  // no seccomp here (qemu, sandboxes)
      calls_watched = false;
      return;
    }
    CHECK(misbehave ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

// Of two threads the caller wakes the other at most once a call, if that has parked, and asks the kernel for
// nothing else while it stays on its core.
void test_one_wake_at_most(const Policy& policy, Precision precision, Isa isa) {
  const int O = policy.file->view().obs_dim, A = policy.file->view().act_dim;
  for (const bool misbehave : {false, true}) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      auto engine = session(policy.model(precision, isa), 2, 70, 33);
      const auto obs = observations(70, O);
      Answer answer(70, A);
      cpu_set_t here;
      CPU_ZERO(&here);
      CPU_SET(static_cast<std::size_t>(sched_getcpu()), &here);
      act(*engine, obs, 1, 1, 1, answer);
      CHECK(sched_setaffinity(0, sizeof here, &here) == 0);
      act(*engine, obs, 1, 1, 1, answer);
      if (!allow_wakes_only()) _exit(3);
      if (misbehave) ::syscall(SYS_getpid);
      long woken = 0;
      // where other programs are busy, the other thread may not come to park at first
      for (int i = 0; i < 20 || (woken == 0 && i < 2000); ++i) {
        const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
        while (std::chrono::steady_clock::now() < until) {}
        for (const Shape& s : kShapes) {
          const long before = wakes.load();
          act(*engine, obs, s.rows, s.steps, s.candidates, answer);
          CHECK(wakes.load() - before <= 1);
          woken += wakes.load() - before;
        }
      }
      CHECK(woken > 0);
      _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 3) {
      calls_watched = false;
      return;
    }
    CHECK(misbehave ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

#if defined(__x86_64__)
unsigned long mode() { return _mm_getcsr(); }
void set_mode(unsigned long mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
// usual, to zero, FTZ and DAZ, down
constexpr unsigned long kModes[] = {0x1F80, 0x7F80, 0x9FC0, 0x3F80};
#elif defined(__aarch64__)
unsigned long mode() {
  unsigned long value;
  __asm__ volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
void set_mode(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
// usual, to zero, FZ, down, default NaN
constexpr unsigned long kModes[] = {0, 3ul << 22, 1ul << 24, 2ul << 22, 1ul << 25};
#else
unsigned long mode() { return 0; }
void set_mode(unsigned long) {}
constexpr unsigned long kModes[] = {0};
#endif

void test_floating_point_mode(const Policy& policy, Precision precision, Isa isa) {
  const int O = policy.file->view().obs_dim, A = policy.file->view().act_dim;
  auto engine = session(policy.model(precision, isa), 1, 5, 3);
  const auto obs = observations(5, O);
  Answer usual(5, A), odd(5, A);
  act(*engine, obs, 5, 2, 3, usual);
  const unsigned long before = mode();
  for (const unsigned long other : kModes) {
    set_mode(other);
    act(*engine, obs, 5, 2, 3, odd);
    const unsigned long after = mode();
    set_mode(before);
    CHECK(after == other);
    CHECK(usual == odd);
  }
}

void test_threads_and_forks(const Policy& policy, Precision precision, Isa isa) {
  const int O = policy.file->view().obs_dim, A = policy.file->view().act_dim;
  const auto obs = observations(300, O);
  std::vector<Answer> expected;
  const std::vector<Shape> shapes = {{1, 4, 1}, {1, 4, 7}, {1, 2, 64}, {3, 2, 3}, {300, 1, 1}, {65, 2, 2}};
  auto one = session(policy.model(precision, isa), 1, 300, 64);
  for (const Shape& s : shapes) {
    expected.emplace_back(s.rows, A);
    act(*one, obs, s.rows, s.steps, s.candidates, expected.back());
  }
  for (const int threads : {2, 3}) {
    auto engine = session(policy.model(precision, isa), threads, 300, 64);
    const auto check = [&] {
      for (std::size_t i = 0; i < shapes.size(); ++i) {
        Answer answer(shapes[i].rows, A);
        act(*engine, obs, shapes[i].rows, shapes[i].steps, shapes[i].candidates, answer);
        CHECK(answer == expected[i]);
      }
    };
    check();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));  // the workers park
    check();
#if !defined(__SANITIZE_THREAD__)
    if (foreign_processor()) continue;
    const pid_t child = fork();  // and don't come along
    CHECK(child >= 0);
    if (child == 0) {
      check();
      _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check();
#endif
  }
}

// A batch, its halves and its single rows agree, each with the noise of its own row number.
void test_batches(const Policy& policy, Precision precision, Isa isa) {
  const int O = policy.file->view().obs_dim, A = policy.file->view().act_dim;
  const int B = 9, N = 2;
  const auto obs = observations(B, O);
  auto engine = session(policy.model(precision, isa), 1, B, N);
  Answer whole(B, A), one(1, A);
  act(*engine, obs, B, 4, N, whole);
  for (int b = 0; b < B; ++b) {
    CHECK(engine->act(obs.data() + b * O, nullptr, 1, 4, N, 99, 0, static_cast<std::uint32_t>(b),
                      one.actions.data(), one.candidate.data(), one.q.data(), one.status.data()) == 0);
    if (one.candidate[0] != whole.candidate[static_cast<std::size_t>(b)]) continue;  // a near tie
    for (int a = 0; a < A; ++a)
      CHECK(std::fabs(one.actions[static_cast<std::size_t>(a)] - whole.actions[static_cast<std::size_t>(b * A + a)]) <=
            (precision == Precision::fp32 ? 1e-5f : 5e-2f));
  }
}

void test_bad_numbers(const Policy& policy, Precision precision, Isa isa) {
  const auto view = policy.file->view();
  const int O = view.obs_dim, A = view.act_dim;
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const int threads : {1, 2}) {
    for (const int N : {1, 4, 40}) {
      auto engine = session(policy.model(precision, isa), threads, 6, N);
      auto obs = observations(6, O);
      Answer answer(6, A);
      const auto at = [&](int row, int i) -> float& { return obs[static_cast<std::size_t>(row * O + i)]; };
      const auto status = [&](int row) {
        return answer.status[static_cast<std::size_t>(row)] & ~std::uint32_t{sorl::out_of_distribution};
      };
      const auto action = [&](int row) { return answer.actions.data() + row * A; };
      const auto bounded = [&] {
        for (int b = 0; b < 6; ++b)
          for (int a = 0; a < A; ++a)
            CHECK(action(b)[a] >= view.action_low[a] && action(b)[a] <= view.action_high[a]);
      };
      // Before any good action: 0 clipped to the bounds.
      for (float& x : obs) x = nan;
      act(*engine, obs, 6, 1, N, answer);
      bounded();
      for (int b = 0; b < 6; ++b) {
        CHECK(status(b) == (sorl::nonfinite_obs | sorl::held));
        CHECK(answer.candidate[static_cast<std::size_t>(b)] == -1 && std::isnan(answer.q[static_cast<std::size_t>(b)]));
        CHECK(action(b)[0] == 0.0f);
      }
      obs = observations(6, O);
      at(0, 0) = nan;
      at(1, O - 1) = inf;
      at(2, 0) = 1e38f;
      const bool judged = view.ood_mean != nullptr;
      at(3, 0) = -inf;
      for (int i = 0; i < O; ++i) at(4, i) = 1e-41f;
      act(*engine, obs, 6, 8, N, answer);
      bounded();
      CHECK(((answer.status[2] & sorl::out_of_distribution) != 0) == judged);
      for (const std::size_t row : {0u, 1u, 3u}) CHECK((answer.status[row] & sorl::out_of_distribution) == 0);
      CHECK(status(0) == (sorl::nonfinite_obs | sorl::held) && status(1) == status(0) && status(3) == status(0));
      CHECK((status(4) & (sorl::nonfinite_obs | sorl::held)) == 0 && (status(5) & sorl::held) == 0);
      CHECK(action(0)[0] == 0.0f && action(1)[0] == 0.0f);
      // The row after the bad ones is what it is without them.
      Answer alone(1, A);
      auto fresh = session(policy.model(precision, isa), threads, 6, N);
      CHECK(fresh->act(obs.data() + 5 * O, nullptr, 1, 8, N, 99, 0, 5, alone.actions.data(), alone.candidate.data(),
                       alone.q.data(), alone.status.data()) == 0);
      if (alone.candidate[0] == answer.candidate[5])
        for (int a = 0; a < A; ++a)
          CHECK(std::fabs(alone.actions[static_cast<std::size_t>(a)] - action(5)[a]) < 5e-2f);
      // The highest good row is held from now on.
      const std::vector<float> last(action(5), action(5) + A);
      for (float& x : obs) x = inf;
      act(*engine, obs, 6, 1, N, answer);
      CHECK(std::memcmp(action(2), last.data(), last.size() * sizeof(float)) == 0);
      engine->reset();
      act(*engine, obs, 6, 1, N, answer);
      CHECK(action(2)[0] == 0.0f);

      // The caller's noise: a candidate of NaN never wins, and without any other the action is held.
      std::vector<float> noise(static_cast<std::size_t>(6 * N * A), 0.25f);
      obs = observations(6, O);
      for (int a = 0; a < A; ++a) noise[static_cast<std::size_t>(a)] = nan;
      CHECK(engine->act(obs.data(), noise.data(), 6, 2, N, 0, 0, 0, answer.actions.data(), answer.candidate.data(),
                        answer.q.data(), answer.status.data()) == 0);
      bounded();
      if (N == 1) {
        CHECK(status(0) == (sorl::nonfinite_result | sorl::held));
      } else {
        CHECK((status(0) & ~std::uint32_t{sorl::clipped}) == sorl::candidate_rejected);
        CHECK(answer.candidate[0] == 1);  // equal noise: the smallest index of those left
        CHECK(answer.candidate[1] == 0);
      }
    }
  }
}

void test_refusals(const Policy& policy, Precision precision, Isa isa) {
  const auto view = policy.file->view();
  auto engine = session(policy.model(precision, isa), 1, 2, 3);
  const auto obs = observations(3, view.obs_dim);
  Answer answer(3, view.act_dim);
  for (float& x : answer.actions) x = 7;
  const auto call = [&](const float* o, int rows, int steps, int candidates, float* actions) {
    return static_cast<sorl::Result>(
        engine->act(o, nullptr, rows, steps, candidates, 0, 0, 0, actions, nullptr, nullptr, nullptr));
  };
  float* const out = answer.actions.data();
  using sorl::Result;
  CHECK(call(obs.data(), 1, 3, 1, out) == Result::bad_steps);
  CHECK(call(obs.data(), 1, 0, 1, out) == Result::bad_steps);
  CHECK(call(obs.data(), 1, 2 * view.m_disc, 1, out) == Result::bad_steps);
  CHECK(call(obs.data(), -1, 1, 1, out) == Result::bad_rows);
  CHECK(call(obs.data(), 1, 1, 0, out) == Result::bad_candidates);
  CHECK(call(obs.data(), 3, 1, 1, out) == Result::too_large);
  CHECK(call(obs.data(), 1, 1, 4, out) == Result::too_large);
  CHECK(call(nullptr, 1, 1, 1, out) == Result::null_pointer);
  CHECK(call(obs.data(), 1, 1, 1, nullptr) == Result::null_pointer);
  CHECK(call(nullptr, 0, 1, 1, nullptr) == Result::ok);
  for (const float x : answer.actions) CHECK(x == 7);
  std::string error;
  CHECK(Engine::make(policy.model(precision, isa), 0, 1, 1, error) == nullptr && !error.empty());
  CHECK(Engine::make(policy.model(precision, isa), 1, 1 << 30, 1 << 30, error) == nullptr);
}

void test_choice() {
  Isa isa;
  std::string error;
  CHECK(sorl::choose_isa(Precision::fp32, "scalar", isa, error) && isa == Isa::scalar);
  CHECK(!sorl::choose_isa(Precision::fp32, "mmx", isa, error) && error.find("mmx") != std::string::npos);
  setenv("SORL_CPU_ISA", "scalar", 1);
  CHECK(sorl::choose_isa(Precision::bf16, nullptr, isa, error) && isa == Isa::scalar);
  setenv("SORL_CPU_ISA", "nosuch", 1);
  CHECK(!sorl::choose_isa(Precision::bf16, nullptr, isa, error) && error.find("SORL_CPU_ISA") != std::string::npos);
  setenv("SORL_CPU_ISA", "", 1);
  CHECK(sorl::choose_isa(Precision::bf16, nullptr, isa, error));
  unsetenv("SORL_CPU_ISA");
}

}  // namespace

// The number of calls of the allocation and fault test, for each instruction set: a round if not given. And
// the one instruction set to test: all of the machine's if not given.
int main(int argc, char** argv) {
  const long calls = argc > 1 ? std::atol(argv[1]) : Loop::kRound;
  least = std::min(least, calls);
  const std::string only = argc > 2 ? argv[2] : "";
  Spec small;
  small.obs_dim = 4;
  small.act_dim = 2;
  small.hidden = 16;
  Spec wide = small;
  wide.act_dim = 5;
  wide.hidden = 160;
  wide.depth = 3;
  wide.normaliser = false;
  wide.ood = sorl_test::kOod;
  const Policy small_policy(small), wide_policy(wide);
  std::vector<Policy> formed;
  for (const std::string& form : {sorl_test::kDirect, sorl_test::kTanh, sorl_test::kDiffusion, sorl_test::kEuler}) {
    Spec spec = small;
    spec.form = form;
    spec.map = "{\"low\":[-2.5,-2.5],\"high\":[0.7,0.7]}";
    spec.chunk = "2";
    spec.ood = sorl_test::kOod;
    formed.emplace_back(spec);
  }
  test_the_counters();
  test_choice();
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::int8}) {
    for (const Isa isa : sorl::available_isas(precision)) {
      if (!only.empty() && only != name(isa)) continue;
      test_allocations_and_faults(small_policy, precision, isa, calls);
      test_no_system_call(small_policy, precision, isa);
      test_one_wake_at_most(small_policy, precision, isa);
      for (const Policy& policy : formed) {
        test_allocations_and_faults(policy, precision, isa, calls / 4);
        test_no_system_call(policy, precision, isa);
      }
      for (const Policy* policy : {&small_policy, &wide_policy}) {
        test_floating_point_mode(*policy, precision, isa);
        test_threads_and_forks(*policy, precision, isa);
        test_batches(*policy, precision, isa);
        test_bad_numbers(*policy, precision, isa);
        test_refusals(*policy, precision, isa);
      }
      std::printf("%s %s: passed\n", name(isa), name(precision));
    }
  }
  std::printf("memory was %slocked, system calls were %swatched, allocations were %scounted\n",
              memory_locked ? "" : "not ", calls_watched ? "" : "not ", kCounts ? "" : "not ");
}
