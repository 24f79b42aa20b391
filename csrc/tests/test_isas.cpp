// Every instruction set that this machine has, in every precision, against a plain float64 sampler:
// odd and tiny shapes and the paper's, all step counts, with caller's noise and with the seed's. Runs under qemu too.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "../kernels.hpp"
#include "../policy_file.hpp"
#include "check.hpp"
#include "make_policy.hpp"
#include "sorl_fast/sorl.hpp"

namespace {

using sorl_test::Spec;
using Vector = std::vector<double>;

constexpr const char* kPrecisions[] = {"fp32", "bf16", "int8"};
// Absolute, on actions and on Q. But for fp32 these are sanity bounds for untrained weights; those that users are
// told are measured on a trained policy.
constexpr double kBounds[] = {1e-5, 0.1, 0.1};

std::size_t size(int n) { return static_cast<std::size_t>(n); }

Vector linear(const sorl::LayerView& layer, int e, const Vector& x) {
  const std::size_t in = size(layer.in);
  const std::size_t out = size(layer.out);
  const float* const w = layer.w + size(e) * in * out;
  Vector y(layer.b + size(e) * out, layer.b + size(e + 1) * out);
  for (std::size_t i = 0; i < in; ++i) {
    for (std::size_t o = 0; o < out; ++o) y[o] += x[i] * static_cast<double>(w[i * out + o]);
  }
  return y;
}

void gelu(Vector& x) {
  for (double& v : x) v = 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
}

void layer_norm(const sorl::LayerView& layer, int e, Vector& x) {
  double mean = 0;
  double variance = 0;
  for (const double v : x) mean += v / static_cast<double>(x.size());
  for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
  const std::size_t start = size(e) * x.size();
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = (x[i] - mean) / std::sqrt(variance + 1e-6) * static_cast<double>(layer.g[start + i]) +
           static_cast<double>(layer.c[start + i]);
  }
}

Vector normalised(const sorl::PolicyView& p, const float* obs) {
  Vector x(obs, obs + p.obs_dim);
  for (std::size_t o = 0; p.obs_mean != nullptr && o < x.size(); ++o) {
    x[o] = (x[o] - static_cast<double>(p.obs_mean[o])) / static_cast<double>(p.obs_std[o]);
  }
  return x;
}

Vector rollout(const sorl::PolicyView& p, const Vector& x, const float* noise, int steps) {
  Vector z(noise, noise + p.act_dim);
  for (int i = 0; i < steps; ++i) {
    Vector h = x;
    h.insert(h.end(), z.begin(), z.end());
    h.push_back(static_cast<double>(i) / steps);
    h.push_back(std::log2(steps));
    for (int layer = 0; layer <= p.depth; ++layer) {
      h = linear(p.actor[layer], 0, h);
      if (layer < p.depth) gelu(h);
    }
    for (std::size_t a = 0; a < z.size(); ++a) z[a] += h[a] / steps;
  }
  for (std::size_t a = 0; a < z.size(); ++a) {
    z[a] = std::min(std::max(z[a], static_cast<double>(p.action_low[a])), static_cast<double>(p.action_high[a]));
  }
  return z;
}

double value(const sorl::PolicyView& p, const Vector& x, const Vector& action, int steps) {
  double mean = 0;
  double least = INFINITY;
  for (int e = 0; e < p.ensemble; ++e) {
    Vector h = x;
    h.insert(h.end(), action.begin(), action.end());
    h.push_back(steps);
    for (int layer = 0; layer <= p.depth; ++layer) {
      h = linear(p.critic[layer], e, h);
      if (layer == p.depth) break;
      gelu(h);
      layer_norm(p.critic[layer], e, h);
    }
    mean += h[0] / p.ensemble;
    least = std::min(least, h[0]);
  }
  return p.q_min ? least : mean;
}

struct Case {
  int rows, steps, candidates;
};

struct Result {
  std::vector<float> actions;
  std::vector<std::int32_t> candidate;
  std::vector<float> q;
};

Result act(sorl_session* session, const sorl::PolicyView& p, const Case& c, const std::vector<float>& obs,
           const float* noise) {
  Result r{std::vector<float>(size(c.rows * p.act_dim), NAN), std::vector<std::int32_t>(size(c.rows), -1),
           std::vector<float>(size(c.rows), NAN)};
  std::vector<std::uint32_t> status(size(c.rows), ~0u);
  const std::int32_t code =
      sorl_act(session, obs.data(), c.rows, c.steps, c.candidates, 77, 3, 5, noise, r.actions.data(),
               r.candidate.data(), r.q.data(), status.data());
  CHECK(code == SORL_OK || code == SORL_STATUS_CLIPPED);
  return r;
}

