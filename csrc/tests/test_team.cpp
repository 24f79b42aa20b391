// The threads of a session: each does its part once a run, all meet at a barrier, and none shares its
// caller's core, whether it was parked or spinning, and after the caller has moved.
#include "../team.hpp"

#include <sched.h>

#include <chrono>
#include <thread>

#include "check.hpp"

namespace {

using sorl::Team;

struct Job {
  Team& team;
  std::atomic<int> calls[3] = {};
  std::atomic<int> arrived{0};
  int cores[3] = {};
};

void work(void* context, int thread) noexcept {
  Job& job = *static_cast<Job*>(context);
  job.calls[thread].fetch_add(1);
  job.arrived.fetch_add(1);
  job.team.barrier();
  CHECK(job.arrived.load() % job.team.size() == 0);
  job.team.barrier();
  job.cores[thread] = sched_getcpu();
}

void test_every_thread_works_once() {
  for (const int size : {1, 2, 3}) {
    Team team(size);
    Job job{team};
    for (int run = 1; run <= 50; ++run) {
      if (run % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // they park
      team.run(work, &job);
      for (int t = 0; t < 3; ++t) CHECK(job.calls[t].load() == (t < size ? run : 0));
    }
  }
}

void test_workers_leave_the_callers_core() {
  cpu_set_t all;
  CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
  if (CPU_COUNT(&all) < 2) return;
  Team team(2);
  Job job{team};
  team.run(work, &job);  // by now the worker has begun
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &all)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    for (const int pause : {0, 0, 2}) {
      std::this_thread::sleep_for(std::chrono::milliseconds(pause));
      team.run(work, &job);
      CHECK(job.cores[0] == core);
      CHECK(job.cores[1] != core && CPU_ISSET(job.cores[1], &all));
    }
  }
  CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
}

// A mask that somebody else gave a worker is left alone.
void test_a_users_mask_stays() {
  cpu_set_t all, one;
  CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
  if (CPU_COUNT(&all) < 2) return;
  int core = 0;
  while (!CPU_ISSET(core, &all)) ++core;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  Team team(2);
  struct Pin {
    Team& team;
    const cpu_set_t& mask;
    int runs = 0;
    bool kept = false;
  } pin{team, one};
  const auto pin_worker = [](void* context, int thread) noexcept {
    Pin& p = *static_cast<Pin*>(context);
    if (thread == 0) return;
    cpu_set_t now;
    if (p.runs++ == 0) sched_setaffinity(0, sizeof p.mask, &p.mask);
    p.kept = sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &p.mask);
  };
  for (int caller = 0; caller < CPU_SETSIZE; ++caller) {
    if (!CPU_ISSET(caller, &all)) continue;
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(caller, &here);
    CHECK(sched_setaffinity(0, sizeof here, &here) == 0);
    team.run(pin_worker, &pin);
    CHECK(pin.kept);
  }
  CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
}

}  // namespace

int main() {
  test_every_thread_works_once();
  test_workers_leave_the_callers_core();
  test_a_users_mask_stays();
  std::puts("team: all passed");
}
