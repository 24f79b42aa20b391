#include "schedule.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

namespace sorl {

namespace {

constexpr double kSum = 1e-6;   // how far sizes may sum from 1, and are then normalised
constexpr double kEven = 1e-9;  // relative: sizes nearer than this to 1/M are M equal steps

std::string shown(double value) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

// A sum that also keeps what each addition rounds off.
class Sum {
 public:
  void add(double x) noexcept {
    const double sum = sum_ + x;
    lost_ += std::fabs(sum_) >= std::fabs(x) ? (sum_ - sum) + x : (x - sum) + sum_;
    sum_ = sum;
  }
  double value() const noexcept { return sum_ + lost_; }

 private:
  double sum_ = 0, lost_ = 0;
};

}  // namespace

bool normalise_sizes(std::vector<double>& sizes, std::string& error) {
  if (sizes.empty() || sizes.size() > static_cast<std::size_t>(kMostSizes)) {
    error = "steps has " + std::to_string(sizes.size()) + " sizes, but must have 1 to " + std::to_string(kMostSizes);
    return false;
  }
  Sum sum;
  for (const double h : sizes) {
    if (!(h > 0 && h <= std::numeric_limits<double>::max())) {
      error = "a step's size is " + shown(h) + ", but must be above 0 and finite";
      return false;
    }
    sum.add(h);
  }
  const double total = sum.value();
  if (!(std::fabs(total - 1) <= kSum)) {
    error = "steps has sizes that sum to " + shown(total) + ", but they must sum to 1 (within 1e-06)";
    return false;
  }
  if (std::fabs(total - 1) > 0x1p-50)  // what was normalised once stays as it is
    for (double& h : sizes) h /= total;
  const auto M = static_cast<double>(sizes.size());
  if (std::all_of(sizes.begin(), sizes.end(), [&](double h) { return std::fabs(h * M - 1) <= kEven; }))
    sizes = even_sizes(static_cast<int>(sizes.size()));
  return true;
}

std::vector<double> even_sizes(int steps) {
  return std::vector<double>(static_cast<std::size_t>(steps), 1 / static_cast<double>(steps));
}

bool are_even(const std::vector<double>& sizes) noexcept {
  const double each = 1 / static_cast<double>(sizes.size());
  return std::all_of(sizes.begin(), sizes.end(), [&](double h) { return h == each; });
}

Schedule euler_schedule(const std::vector<double>& sizes, int finest) {
  const bool even = are_even(sizes);
  const auto M = static_cast<double>(sizes.size());
  const double most = std::log2(static_cast<double>(finest));
  Schedule made{static_cast<int>(std::min(M, static_cast<double>(finest))), {}};
  Sum before;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const double h = sizes[i];
    const double t = even ? static_cast<double>(i) / M : before.value();
    const double fed = even ? std::log2(M) : -std::log2(h);
    made.steps.push_back({t, std::min(fed, most), 1.0f, static_cast<float>(h)});
    before.add(h);
  }
  return made;
}

}  // namespace sorl
