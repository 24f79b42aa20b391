// The training operations of every instruction set that this machine has against float64: forward, and gradients
// against differences of it. tests/ops/test_native.py does that from Python, in more shapes; this also runs where there
// is no Python, on emulated tiles (ci/amx.sh).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../pages.hpp"
#include "../train/train.hpp"
#include "check.hpp"

namespace {

using sorl::Pages;
using sorl::Team;
using namespace sorl::train;

std::size_t size(int n) { return static_cast<std::size_t>(n); }

// The next of a sequence, in [-1, 1); each instruction set begins it anew, and so has the same problems.
std::uint64_t state = 1;
float draw() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<double>(state >> 11) * 0x1p-52 - 1);
}

std::vector<float> drawn(std::size_t n, float scale, float centre = 0) {
  std::vector<float> x(n);
  for (float& each : x) each = centre + scale * draw();
  return x;
}

struct Problem {
  Shape shape;
  int rows, steps;
  bool rollout;
  std::vector<std::vector<float>> parameters;  // w, b and, with a LayerNorm, g, c of each layer
  std::vector<float> obs, act, t, weights;     // weights: the gradient of `out`
  float second = 3;                            // the second extra column

  Problem(const Shape& s, int rows_, int steps_, bool rollout_)
      : shape(s), rows(rows_), steps(steps_), rollout(rollout_), obs(drawn(size(rows_ * s.obs), 1)),
        act(drawn(size(rows_ * s.act), 0.7f)), t(drawn(size(rows_), 0.5f, 0.5f)), weights(drawn(outputs(), 1)) {
    for (int l = 0; l <= s.depth; ++l) {
      const std::size_t in = size(s.members * s.in(l)), out = size(s.members * s.width(l));
      const float scale = (l == s.depth ? 0.5f : 1.5f) / std::sqrt(static_cast<float>(s.in(l)));
      parameters.push_back(drawn(in * size(s.width(l)), scale));
      parameters.push_back(drawn(out, 0.1f));
      if (!s.norm || l == s.depth) continue;
      parameters.push_back(drawn(out, 0.2f, 1));
      parameters.push_back(drawn(out, 0.2f));
    }
  }
  std::size_t outputs() const { return size(rollout ? rows * shape.act : shape.members * rows * shape.out); }

  // The network's output of a row, of member e.
  std::vector<double> network(int e, int row, const std::vector<double>& action, double first) const {
    std::vector<double> x(obs.begin() + row * shape.obs, obs.begin() + (row + 1) * shape.obs);
    x.insert(x.end(), action.begin(), action.end());
    x.push_back(first);
    if (shape.extra > 1) x.push_back(static_cast<double>(second));
    std::size_t next = 0;
    for (int l = 0; l <= shape.depth; ++l) {
      const std::size_t in = size(shape.in(l)), out = size(shape.width(l)), own = size(e) * out;
      const std::vector<float>&w = parameters[next++], &b = parameters[next++];
      std::vector<double> y(b.begin() + static_cast<long>(own), b.begin() + static_cast<long>(own + out));
      for (std::size_t i = 0; i < in; ++i)
        for (std::size_t o = 0; o < out; ++o) y[o] += x[i] * static_cast<double>(w[(size(e) * in + i) * out + o]);
      if (l < shape.depth) {
        for (double& v : y) v = 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
        if (shape.norm) {
          const std::vector<float>&g = parameters[next++], &c = parameters[next++];
          double mean = 0, variance = 0;
          for (const double v : y) mean += v / static_cast<double>(out);
          for (const double v : y) variance += (v - mean) * (v - mean) / static_cast<double>(out);
          for (std::size_t o = 0; o < out; ++o)
            y[o] = (y[o] - mean) / std::sqrt(variance + 1e-6) * static_cast<double>(g[own + o]) + static_cast<double>(c[own + o]);
        }
      }
      x = y;
    }
    return x;
  }

  std::vector<double> expected() const {
    std::vector<double> all;
    for (int e = 0; e < shape.members; ++e)
      for (int row = 0; row < rows; ++row) {
        std::vector<double> z(act.begin() + row * shape.act, act.begin() + (row + 1) * shape.act);
        if (!rollout) {
          z = network(e, row, z, static_cast<double>(t[size(row)]));
        } else {
          for (int i = 0; i < steps; ++i) {
            const std::vector<double> v = network(e, row, z, static_cast<double>(static_cast<float>(i) / static_cast<float>(steps)));
            for (std::size_t a = 0; a < z.size(); ++a) z[a] += v[a] / steps;
          }
          for (double& each : z) each = std::min(std::max(each, -1.0), 1.0);
        }
        all.insert(all.end(), z.begin(), z.end());
      }
    return all;
  }
  double loss() const {
    const std::vector<double> out = expected();
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * static_cast<double>(weights[i]);
    return sum;
  }
  // Of the loss by a number that it reads.
  double slope(float& at) {
    const float here = at;
    at = here + 0x1p-10f;
    const double up = loss(), above = static_cast<double>(at);
    at = here - 0x1p-10f;
    const double down = loss(), below = static_cast<double>(at);
    at = here;
    return (up - down) / (above - below);
  }
};

double worst_out = 0, worst_gradient = 0;

void check(const char* what, double got, double expected, double scale, double bound, double& worst) {
  const double error = std::fabs(got - expected) / scale;
  worst = std::max(worst, error);
  if (error <= bound) return;
  std::fprintf(stderr, "%s: %.9g, not %.9g +- %.2g\n", what, got, expected, bound * scale);
  std::exit(1);
}

