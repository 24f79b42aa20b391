// The field `form` of a policy file: its bounds, and the messages where it breaks them, are those of
// sorl_fast/act/form.py.
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

#include "finite.hpp"
#include "form.hpp"

namespace sorl {
namespace {

constexpr int kMostBlocks = 64;
constexpr std::int64_t kMostFrequencies = (std::int64_t{1} << 31) - 1;
constexpr const char* kFinite = "a finite float32 number";
constexpr const char* kNotNegative = "a finite float32 number of at least 0";
constexpr const char* kAbove0 = "null, or a finite float32 number above 0";

enum Field {
  kKind,
  kCounts,
  kReadsNoise,
  kTemperature,
  kNoiseScale,
  kNoiseClip,
  kTimes,
  kZScales,
  kVScales,
  kNoiseScales,
  kClip,
  kBlocks,
  kFrequencies,
  kFields
};
constexpr std::array<const char*, kFields> kNames = {
    "kind",     "counts",   "reads_noise",  "temperature", "noise_scale", "noise_clip", "times",
    "z_scales", "v_scales", "noise_scales", "clip",        "blocks",      "frequencies"};

constexpr unsigned bit(Field field) { return 1u << field; }
constexpr unsigned kOneStep =
    bit(kKind) | bit(kReadsNoise) | bit(kTemperature) | bit(kNoiseScale) | bit(kNoiseClip);
struct KindFields {
  const char* name;
  Form::Kind kind;
  unsigned fields;
};
constexpr KindFields kKinds[] = {
    {"euler", Form::Kind::euler, bit(kKind) | bit(kCounts)},
    {"direct", Form::Kind::direct, kOneStep},
    {"tanh", Form::Kind::tanh, kOneStep},
    {"diffusion", Form::Kind::diffusion,
     bit(kKind) | bit(kTimes) | bit(kZScales) | bit(kVScales) | bit(kNoiseScales) | bit(kClip) | bit(kTemperature) |
         bit(kBlocks) | bit(kFrequencies)},
};

class FormParser {
 public:
  FormParser(json::Reader reader, Form& form) : start_(reader), form_(form) {}

  bool run() {
    if (!index()) return false;
    switch (form_.kind) {
      case Form::Kind::shortcut: return false;  // is no kind of a file
      case Form::Kind::euler: return counts();
      case Form::Kind::direct:
      case Form::Kind::tanh: form_.counts = {1}; return one_step();
      case Form::Kind::diffusion: return diffusion();
    }
    return false;
  }

  std::string error;
  const char* remedy = nullptr;

 private:
  bool refuse(const std::string& name, const std::string& value, const std::string& bound) {
    error = "form " + name + " is " + value + ", but must be " + bound;
    return false;
  }
  bool refuse(Field field, const std::string& value, const std::string& bound) {
    return refuse(kNames[field], value, bound);
  }

  // Notes where each field begins; every field of the kind once, no other.
  bool index() {
    json::Reader reader = start_;
    if (reader.kind() != json::Kind::object) {
      error = "form is no object, but must be one with a kind: euler, direct, tanh or diffusion";
      return false;
    }
    unsigned seen = 0;
    bool unknown = false;
    const auto member = [&](const std::string& key) {
      std::size_t field = 0;
      while (field < kFields && key != kNames[field]) ++field;
      unknown = unknown || field == kFields;
      if (field == kFields) return reader.skip();
      if ((seen & bit(static_cast<Field>(field))) != 0) return reader.fail("the field " + key + " stands twice");
      seen |= bit(static_cast<Field>(field));
      position_[field] = reader.tell();
      return reader.skip();
    };
    if (!reader.object(member)) {
      error = "form is wrong (" + reader.error() + ")";
      return false;
    }
    std::string kind;
    const bool named = (seen & bit(kKind)) != 0 && at(kKind).kind() == json::Kind::string && at(kKind).string(kind, 64);
    for (const KindFields& each : kKinds) {
      if (!named || kind != each.name) continue;
      form_.kind = each.kind;
      for (std::size_t field = 0; field < kFields; ++field) {
        const unsigned wanted = each.fields & bit(static_cast<Field>(field));
        if (wanted != 0 && (seen & wanted) == 0) return refuse(static_cast<Field>(field), "missing", "there");
        if (wanted == 0 && (seen & bit(static_cast<Field>(field))) != 0)
          return refuse(static_cast<Field>(field), "there", std::string("absent in a form of the kind ") + kind);
      }
      if (!unknown) return true;
      error = "form has a field that no form of the kind " + kind + " has";
      return false;
    }
    return refuse(kKind, "none of them", "euler, direct, tanh or diffusion");
  }

  json::Reader at(Field field) const {
    json::Reader reader = start_;
    reader.seek(position_[field]);
    return reader;
  }

