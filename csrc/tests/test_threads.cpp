// One policy, many threads, a session each; some make sessions while others act. For the thread
// sanitizer, and for equal bits whatever runs beside.
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "make_policy.hpp"
#include "sorl_fast/sorl.hpp"

namespace {

constexpr int kThreads = 4;
constexpr int kSessions = 3;
constexpr int kCalls = 20;
constexpr int kRows = 5;
constexpr int kObs = 4;
constexpr int kAct = 3;

std::vector<float> run(const sorl_fast::Policy& policy, int threads, std::int32_t precision) {
  std::vector<float> actions;
  for (int s = 0; s < kSessions; ++s) {
    sorl_fast::Options options;
    options.threads = threads;
    options.precision = precision;
    options.max_rows = kRows;
    options.max_candidates = 4;
    const sorl_fast::Session session(policy, options);
    for (int call = 0; call < kCalls; ++call) {
      std::vector<float> obs(kRows * kObs, 0.1f * static_cast<float>(call));
      std::vector<float> out(kRows * kAct);
      const int rows = call % 2 == 0 ? 1 : kRows;
      CHECK(sorl_act(session.get(), obs.data(), rows, 4, 1 + call % 4, 9, static_cast<std::uint32_t>(call),
                     0, nullptr, out.data(), nullptr, nullptr, nullptr) >= 0);
      actions.insert(actions.end(), out.begin(), out.end());
    }
  }
  return actions;
}

}  // namespace

int main() {
  const std::string bytes = sorl_test::make_policy({kObs, kAct, 96, 2, 2, 8, false, true});
  const sorl_fast::Policy policy(bytes.data(), bytes.size());
  for (const std::int32_t precision : {SORL_PRECISION_FP32, SORL_PRECISION_BF16, SORL_PRECISION_INT8}) {
    const std::vector<float> alone = run(policy, 1, precision);
    std::vector<std::vector<float>> results(kThreads);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&results, &policy, precision, t] {
        results[static_cast<std::size_t>(t)] = run(policy, 1 + t % 2, precision);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::vector<float>& result : results) {
      CHECK(result.size() == alone.size());
      CHECK(std::memcmp(result.data(), alone.data(), sizeof(float) * alone.size()) == 0);
    }
  }
  std::puts("threads: all passed");
}