// What float64 makes of a case, for every candidate of every row.
struct Truth {
  std::vector<Vector> actions;
  Vector q;
};

Truth truth(const sorl::PolicyView& p, const Case& c, const std::vector<float>& obs, const std::vector<float>& noise) {
  Truth all;
  for (int row = 0; row < c.rows; ++row) {
    const Vector x = normalised(p, obs.data() + row * p.obs_dim);
    for (int n = 0; n < c.candidates; ++n) {
      all.actions.push_back(rollout(p, x, noise.data() + (row * c.candidates + n) * p.act_dim, c.steps));
      all.q.push_back(value(p, x, all.actions.back(), c.steps));
    }
  }
  return all;
}

// How far a result lies from it.
double error(const sorl::PolicyView& p, const Case& c, const Truth& expected, const Result& r) {
  double worst = 0;
  for (int row = 0; row < c.rows; ++row) {
    const std::int32_t chosen = r.candidate[size(row)];
    CHECK(chosen >= 0 && chosen < c.candidates);
    const std::size_t winner = size(row * c.candidates + chosen);
    const Vector& action = expected.actions[winner];
    for (std::size_t a = 0; a < action.size(); ++a) {
      worst = std::max(worst, std::fabs(static_cast<double>(r.actions[size(row * p.act_dim) + a]) - action[a]));
    }
    const double q = static_cast<double>(r.q[size(row)]);
    worst = std::max(worst, std::fabs(q - expected.q[winner]) / std::max(1.0, std::fabs(expected.q[winner])));
    // a near tie may pick another candidate, but none whose Q is visibly worse
    const auto first = expected.q.begin() + row * c.candidates;
    const double best = *std::max_element(first, first + c.candidates);
    worst = std::max(worst, (best - q) / std::max(1.0, std::fabs(best)));
  }
  return worst;
}

// The same Philox on every instruction set: tests/act/test_philox.py has these numbers too.
void known_noise(const sorl::Kernels& kernels) {
  const struct {
    std::uint64_t seed;
    std::uint32_t call, row;
    int candidate, component;
    double normal;
  } known[] = {{0, 0, 0, 0, 0, 0.991137505},
               {0, 0, 0, 0, 3, -0.48206836},
               {1, 0, 0, 0, 4, 0.626947641},
               {0x2A, 7, 3, 2, 1, 0.17040205},
               {0xFFFFFFFFFFFFFFFF, 4294967295, 4294967295, 63, 6, -1.45611441},
               {0x123456789ABCDEF, 1000, 255, 7, 20, 1.69432044}};
  for (const auto& k : known) {
    std::vector<float> z(size(k.component) + 1);
    kernels.normals(k.seed, k.call, k.row, k.candidate + 1, k.component + 1, k.candidate, 1, 0, z.data());
    CHECK(std::fabs(static_cast<double>(z.back()) - k.normal) <= 5e-7);
  }
}

// tanh, in place over whole panels: to 3e-7, and of what is not finite nothing finite.
void tanh_is_close(const sorl::Kernels& kernels) {
  const int n = 4096 * kernels.panel;
  std::vector<float> x(size(n));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double u = 2 * static_cast<double>(i) / static_cast<double>(x.size() - 1) - 1;  // dense at 0, to +-2000
    x[i] = static_cast<float>(std::copysign(std::pow(std::fabs(u), 5), u) * 2000);
  }
  const float odd[] = {0.0f, -0.0f, 1e-41f, 3.4e38f, -3.4e38f};
  std::copy(std::begin(odd), std::end(odd), x.begin());
  std::vector<float> y = x;
  kernels.tanh(y.data(), n);
  for (std::size_t i = 0; i < x.size(); ++i)
    CHECK(std::fabs(static_cast<double>(y[i]) - std::tanh(static_cast<double>(x[i]))) <= 3e-7);
  const float bad[] = {INFINITY, -INFINITY, NAN};
  std::copy(std::begin(bad), std::end(bad), x.begin());
  kernels.tanh(x.data(), kernels.panel);
  for (std::size_t i = 0; i < size(kernels.panel); ++i) CHECK((i < 3) == !std::isfinite(x[i]));
}

}  // namespace

