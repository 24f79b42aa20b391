// Lists of numbers of a policy file: bounds, normaliser, and the field `action_map`, whose bounds are those of
// sorl_fast/action_map.py.
#pragma once

#include <string>
#include <vector>

#include "json.hpp"

namespace sorl {

// A number as messages have it.
std::string shown(double value);

// Text from the file as it may stand in a message: short, and harmless to a terminal.
std::string quoted(const std::string& text);

// Each reads its field's value. False, with what is wrong in `error`, "NAME is VALUE, but must be BOUND".

// `count` finite float32 numbers.
bool parse_numbers(json::Reader reader, const std::string& name, int count, std::vector<float>& out, std::string& error);
// {"low": [A numbers], "high": [A numbers]}, where the networks' actions are clipped to action_low and action_high.
bool parse_action_map(json::Reader reader, const std::vector<float>& action_low, const std::vector<float>& action_high,
                      std::vector<float>& low, std::vector<float>& high, std::string& error);

}  // namespace sorl
