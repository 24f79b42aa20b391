// The names of precisions and instruction sets that Python hands over.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "isa.hpp"

namespace sorl {

inline Precision parse_precision(const std::string& text) {
  for (const Precision precision : kPrecisions)
    if (text == name(precision)) return precision;
  throw pybind11::value_error("precision is '" + text + "', but must be fp32, bf16 or int8");
}

// None: SORL_CPU_ISA's, or the fastest.
inline Isa parse_isa(Precision precision, const std::optional<std::string>& wanted) {
  Isa isa;
  std::string error;
  if (!choose_isa(precision, wanted ? wanted->c_str() : nullptr, isa, error)) throw pybind11::value_error(error);
  return isa;
}

inline std::vector<std::string> isa_names(const std::string& precision) {
  std::vector<std::string> names;
  for (const Isa isa : available_isas(parse_precision(precision))) names.emplace_back(name(isa));
  return names;
}

}  // namespace sorl
