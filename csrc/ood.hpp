// The numbers of a policy file's field `ood`: what of its statistics is no array. See sorl_fast/act/ood.py.
#pragma once

#include <string>

#include "json.hpp"

namespace sorl {

struct OodNumbers {
  float threshold = 0;  // of the squared Mahalanobis distance, above 0 and finite
  double rate = 0;      // in (0, 1): of observations like the data's, the part that was to be above it
  double measured = 0;  // in [0, 1]: the part of others of the validation data that was
};

// {"threshold": number, "rate": number, "measured": number}. False, with what is wrong in `error`, "NAME is VALUE, but
// must be BOUND".
bool parse_ood(json::Reader reader, OodNumbers& out, std::string& error);

}  // namespace sorl
