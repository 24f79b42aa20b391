#include "rule.hpp"

#include <charconv>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace sorl {

namespace {

struct Known {
  const char* name;
  bool has_parameter;
  int numerator, denominator;
};
constexpr Known kKnown[Rule::kKinds] = {
    {"argmax", false, 1, 1}, {"medoid", true, 1, 2}, {"nearest", true, 1, 4},
    {"better", true, 1, 2},  {"soft", true, 1, 1},   {"centre", false, 1, 1},
};

const Known& known(Rule::Kind kind) { return kKnown[static_cast<std::size_t>(kind)]; }

bool within_bounds(Rule::Kind kind, std::int64_t numerator, std::int64_t denominator) {
  return numerator >= 1 && denominator >= 1 && numerator <= Rule::kMost && denominator <= Rule::kMost &&
         (kind == Rule::Kind::soft || numerator <= denominator);
}

}  // namespace

Rule Rule::of(Kind kind) noexcept { return {kind, known(kind).numerator, known(kind).denominator}; }

bool Rule::of(Kind kind, double parameter, Rule& rule) noexcept {
  if (!known(kind).has_parameter || !(parameter > 0 && parameter <= kMost)) return false;
  // A fraction so small is one of the convergents of the double nearest to it, for it is nearer than 1 / (2 q^2).
  std::int64_t h0 = 0, h1 = 1, k0 = 1, k1 = 0;
  double x = parameter;
  while (true) {
    const double nearest = std::floor(x + 0.5), below = std::floor(x);
    if (nearest > kMost) return false;
    const auto r = static_cast<std::int64_t>(nearest);  // rounding may have left x a little below the last one
    const std::int64_t h = r * h1 + h0, k = r * k1 + k0;
    if (k > 0 && within_bounds(kind, h, k) && static_cast<double>(h) / static_cast<double>(k) == parameter) {
      rule = {kind, static_cast<int>(h), static_cast<int>(k)};
      return true;
    }
    const auto whole = static_cast<std::int64_t>(below);
    const std::int64_t h2 = whole * h1 + h0, k2 = whole * k1 + k0;
    if (h2 > kMost || k2 > kMost || x == below) return false;
    h0 = h1, h1 = h2, k0 = k1, k1 = k2;
    x = 1 / (x - below);
  }
}

bool Rule::of(const std::string& name, Rule& rule) {
  const std::size_t colon = name.find(':');
  for (int i = 0; i < kKinds; ++i) {
    const auto kind = static_cast<Kind>(i);
    if (name.compare(0, colon, kKnown[i].name) != 0) continue;
    rule = of(kind);
    if ((colon != std::string::npos) != kKnown[i].has_parameter) return false;
    if (colon == std::string::npos) return true;
    // Without leading zeros, in lowest terms, and no denominator of 1: one name for one rule.
    const char *at = name.data() + colon + 1, *const end = name.data() + name.size();
    const auto integer = [&](int& value) {
      const auto [behind, error] = std::from_chars(at, end, value);
      const bool read = error == std::errc() && *at >= '1' && *at <= '9';
      at = behind;
      return read;
    };
    rule.denominator = 1;
    if (!integer(rule.numerator)) return false;
    if (at != end && (*at++ != '/' || !integer(rule.denominator) || rule.denominator == 1)) return false;
    return at == end && within_bounds(kind, rule.numerator, rule.denominator) &&
           std::gcd(rule.numerator, rule.denominator) == 1;
  }
  return false;
}

}  // namespace sorl
