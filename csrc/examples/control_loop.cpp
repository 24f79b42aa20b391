// A 1 kHz control loop, with a deadline: how long an action takes, and how late the loop wakes up.
//
//   control_loop POLICY [--hz 1000] [--seconds 10] [--steps 8] [--candidates 1] [--precision fp32] [--threads 1]
//
// Prints p50, p99, p99.9 and the maximum, in microseconds, of the action's latency (the time inside
// sorl_act) and of the wake-up's delay, and how many periods had no action before their end. For the
// figures that a robot would see: a real-time kernel or an isolated core, and the right to lock memory
// and to use SCHED_FIFO; without those rights it says so and goes on.
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <sorl_fast/sorl.hpp>

namespace {

constexpr const char* kPrecisions[] = {"fp32", "bf16", "int8"};  // SORL_PRECISION_FP32 and so on

struct Arguments {
  std::string policy;
  int hz = 1000;
  int seconds = 10;
  int steps = 0;  // 0: the policy's most
  int candidates = 1;
  int threads = 1;
  int precision = SORL_PRECISION_FP32;
};

[[noreturn]] void usage() {
  std::fprintf(stderr,
               "usage: control_loop POLICY [--hz N] [--seconds N] [--steps M] [--candidates N] "
               "[--threads N] [--precision fp32|bf16|int8]\n");
  std::exit(2);
}

int precision_named(const std::string& name) {
  for (int p = 0; p < 3; ++p)
    if (name == kPrecisions[p]) return p;
  usage();
}

Arguments parse(int argc, char** argv) {
  Arguments given;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    int* const number = flag == "--hz"           ? &given.hz
                        : flag == "--seconds"    ? &given.seconds
                        : flag == "--steps"      ? &given.steps
                        : flag == "--candidates" ? &given.candidates
                        : flag == "--threads"    ? &given.threads
                                                 : nullptr;
    if (number != nullptr && i + 1 < argc) {
      *number = std::atoi(argv[++i]);
      if (*number < 1) usage();
    } else if (flag == "--precision" && i + 1 < argc) {
      given.precision = precision_named(argv[++i]);
    } else if (given.policy.empty() && flag[0] != '-') {
      given.policy = flag;
    } else {
      usage();
    }
  }
  if (given.policy.empty()) usage();
  return given;
}

std::int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

void sleep_until(std::int64_t ns) {
  const timespec time{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR) {
  }
}

void real_time() {
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
    std::printf("memory is not locked (%s): page faults may occur\n", std::strerror(errno));
  }
  sched_param priority{};
  priority.sched_priority = 50;
  if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0) {
    std::printf("SCHED_FIFO is not allowed (%s): other programs may delay the loop\n",
                std::strerror(errno));
  }
}

void report(const char* what, std::vector<std::int64_t>& ns) {
  std::sort(ns.begin(), ns.end());
  const auto quantile = [&ns](double q) {
    const auto last = static_cast<double>(ns.size() - 1);
    return static_cast<double>(ns[static_cast<std::size_t>(std::ceil(q * last))]) / 1000;
  };
  std::printf("%-8s p50 %9.1f  p99 %9.1f  p99.9 %9.1f  max %9.1f us\n", what, quantile(0.5),
              quantile(0.99), quantile(0.999), quantile(1));
}

int run(const Arguments& given) {
  const sorl_fast::Policy policy(given.policy);
  sorl_fast::Options options;
  options.precision = given.precision;
  options.threads = given.threads;
  options.max_candidates = given.candidates;
  real_time();  // before the session: its workers inherit the scheduling class
  sorl_fast::Session session(policy, options);
  const int steps = given.steps != 0 ? given.steps : policy.max_steps();
  std::vector<float> observation(static_cast<std::size_t>(policy.obs_dim()));
  std::vector<float> action(static_cast<std::size_t>(policy.act_dim()));

  const std::int64_t period = 1'000'000'000 / given.hz;
  const auto count = static_cast<std::size_t>(given.hz) * static_cast<std::size_t>(given.seconds);
  std::vector<std::int64_t> latency(count);
  std::vector<std::int64_t> delay(count);
  std::size_t missed = 0;
  std::size_t actions = 0;
  std::uint32_t call = 0;
  std::int32_t status = 0;

  for (int i = 0; i < 100; ++i) {  // warm-up
    status = session.act(observation.data(), action.data(), steps, given.candidates, 0, call++);
    if (status < 0) throw sorl_fast::Error(status, sorl_error_name(status));
  }
  std::int64_t wake = now_ns() + period;
  for (std::size_t i = 0; i < count; ++i) {
    sleep_until(wake);
    const std::int64_t start = now_ns();
    for (std::size_t o = 0; o < observation.size(); ++o) {  // a robot's sensors would be read here
      observation[o] = std::sin(static_cast<float>(i) * 0.01f + static_cast<float>(o));
    }
    const std::int64_t before = now_ns();
    status |= session.act(observation.data(), action.data(), steps, given.candidates, 0, call++);
    const std::int64_t end = now_ns();  // and its motors would be driven here
    delay[actions] = start - wake;
    latency[actions++] = end - before;
    wake += period;
    if (end > wake) ++missed;
    for (; wake < end && i + 1 < count; ++i, wake += period) ++missed;  // begun by now: lost, not caught up
  }
  latency.resize(actions);
  delay.resize(actions);
  std::printf("%s, %s, M = %d, N = %d, %d thread(s), %d Hz for %d s\n", session.isa(),
              kPrecisions[given.precision], steps, given.candidates, given.threads, given.hz,
              given.seconds);
  report("latency", latency);
  report("wake-up", delay);
  std::printf("missed %zu of %zu deadlines; status bits seen: %d\n", missed, count, status);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const sorl_fast::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