  // A number of at least `low`, rounded to float32.
  static bool single(json::Reader& reader, double low, float& out) {
    double value = 0;
    if (reader.kind() != json::Kind::number || !reader.number(value) || value < low) return false;
    out = static_cast<float>(value);
    return finite(out);
  }

  bool number(Field field, float& out) {
    json::Reader reader = at(field);
    return single(reader, 0, out) || refuse(field, "wrong", kNotNegative);
  }

  // A bound of magnitudes; null: none.
  bool clip(Field field, float& out) {
    json::Reader reader = at(field);
    if (reader.kind() == json::Kind::null) return true;
    return (single(reader, 0, out) && out > 0) || refuse(field, "wrong", kAbove0);
  }

  bool integer(Field field, std::int64_t most, std::int64_t& out) {
    json::Reader reader = at(field);
    const bool read = reader.integer(out);
    return (read && out >= 0 && out <= most) ||
           refuse(field, read ? std::to_string(out) : "no integer", "an integer from 0 to " + std::to_string(most));
  }

  bool counts() {
    json::Reader reader = at(kCounts);
    const std::string bound = "a list of 1 to 11 integers from 1 to 1024, ascending";
    if (reader.kind() != json::Kind::array) return refuse(kCounts, "no list", bound);
    std::vector<int>& counts = form_.counts;
    const auto element = [&] {
      std::int64_t m = 0;
      if (counts.size() == kMostCounts) return reader.fail("too many");
      if (!reader.integer(m)) return false;
      if (m < 1 || m > kMostSteps || (!counts.empty() && m <= counts.back()))
        return reader.fail(std::to_string(m) + " stands there");
      counts.push_back(static_cast<int>(m));
      return true;
    };
    if (!reader.array(element)) return refuse(kCounts, "wrong (" + reader.error() + ")", bound);
    return !counts.empty() || refuse(kCounts, "empty", bound);
  }

  bool one_step() {
    json::Reader reader = at(kReadsNoise);
    if (!reader.boolean(form_.reads_noise)) return refuse(kReadsNoise, "neither", "true or false");
    if (!number(kTemperature, form_.temperature) || !number(kNoiseScale, form_.noise_scale) ||
        !clip(kNoiseClip, form_.noise_clip)) {
      return false;
    }
    return !(form_.reads_noise && form_.temperature != 0) ||
           refuse(kTemperature, "not 0", "0 where reads_noise is true");
  }

  bool sequence(Field field, double low, const char* each, std::vector<float>& out) {
    json::Reader reader = at(field);
    // the first list says how many steps there are
    const bool first = field == kTimes;
    const std::size_t most = first ? kMostNoisy : form_.times.size();
    const std::string bound = (first ? "a list of 1 to 255 numbers" : "a list of " + std::to_string(most) + " numbers") +
                              ", each " + each;
    if (reader.kind() != json::Kind::array) return refuse(field, "no list", bound);
    const auto element = [&] {
      float value = 0;
      if (out.size() == most) return reader.fail("too many numbers");
      if (!single(reader, low, value)) return reader.fail("no such number");
      out.push_back(value);
      return true;
    };
    if (!reader.array(element)) return refuse(field, "wrong (" + reader.error() + ")", bound);
    return (!out.empty() && (first || out.size() == most)) ||
           refuse(field, "a list of " + std::to_string(out.size()), bound);
  }

  bool diffusion() {
    const double any = -std::numeric_limits<double>::infinity();
    std::int64_t blocks = 0, frequencies = 0;
    if (!sequence(kTimes, any, kFinite, form_.times) || !sequence(kZScales, any, kFinite, form_.z_scales) ||
        !sequence(kVScales, any, kFinite, form_.v_scales) ||
        !sequence(kNoiseScales, 0, kNotNegative, form_.noise_scales) || !clip(kClip, form_.clip) ||
        !number(kTemperature, form_.temperature) || !integer(kBlocks, kMostBlocks, blocks) ||
        !integer(kFrequencies, kMostFrequencies, frequencies)) {
      return false;
    }
    if ((blocks == 0) != (frequencies == 0))
      return refuse(kFrequencies, std::to_string(frequencies),
                    "0 where blocks is 0, and above it elsewhere: blocks is " + std::to_string(blocks));
    if (blocks != 0) {
      error = "form is a diffusion by a residual network (blocks is " + std::to_string(blocks) +
              "), which the native runtime does not run";
      remedy = "Act with it from Python: backend numpy or torch.";
      return false;
    }
    form_.counts = {static_cast<int>(form_.times.size())};
    return true;
  }

  const json::Reader start_;
  Form& form_;
  std::array<std::size_t, kFields> position_{};
};

}  // namespace

bool parse_form(json::Reader reader, Form& form, std::string& error, const char*& remedy) {
  FormParser parser(reader, form);
  if (parser.run()) return true;
  error = std::move(parser.error);
  remedy = parser.remedy;
  return false;
}

}  // namespace sorl
