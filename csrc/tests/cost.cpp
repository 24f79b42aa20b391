// Makes `calls` calls with one instruction set and precision, for a tool that counts instructions:
//   cost ISA PRECISION CALLS
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../engine.hpp"
#include "../policy_file.hpp"
#include "check.hpp"
#include "make_policy.hpp"

int main(int argc, char** argv) {
  CHECK(argc == 4);
  auto precision = sorl::Precision::fp32;
  for (const auto p : {sorl::Precision::bf16, sorl::Precision::int8})
    if (std::strcmp(argv[2], sorl::name(p)) == 0) precision = p;
  sorl_test::Spec spec;
  spec.obs_dim = 28;
  spec.act_dim = 5;
  spec.hidden = 64;
  spec.depth = 4;
  const std::string bytes = sorl_test::make_policy(spec);
  const auto file = sorl::PolicyFile::parse(bytes.data(), bytes.size(), "cost").policy;
  std::string error;
  sorl::Isa isa;
  CHECK(sorl::choose_isa(precision, argv[1], isa, error));
  const auto model = sorl::Model::make(file->view(), precision, isa, error);
  const auto engine = sorl::Engine::make(model, 1, 4, 8, error);
  CHECK(engine != nullptr);
  std::vector<float> obs(4 * 28), actions(4 * 5);
  for (std::size_t i = 0; i < obs.size(); ++i) obs[i] = std::sin(static_cast<float>(i));
  const long calls = std::atol(argv[3]);
  for (long i = 0; i < calls; ++i) {
    for (const int candidates : {1, 8}) {
      CHECK(engine->act(obs.data(), nullptr, candidates == 1 ? 1 : 4, 4, candidates, 1, 0, 0, actions.data(), nullptr,
                        nullptr, nullptr) == 0);
    }
  }
}
