// How a policy acts unless a call says otherwise: its own rule, steps and candidates, kept in its file.
#pragma once

#include <string>
#include <vector>

#include "form.hpp"
#include "json.hpp"
#include "rule.hpp"

namespace sorl {

struct Choice {
  Rule rule;
  std::vector<double> sizes;  // of its steps, those of a schedule
  int candidates = 1;
};

inline constexpr int kMostOwnCandidates = 1 << 12;  // memory that a file asks for

// Reads the value of the field `choice` of a policy file: choice_parser.cpp. False, with what is wrong in `error`,
// "choice NAME is VALUE, but must be BOUND".
bool parse_choice(json::Reader reader, Choice& choice, std::string& error);
// Whether a policy can act so.
bool check_choice(const Choice& choice, const Form& form, int ensemble, std::string& error);

}  // namespace sorl
