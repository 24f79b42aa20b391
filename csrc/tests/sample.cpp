// Samples from a policy through the C++ classes and writes the raw floats to standard output: for the
// test that compares an embedded library with Python. Built outside the tree, against an installed one.
//
//   sample POLICY OBS ROWS STEPS CANDIDATES SEED THREADS PRECISION     (OBS: a file of raw floats)
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <sorl_fast/sorl.hpp>

constexpr const char* kPrecisions[] = {"fp32", "bf16", "int8"};  // SORL_PRECISION_FP32 and so on

int main(int argc, char** argv) {
  if (argc != 9) return 2;
  try {
    const sorl_fast::Policy policy(argv[1]);
    sorl_fast::Options options;
    options.max_rows = std::atoi(argv[3]);
    options.max_candidates = std::atoi(argv[5]);
    options.threads = std::atoi(argv[7]);
    for (int p = 0; p < 3; ++p)
      if (std::strcmp(argv[8], kPrecisions[p]) == 0) options.precision = p;
    sorl_fast::Session session(policy, options);
    const auto rows = static_cast<std::size_t>(options.max_rows);
    std::vector<float> obs(rows * static_cast<std::size_t>(policy.obs_dim()));
    std::vector<float> actions(rows * static_cast<std::size_t>(policy.act_dim()));
    std::FILE* const file = std::fopen(argv[2], "rb");
    if (file == nullptr || std::fread(obs.data(), sizeof(float), obs.size(), file) != obs.size()) return 2;
    std::fclose(file);
    const std::int32_t code =
        sorl_act(session.get(), obs.data(), options.max_rows, std::atoi(argv[4]), options.max_candidates,
                 std::strtoull(argv[6], nullptr, 10), 0, 0, nullptr, actions.data(), nullptr, nullptr, nullptr);
    std::fprintf(stderr, "%d %s\n", code, session.isa());
    std::fwrite(actions.data(), sizeof(float), actions.size(), stdout);
    return code < 0 ? 1 : 0;
  } catch (const sorl_fast::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