int main() {
  std::vector<Spec> specs = {
      {1, 1, 1, 1, 1, 1, false, false}, {3, 2, 5, 2, 2, 8, true, true},   {28, 5, 64, 4, 2, 8, false, true},
      {69, 21, 48, 2, 3, 4, true, false}, {7, 4, 33, 3, 2, 2, false, true}, {2, 17, 31, 1, 4, 16, true, true}};
  const std::vector<Case> cases = {{1, 1, 1}, {1, 8, 1}, {1, 4, 8}, {1, 2, 33}, {3, 2, 3}, {37, 1, 2}, {130, 2, 1}};
  const Spec papers{28, 5, 512, 4, 2, 8, false, false};
  const std::vector<Case> of_papers = {{1, 8, 1}, {1, 2, 8}, {1, 1, 64}, {40, 1, 1}};
  for (const int precision : {SORL_PRECISION_FP32, SORL_PRECISION_BF16, SORL_PRECISION_INT8}) {
    const auto p = static_cast<sorl::Precision>(precision);
    for (const sorl::Isa isa : sorl::available_isas(p)) {
      known_noise(*sorl::find_kernels(isa, p));
      tanh_is_close(*sorl::find_kernels(isa, p));
    }
  }
  double worst[3] = {0, 0, 0};
  std::string ran;
  specs.push_back(papers);
  for (const Spec& spec : specs) {
    const std::string bytes = sorl_test::make_policy(spec);
    const auto file = sorl::PolicyFile::parse(bytes.data(), bytes.size(), "test").policy;
    const sorl::PolicyView view = file->view();
    const sorl_fast::Policy policy(bytes.data(), bytes.size());
    for (const Case& c : spec.hidden == papers.hidden ? of_papers : cases) {
      if (c.steps > spec.m_disc) continue;
      std::vector<float> obs(size(c.rows * spec.obs_dim));
      for (std::size_t i = 0; i < obs.size(); ++i) obs[i] = std::sin(0.7f * static_cast<float>(i));
      std::vector<float> noise(size(c.rows * c.candidates * spec.act_dim));
      for (std::size_t i = 0; i < noise.size(); ++i) noise[i] = 2 * std::sin(1.3f * static_cast<float>(i) + 1);
      const Truth expected = truth(view, c, obs, noise);
      Result seeded[3];
      for (const sorl::Isa each : sorl::kIsas) {
        const char* const isa = sorl::name(each);
        for (const int precision : {SORL_PRECISION_FP32, SORL_PRECISION_BF16, SORL_PRECISION_INT8}) {
          sorl_fast::Options options;
          options.isa = isa;
          options.precision = precision;
          options.max_rows = c.rows;
          options.max_candidates = c.candidates;
          sorl_session* made = nullptr;
          const std::int32_t code = sorl_session_create(policy.get(), &options, &made, nullptr, 0);
          if (code == SORL_ERROR_ISA) continue;
          CHECK(code == SORL_OK && std::strcmp(sorl_isa_name(made), isa) == 0);
          const std::string name = std::string(" ") + isa + "/" + kPrecisions[precision];
          if (ran.find(name) == std::string::npos) ran += name;
          const double bound = kBounds[precision];
          const Result result = act(made, view, c, obs, noise.data());
          const double off = error(view, c, expected, result);
          worst[precision] = std::max(worst[precision], off);
          if (!(off <= bound)) {
            std::fprintf(stderr, "%s: O %d A %d H %d D %d E %d, B %d M %d N %d: off by %g\n", name.c_str(),
                         spec.obs_dim, spec.act_dim, spec.hidden, spec.depth, spec.ensemble, c.rows, c.steps,
                         c.candidates, off);
          }
          CHECK(off <= bound);
          // the seed's noise is the same on every instruction set
          const Result drawn = act(made, view, c, obs, nullptr);
          Result& first = seeded[precision];
          if (first.actions.empty()) first = drawn;
          for (std::size_t i = 0; i < drawn.actions.size(); ++i) {
            const std::size_t row = i / size(spec.act_dim);
            if (drawn.candidate[row] != first.candidate[row]) continue;
            CHECK(std::fabs(static_cast<double>(drawn.actions[i]) - static_cast<double>(first.actions[i])) <= 2 * bound);
          }
          sorl_session_free(made);
        }
      }
    }
  }
  for (const char* precision : kPrecisions) CHECK(ran.find(std::string("scalar/") + precision) != std::string::npos);
  std::printf("instruction sets:%s: all passed; largest error %.2g fp32, %.2g bf16, %.2g int8\n", ran.c_str(), worst[0],
              worst[1], worst[2]);
}