void agrees(const Ops& ops, Problem p, int threads) {
  const Shape& s = p.shape;
  const bool exact = ops.precision == sorl::Precision::fp32;
  Team team(threads);
  Net net{};
  Pages forward(ops.forward_bytes(s)), backward(ops.backward_bytes(s)), bias(ops.bias_floats(s) * sizeof(float));
  Pages saved(ops.saved_bytes(s, p.rows, p.steps)), shared(ops.shared_bytes(s, p.rows, p.steps)), own[2];
  Scratch scratch{};
  scratch.shared = shared.data();
  for (int t = 0; t < threads; ++t) {
    own[t] = Pages(ops.own_bytes(s));
    scratch.own[t] = own[t].data();
  }
  net.shape = s;
  net.forward = forward.data();
  net.backward = backward.data();
  net.bias = reinterpret_cast<float*>(bias.data());
  std::vector<std::vector<float>> gradients;
  LayerGrad grads[kMaxDepth + 1] = {};
  for (const auto& each : p.parameters) gradients.emplace_back(each.size());
  std::size_t next = 0;
  for (int l = 0; l <= s.depth; ++l) {
    net.layers[l].w = p.parameters[next].data(), grads[l].w = gradients[next++].data();
    net.layers[l].b = p.parameters[next].data(), grads[l].b = gradients[next++].data();
    if (!s.norm || l == s.depth) continue;
    net.layers[l].g = p.parameters[next].data(), grads[l].g = gradients[next++].data();
    net.layers[l].c = p.parameters[next].data(), grads[l].c = gradients[next++].data();
  }
  ops.pack(team, net, true, true);

  std::vector<float> out(p.outputs()), again(out.size()), of_obs(p.obs.size()), of_act(p.act.size());
  Forward f{};
  f.net = &net, f.rows = p.rows, f.steps = p.steps, f.rollout = p.rollout, f.scratch = scratch;
  f.obs = p.obs.data(), f.act = p.act.data(), f.extra[0] = p.rollout ? nullptr : p.t.data(), f.extra_value[1] = p.second;
  f.out = again.data();
  ops.forward(team, f);
  f.out = out.data(), f.saved = saved.data();
  ops.forward(team, f);
  CHECK(std::memcmp(out.data(), again.data(), out.size() * sizeof(float)) == 0);
  Backward b{};
  b.net = &net, b.rows = p.rows, b.steps = p.steps, b.rollout = p.rollout, b.scratch = scratch;
  b.grad = p.weights.data(), b.saved = saved.data(), b.layers = grads, b.grad_obs = of_obs.data(), b.grad_act = of_act.data();
  ops.backward(team, b);

  const std::vector<double> expected = p.expected();
  double scale = 0;
  for (const double each : expected) scale = std::max(scale, std::fabs(each));
  for (std::size_t i = 0; i < out.size(); ++i)
    check("output", static_cast<double>(out[i]), expected[i], scale, exact ? 1e-5 : 2e-2, worst_out);
  // A few numbers of each gradient, against its largest.
  const auto compare = [&](const char* what, std::vector<float>& of, const std::vector<float>& got) {
    std::vector<double> slopes;
    std::vector<std::size_t> at;
    double largest = 1e-3;
    for (const float each : got) largest = std::max(largest, std::fabs(static_cast<double>(each)));
    for (int i = 0; i < 6; ++i) {
      at.push_back(static_cast<std::size_t>((draw() + 1) / 2 * static_cast<float>(of.size() - 1)));
      slopes.push_back(p.slope(of[at.back()]));
    }
    for (std::size_t i = 0; i < at.size(); ++i)
      check(what, static_cast<double>(got[at[i]]), slopes[i], largest, exact ? 1e-5 : 3e-2, worst_gradient);
  };
  for (std::size_t i = 0; i < gradients.size(); ++i) compare("gradient of a parameter", p.parameters[i], gradients[i]);
  compare("gradient of the observations", p.obs, of_obs);
  if (!p.act.empty()) compare("gradient of the actions", p.act, of_act);
}

}  // namespace

// test_training [ISA]
int main(int count, char** arguments) {
  std::string ran;
  for (const sorl::Precision precision : sorl::kPrecisions)
    for (const sorl::Isa isa : sorl::available_isas(precision)) {
      const Ops* ops = find_ops(isa, precision);
      if (ops == nullptr || (count > 1 && std::strcmp(arguments[1], sorl::name(isa)) != 0)) continue;
      worst_out = worst_gradient = 0;
      state = 1;
      const Shape actor{5, 3, 2, 70, 2, 3, 1, false}, critic{7, 2, 1, 65, 2, 1, 2, true}, value{4, 0, 1, 32, 1, 1, 1, true};
      agrees(*ops, {actor, 37, 1, false}, 1);
      agrees(*ops, {actor, 5, 3, true}, 2);
      agrees(*ops, {actor, 70, 2, true}, 2);
      agrees(*ops, {critic, 33, 1, false}, 2);
      agrees(*ops, {critic, 65, 1, false}, 1);
      agrees(*ops, {value, 1, 1, false}, 1);
      std::printf("%s/%s: outputs within %.1e, gradients within %.1e\n", sorl::name(isa), sorl::name(precision), worst_out,
                  worst_gradient);
      ran += std::string(" ") + sorl::name(isa) + "/" + sorl::name(precision);
    }
  std::printf("training:%s: all passed\n", ran.c_str());
}
