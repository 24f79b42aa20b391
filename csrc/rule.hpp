// Rules of choosing one of N candidates, by name and number; choose.hpp chooses by them.
//
// sorl_fast/act/rules.py says what each means.
#pragma once

#include <cstdint>
#include <string>

namespace sorl {

struct Rule {
  enum class Kind { argmax, medoid, nearest, better, soft, centre };
  static constexpr int kKinds = 6;
  static constexpr int kMost = 1 << 15;  // of numerator and denominator

  Kind kind = Kind::argmax;
  int numerator = 1, denominator = 1;  // the part, or tau; 1 where the rule has neither

  // The rule with the parameter that it has by itself.
  static Rule of(Kind kind) noexcept;
  // With another one, exactly the fraction that it is nearest to. False: it has no parameter, or this is out of
  // its bounds.
  static bool of(Kind kind, double parameter, Rule& rule) noexcept;
  // Of its full name: "argmax", "medoid:1/2". False: it is none.
  static bool of(const std::string& name, Rule& rule);

  bool reads_q() const noexcept { return kind != Kind::centre; }
  bool has_parameter() const noexcept { return kind != Kind::argmax && kind != Kind::centre; }
  bool draws() const noexcept { return kind == Kind::better || kind == Kind::soft; }
  double parameter() const noexcept { return static_cast<double>(numerator) / denominator; }
  // ceil(p n), of n candidates those of the part.
  int part(int n) const noexcept {
    return static_cast<int>((std::int64_t{numerator} * n + denominator - 1) / denominator);
  }
};

}  // namespace sorl
