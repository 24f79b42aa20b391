// The field `choice` of a policy file: its bounds are those of sorl_fast/act/choice.py.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "choice.hpp"

namespace sorl {
namespace {

constexpr std::array<const char*, 3> kNames = {"rule", "steps", "candidates"};

bool parse_rule(json::Reader& reader, Rule& rule, std::string& error) {
  std::string name;
  if (reader.kind() == json::Kind::string && reader.string(name, 64) && Rule::of(name, rule)) return true;
  error = "choice rule is wrong, but must be a rule's full name, such as argmax or medoid:1/2";
  return false;
}

bool parse_steps(json::Reader& reader, std::vector<double>& sizes, std::string& error) {
  const std::string bound = ", but must be an integer M from 1 to " + std::to_string(kMostSizes) +
                            ", or 2 to " + std::to_string(kMostSizes) + " sizes above 0 that sum to 1";
  const auto refuse = [&](const std::string& value) {
    error = "choice steps is " + value + bound;
    return false;
  };
  if (reader.kind() != json::Kind::array) {
    std::int64_t M = 0;
    if (!reader.integer(M)) return refuse("no integer");
    if (M < 1 || M > kMostSizes) return refuse(std::to_string(M));
    sizes = even_sizes(static_cast<int>(M));
    return true;
  }
  const auto element = [&] {
    double value = 0;
    if (sizes.size() == static_cast<std::size_t>(kMostSizes)) return reader.fail("too many");
    if (reader.kind() != json::Kind::number || !reader.number(value)) return reader.fail("no number");
    sizes.push_back(value);
    return true;
  };
  if (!reader.array(element)) return refuse("wrong (" + reader.error() + ")");
  if (sizes.size() < 2) return refuse("a list of " + std::to_string(sizes.size()));
  if (normalise_sizes(sizes, error)) return true;
  error = "choice " + error;
  return false;
}

bool parse_candidates(json::Reader& reader, int& candidates, std::string& error) {
  std::int64_t N = 0;
  const bool read = reader.integer(N);
  candidates = static_cast<int>(N);
  if (read && N >= 1 && N <= kMostOwnCandidates) return true;
  error = "choice candidates is " + (read ? std::to_string(N) : std::string("no integer")) +
          ", but must be an integer from 1 to " + std::to_string(kMostOwnCandidates);
  return false;
}

}  // namespace

bool parse_choice(json::Reader reader, Choice& choice, std::string& error) {
  if (reader.kind() != json::Kind::object) {
    error = "choice is no object, but must be one with rule, steps, candidates";
    return false;
  }
  std::array<std::size_t, kNames.size()> position{};
  unsigned seen = 0;
  const auto member = [&](const std::string& key) {
    std::size_t field = 0;
    while (field < kNames.size() && key != kNames[field]) ++field;
    if (field == kNames.size()) return reader.fail("it has a field that is none of rule, steps, candidates");
    if ((seen & 1u << field) != 0) return reader.fail("the field " + key + " stands twice");
    seen |= 1u << field;
    position[field] = reader.tell();
    return reader.skip();
  };
  json::Reader start = reader;
  if (!reader.object(member)) {
    error = "choice is wrong (" + reader.error() + ")";
    return false;
  }
  for (std::size_t field = 0; field < kNames.size(); ++field) {
    if ((seen & 1u << field) != 0) continue;
    error = std::string("choice ") + kNames[field] + " is missing, but must be there";
    return false;
  }
  const auto at = [&](std::size_t field) {
    json::Reader value = start;
    value.seek(position[field]);
    return value;
  };
  json::Reader rule = at(0), steps = at(1), candidates = at(2);
  return parse_rule(rule, choice.rule, error) && parse_steps(steps, choice.sizes, error) &&
         parse_candidates(candidates, choice.candidates, error);
}

bool check_choice(const Choice& choice, const Form& form, int ensemble, std::string& error) {
  const auto M = static_cast<int>(choice.sizes.size());
  const int most = 2 * form.counts.back();
  const bool shortcut = form.kind == Form::Kind::shortcut;
  const bool counted =
      are_even(choice.sizes) && std::find(form.counts.begin(), form.counts.end(), M) != form.counts.end();
  if (shortcut ? M > most : !counted) {
    error = "choice steps has " + std::to_string(M) + " steps, but the policy acts with " + form.counts_text() +
            (shortcut ? ", and with at most " + std::to_string(most) + " of any size" : "");
    return false;
  }
  if (choice.candidates == 1 || !choice.rule.reads_q() || ensemble > 0) return true;
  error = "choice candidates is " + std::to_string(choice.candidates) +
          ", but this policy has no critic to choose the best by: the rule must be centre, or candidates 1";
  return false;
}

}  // namespace sorl
