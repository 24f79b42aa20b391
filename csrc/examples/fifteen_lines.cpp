// The README's embedding: fifteen lines from a policy file to an action.
#include <sorl_fast/sorl.hpp>

#include <cstdio>
#include <vector>

int main(int, char** argv) try {
  const sorl_fast::Policy policy(argv[1]);
  sorl_fast::Session session(policy);  // 1 thread, float32, the fastest instruction set
  const std::vector<float> observation(static_cast<std::size_t>(policy.obs_dim()));
  std::vector<float> action(static_cast<std::size_t>(policy.act_dim()));
  const int status = session.act(observation.data(), action.data(), policy.max_steps(),
                                 /*candidates=*/1, /*seed=*/0, /*call=*/0);  // a loop counts its calls
  for (const float a : action) std::printf("%.9g ", static_cast<double>(a));
  std::printf("(status %d, on %s)\n", status, session.isa());
} catch (const sorl_fast::Error& error) { return std::fprintf(stderr, "%s\n", error.what()), 1; }
