// A loop at 1 kHz with a policy that is called at 100 Hz: each call returns a chunk of actions, replayed one a tick.
//
//   chunk_loop POLICY [TICKS [HZ]]          3000 ticks of 1000 Hz if not given
//
// How often the policy is called follows from its file: every h ticks, h the actions of its chunk (10 for 100 Hz at
// 1 kHz). Prints how long the ticks with a call and those that replay took at the median and at most, in
// microseconds, and how many periods ended before their action was there. See control_loop.cpp for locking memory,
// SCHED_FIFO and what else a robot's loop needs.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <sorl_fast/sorl.hpp>

namespace {

std::int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

void sleep_until(std::int64_t ns) {
  const timespec time{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) != 0) {
  }
}

void report(const char* what, std::vector<std::int64_t>& ns) {
  std::sort(ns.begin(), ns.end());
  if (ns.empty()) return;
  std::printf("%-8s %6zu ticks  p50 %9.2f  max %9.2f us\n", what, ns.size(),
              static_cast<double>(ns[ns.size() / 2]) / 1000, static_cast<double>(ns.back()) / 1000);
}

int run(const char* path, int ticks, int hz) {
  const sorl_fast::Policy policy(path);
  sorl_fast::Session session(policy);
  const std::int32_t chunk = policy.chunk();
  std::vector<float> observation(static_cast<std::size_t>(policy.obs_dim()));
  std::vector<float> action(static_cast<std::size_t>(policy.act_dim() / chunk));
  std::vector<std::int64_t> calls, replays;
  calls.reserve(static_cast<std::size_t>(ticks));
  replays.reserve(static_cast<std::size_t>(ticks));
  int missed = 0, held = 0;

  const std::int32_t warm_up = session.replay(observation.data(), action.data(), 0, 0);
  if (warm_up < 0) throw sorl_fast::Error(warm_up, sorl_error_name(warm_up));
  session.reset();
  const std::int64_t period = 1'000'000'000 / hz;
  std::int64_t wake = now_ns();
  for (int tick = 0; tick < ticks; ++tick) {
    sleep_until(wake += period);
    for (std::size_t o = 0; o < observation.size(); ++o)  // a robot's sensors would be read here
      observation[o] = std::sin(static_cast<float>(tick) * 0.01f + static_cast<float>(o));
    const std::int64_t before = now_ns();
    const std::int32_t status =
        session.replay(observation.data(), action.data(), 0, static_cast<std::uint32_t>(tick));
    const std::int64_t end = now_ns();  // and its motors driven here
    if (status < 0) throw sorl_fast::Error(status, sorl_error_name(status));
    ((status & SORL_STATUS_REPLAYED) != 0 ? replays : calls).push_back(end - before);
    if ((status & SORL_STATUS_HELD) != 0) ++held;
    if (end > wake + period) {
      ++missed;
      wake = end;  // lost, not caught up
    }
  }
  std::printf("%s: chunks of %d actions of %zu numbers, %d Hz: %d calls a second\n", session.isa(), chunk,
              action.size(), hz, hz / chunk);
  report("calls", calls);
  report("replays", replays);
  std::printf("missed %d of %d periods; held %d actions\n", missed, ticks, held);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const int ticks = argc > 2 ? std::atoi(argv[2]) : 3000;
  const int hz = argc > 3 ? std::atoi(argv[3]) : 1000;
  if (argc < 2 || argc > 4 || ticks < 1 || hz < 1) {
    std::fprintf(stderr, "usage: chunk_loop POLICY [TICKS [HZ]]\n");
    return 2;
  }
  try {
    return run(argv[1], ticks, hz);
  } catch (const sorl_fast::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
