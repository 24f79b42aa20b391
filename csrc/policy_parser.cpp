// What the bytes of a policy file must be, and the messages where they are not.
#include "policy_file.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <limits>
#include <utility>

#include "bounds_parser.hpp"
#include "finite.hpp"
#include "json.hpp"
#include "sha256.hpp"
#include "tensor_parser.hpp"

// Shape letters: O observation, A action, H hidden width, E ensemble.

namespace sorl {
namespace {

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "policy files hold little-endian floats; this host is big-endian"
#endif

constexpr std::uint64_t kMostHeader = 1 << 20;
constexpr std::size_t kDigits = 64;
constexpr std::size_t kMostEnv = 4096;
constexpr std::size_t kPrefix = 8;  // the length of the header, u64

enum Field {
  kFieldFormat,
  kFieldObsDim,
  kFieldActDim,
  kFieldHidden,
  kFieldDepth,
  kFieldEnsemble,
  kFieldMDisc,
  kFieldMBtt,
  kFieldQAgg,
  kFieldEnv,
  kFieldActionLow,
  kFieldActionHigh,
  kFieldObsMean,
  kFieldObsStd,
  kFieldForm,
  kFieldChoice,
  kFieldActionMap,
  kFieldChunk,
  kFieldOod,
  kFieldConfig,
  kFieldSha256,
  kFields
};
constexpr std::array<const char*, kFields> kFieldNames = {
    "format", "obs_dim",    "act_dim",     "hidden",   "depth",   "ensemble", "m_disc", "m_btt",      "q_agg",
    "env",    "action_low", "action_high", "obs_mean", "obs_std", "form",     "choice", "action_map", "chunk", "ood", "config", "sha256"};

// The fields that came with a later format than 1, which all formats from it on have. In its own format such a field
// says something; in later ones it may be null, or 1.
struct Later {
  Field field;
  std::int64_t since;
};
constexpr std::array<Later, 5> kLater = {
    {{kFieldForm, 2}, {kFieldChoice, 3}, {kFieldActionMap, 4}, {kFieldChunk, 5}, {kFieldOod, 6}}};
constexpr std::int64_t kFormats = kLater.back().since;  // 1 to this are read

constexpr std::int64_t since(Field field) {
  for (const Later& each : kLater)
    if (each.field == field) return each.since;
  return 1;
}
constexpr std::array<const char*, 2> kOodTensors = {"ood/mean", "ood/whiten"};
constexpr const char* kSaveAgain = "It is damaged or was not written by sorl-fast: save the policy again.";

}  // namespace

/// Fills a PolicyFile from bytes; each step refuses with a message or leaves its fields checked.
class PolicyParser {
 public:
  PolicyParser(PolicyFile& policy, std::size_t size, const std::string& name)
      : policy_(policy), size_(size), name_(name) {}

  bool run(PolicyFile::Digest digest) {
    return envelope() && find_metadata() && index_metadata() &&
           digest_matches(digest) && form() && choice() && dimensions() && choice_fits() && bounds() && action_map() && chunk() && ood() && tensors() && offsets() && weights();
  }

  const std::string& message() const { return message_; }

 private:
  char* bytes() const { return reinterpret_cast<char*>(policy_.storage_.get()); }
  json::Reader header() const { return {bytes() + kPrefix, header_size_}; }

  bool refuse(const std::string& what, const char* remedy = kSaveAgain) {
    message_ = name_ + ": " + what + ". " + remedy;
    return false;
  }

  bool refuse_field(Field field, const std::string& value, const std::string& bound) {
    return refuse(std::string(kFieldNames[field]) + " is " + value + ", but must be " + bound);
  }

  bool refuse_json(const char* where, const json::Reader& reader) {
    return refuse(std::string("in its ") + where + ": " + reader.error());
  }

  // The length prefix against the file's size.
  bool envelope() {
    if (size_ < kPrefix + 2) {
      return refuse("it has " + std::to_string(size_) + " bytes, fewer than any policy file");
    }
    std::uint64_t length = 0;
    std::memcpy(&length, bytes(), sizeof length);
    if (length < 2 || length > std::min<std::uint64_t>(kMostHeader, size_ - kPrefix)) {
      return refuse("its header is said to have " + std::to_string(length) +
                        " bytes, but must have 2 to " +
                        std::to_string(std::min<std::uint64_t>(kMostHeader, size_ - kPrefix)),
                    "It is cut off, damaged, or no safetensors file: copy or save the policy again.");
    }
    header_size_ = static_cast<std::size_t>(length);
    data_size_ = size_ - kPrefix - header_size_;
    return true;
  }

  // First pass over the header: it is JSON as a whole; the value of __metadata__/sorl_fast.
  bool find_metadata() {
    json::Reader reader = header();
    metadata_.reserve(header_size_);  // growing by steps would hold three times as much
    bool found_table = false;
    bool found = false;
    const auto entry = [&](const std::string& key) {
      if (key != "sorl_fast") return reader.fail("unknown metadata key " + quoted(key));
      if (std::exchange(found, true)) return reader.fail("the metadata key sorl_fast stands twice");
      return reader.string(metadata_, header_size_);
    };
    const auto member = [&](const std::string& key) {
      if (key != "__metadata__") return reader.skip();
      if (std::exchange(found_table, true)) return reader.fail("__metadata__ stands twice");
      return reader.object(entry);
    };
    if (!reader.object(member) || !reader.finish()) return refuse_json("header", reader);
    if (!found) {
      return refuse("it is a safetensors file without the metadata key sorl_fast",
                    "Give the policy.safetensors of a run, not other weights.");
    }
    return true;
  }

  // Notes where each field's value begins: they are read in this file's order, not in the text's.
  bool index_metadata() {
    json::Reader reader(metadata_.data(), metadata_.size());
    std::array<bool, kFields> seen{};
    const auto member = [&](const std::string& key) {
      const auto name = std::find(kFieldNames.begin(), kFieldNames.end(), key);
      if (name == kFieldNames.end()) {
        if (unknown_.empty()) unknown_ = quoted(key);
        return reader.skip();
      }
      const auto field = static_cast<std::size_t>(name - kFieldNames.begin());
      if (std::exchange(seen[field], true)) return reader.fail("the field " + key + " stands twice");
      kind_[field] = reader.kind();
      position_[field] = reader.tell();
      return reader.skip();
    };
    if (!reader.object(member) || !reader.finish()) return refuse_json("metadata", reader);
    // Another format may have other fields, so it is looked at first.
    if (seen[kFieldFormat] && !format()) return false;
    for (std::size_t field = 0; field < kFields; ++field) {
      if (std::max<std::int64_t>(format_, 1) < since(static_cast<Field>(field))) {  // 0: it has none
        if (seen[field] && unknown_.empty()) unknown_ = quoted(kFieldNames[field]);
        continue;
      }
      if (!seen[field]) return refuse("the metadata lacks the field " + std::string(kFieldNames[field]));
    }
    if (!unknown_.empty()) return refuse("the metadata has the unknown field " + unknown_);
    if (kind_[kFieldConfig] != json::Kind::object) return refuse_field(kFieldConfig, "none", "an object");
    return true;
  }

  json::Reader at(Field field) const {
    json::Reader reader(metadata_.data(), metadata_.size());
    reader.seek(position_[field]);
    return reader;
  }

  bool format() {
    json::Reader reader = at(kFieldFormat);
    const std::string read = "1 to " + std::to_string(kFormats);
    if (!reader.integer(format_)) return refuse_field(kFieldFormat, "no integer", read);
    if (format_ >= 1 && format_ <= kFormats) return true;
    return refuse("format is " + std::to_string(format_) + ", but this version reads " + read,
                  "Install a sorl-fast that reads that format, or save the policy with this one.");
  }

  bool digest_matches(PolicyFile::Digest digest) {
    json::Reader reader = at(kFieldSha256);
    std::string& stated = policy_.sha256_;
    const auto lower_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (reader.kind() != json::Kind::string || !reader.string(stated, kDigits) ||
        stated.size() != kDigits || !std::all_of(stated.begin(), stated.end(), lower_hex)) {
      return refuse_field(kFieldSha256, "malformed", "a string of 64 lower-case hexadecimal digits");
    }
    if (digest == PolicyFile::Digest::ignore) return true;
    const char* const first = bytes() + kPrefix;
    const char* const last = first + header_size_;
    // The last occurrence: sha256 is written as the last field, and an earlier one may be anything.
    const char* const found = std::find_end(first, last, stated.begin(), stated.end());
    if (found == last) return refuse("the digits of sha256 are written with escapes");
    const auto before = static_cast<std::size_t>(found - bytes());
    Sha256 sum;
    sum.update(bytes(), before);
    sum.update(std::string(kDigits, '0').data(), kDigits);
    sum.update(found + kDigits, size_ - before - kDigits);
    const std::string actual = sum.hex();
    if (actual == stated) return true;
    return refuse("sha256 is " + stated + ", but the file's bytes give " + actual,
                  "The file was changed or damaged after it was saved: copy or save it again.");
  }

  // Whether the file says something in a later field, whose null says nothing.
  bool says(Field field) const {
    return format_ == since(field) || (format_ > since(field) && kind_[field] != json::Kind::null);
  }

  bool form() {
    has_form_ = says(kFieldForm);
    if (!has_form_) return true;
    std::string error;
    const char* remedy = nullptr;
    return parse_form(at(kFieldForm), policy_.form_, error, remedy) ||
           refuse(error, remedy != nullptr ? remedy : kSaveAgain);
  }

  bool choice() {
    policy_.has_choice_ = says(kFieldChoice);
    std::string error;
    return !policy_.has_choice_ || parse_choice(at(kFieldChoice), policy_.choice_, error) || refuse(error);
  }

  bool choice_fits() {
    std::string error;
    return !policy_.has_choice_ || check_choice(policy_.choice_, policy_.form_, policy_.ensemble_, error) || refuse(error);
  }

  // A dimension beyond the number of floats in the file cannot be true; refused before it is used.
  bool dimension(Field field, int& out, int least = 1) {
    const auto most = static_cast<std::int64_t>(std::min<std::uint64_t>(
        data_size_ / sizeof(float), static_cast<std::uint64_t>(std::numeric_limits<int>::max() / 4)));
    json::Reader reader = at(field);
    std::int64_t value = 0;
    const bool read = reader.integer(value);
    if (!read || value < least) {
      return refuse_field(field, read ? std::to_string(value) : "no integer",
                          "an integer of at least " + std::to_string(least));
    }
    if (value > most) {
      return refuse_field(field, std::to_string(value),
                          "at most " + std::to_string(most) + ", the floats that the file holds");
    }
    out = static_cast<int>(value);
    return true;
  }

  bool power_of_two(Field field, std::int64_t most, int& out) {
    json::Reader reader = at(field);
    std::int64_t value = 0;
    const bool read = reader.integer(value);
    if (!read || value < 1 || value > most || (value & (value - 1)) != 0) {
      return refuse_field(field, read ? std::to_string(value) : "no integer",
                          "a power of two, at most " + std::to_string(most));
    }
    out = static_cast<int>(value);
    return true;
  }

  // A form has its own step counts, may do without critics, and counts its noise in a word that A shares.
  bool of_a_form() {
    if (!has_form_) {
      policy_.form_ = Form::shortcut(policy_.m_disc_);
      return true;
    }
    for (const auto& [field, value] : {std::pair{kFieldMDisc, policy_.m_disc_}, {kFieldMBtt, policy_.m_btt_}}) {
      if (value != 1) {
        return refuse_field(field, std::to_string(value), "1 where there is a form, which has its own step counts");
      }
    }
    return policy_.form_.draws() == 1 || policy_.act_dim_ < kMostNoisyAct ||
           refuse_field(kFieldActDim, std::to_string(policy_.act_dim_),
                        "below " + std::to_string(kMostNoisyAct) + " where later steps add noise");
  }

  bool dimensions() {
    return dimension(kFieldObsDim, policy_.obs_dim_) && dimension(kFieldActDim, policy_.act_dim_) &&
           dimension(kFieldHidden, policy_.hidden_) && dimension(kFieldDepth, policy_.depth_) &&
           dimension(kFieldEnsemble, policy_.ensemble_, has_form_ ? 0 : 1) &&
           power_of_two(kFieldMDisc, kMostSteps, policy_.m_disc_) &&
           power_of_two(kFieldMBtt, policy_.m_disc_, policy_.m_btt_) && of_a_form() && q_agg() && env() &&
           first_layer_fits();
  }

  bool q_agg() {
    json::Reader reader = at(kFieldQAgg);
    std::string value;
    const bool read = reader.kind() == json::Kind::string && reader.string(value, 64);
    if (!read || (value != "mean" && value != "min")) {
      return refuse_field(kFieldQAgg, read ? quoted(value) : "no short string", "mean or min");
    }
    policy_.q_min_ = value == "min";
    return true;
  }

  bool env() {
    json::Reader reader = at(kFieldEnv);
    if (reader.kind() == json::Kind::string && reader.string(policy_.env_, kMostEnv)) return true;
    return refuse_field(kFieldEnv, "malformed", "a string of at most 4096 bytes");
  }

  // actor w, b of each layer; critic w, b of each, g, c of all but the last; mean and whitening matrix of observations.
  std::uint64_t count_tensors(std::uint64_t depth) const {
    return (policy_.ensemble_ == 0 ? 2 * depth + 2 : 6 * depth + 4) + (says(kFieldOod) ? 2 : 0);
  }

  // So much that the arrays of bounds() and the table of tensors() stay smaller than the file.
  bool first_layer_fits() {
    const std::uint64_t floats = data_size_ / sizeof(float);
    const auto layers = static_cast<std::uint64_t>(policy_.depth_);
    const std::uint64_t inputs =
        static_cast<std::uint64_t>(policy_.obs_dim_) + static_cast<std::uint64_t>(policy_.act_dim_);
    // A map has two arrays more, of which the few KiB of a small file have room.
    const std::uint64_t mapped = !says(kFieldActionMap) ? 0 : 2 * static_cast<std::uint64_t>(policy_.act_dim_);
    if (2 * inputs > floats || (mapped > 1024 && 2 * inputs + mapped > floats)) {
      return refuse("obs_dim + act_dim is " + std::to_string(inputs) + ", more than its " +
                    std::to_string(floats) + " floats can serve");
    }
    constexpr std::uint64_t kLeastEntry = sizeof "\"actor/0/w\":{\"dtype\":\"F32\",\"shape\":[1],"
                                                 "\"data_offsets\":[0,4]}";
    if (count_tensors(layers) * kLeastEntry > header_size_) {
      return refuse("depth is " + std::to_string(layers) + ", more layers than its header names");
    }
    return true;
  }

  bool numbers(Field field, int count, std::vector<float>& out) {
    std::string error;
    return parse_numbers(at(field), kFieldNames[field], count, out, error) || refuse(error);
  }

  bool action_map() {
    std::string error;
    return !says(kFieldActionMap) ||
           parse_action_map(at(kFieldActionMap), policy_.action_low_, policy_.action_high_, policy_.map_low_,
                            policy_.map_high_, error) ||
           refuse(error);
  }

  // How many actions a call returns.
  bool chunk() {
    if (format_ < since(kFieldChunk)) return true;
    json::Reader reader = at(kFieldChunk);
    std::int64_t value = 0;
    const bool read = reader.integer(value);
    const std::int64_t least = format_ == since(kFieldChunk) ? 2 : 1;
    if (!read || value < least || policy_.act_dim_ % value != 0) {
      return refuse_field(kFieldChunk, read ? std::to_string(value) : "no integer",
                          "an integer from " + std::to_string(least) + " that divides act_dim = " +
                              std::to_string(policy_.act_dim_));
    }
    policy_.chunk_ = static_cast<int>(value);
    return one_range("action_low", policy_.action_low_) && one_range("action_high", policy_.action_high_) &&
           one_range("action_map low", policy_.map_low_) && one_range("action_map high", policy_.map_high_);
  }

  bool ood() {
    policy_.has_ood_ = says(kFieldOod);
    std::string error;
    return !policy_.has_ood_ || parse_ood(at(kFieldOod), policy_.ood_, error) || refuse(error);
  }

  // Of each action of a chunk: one that is held takes another's place.
  bool one_range(const std::string& name, const std::vector<float>& ends) {
    const auto each = static_cast<std::size_t>(policy_.act_dim_ / policy_.chunk_);
    for (std::size_t a = each; a < ends.size(); ++a) {
      if (ends[a] == ends[a - each]) continue;
      return refuse(name + "[" + std::to_string(a) + "] is " + shown(ends[a]) + ", but must be " + name + "[" +
                    std::to_string(a - each) + "] = " + shown(ends[a - each]) +
                    ": the actions of a chunk have one range");
    }
    return true;
  }

  bool bounds() {
    if (!numbers(kFieldActionLow, policy_.act_dim_, policy_.action_low_) ||
        !numbers(kFieldActionHigh, policy_.act_dim_, policy_.action_high_)) {
      return false;
    }
    for (std::size_t a = 0; a < policy_.action_low_.size(); ++a) {
      if (!(policy_.action_low_[a] < policy_.action_high_[a])) {
        const std::string index = "[" + std::to_string(a) + "]";
        return refuse("action_low" + index + " is " + shown(policy_.action_low_[a]) +
                      ", but must be below action_high" + index + " = " +
                      shown(policy_.action_high_[a]));
      }
    }
    if ((kind_[kFieldObsMean] == json::Kind::null) != (kind_[kFieldObsStd] == json::Kind::null)) {
      return refuse("one of obs_mean and obs_std is null, but both or none must be");
    }
    if (kind_[kFieldObsMean] == json::Kind::null) return true;
    if (!numbers(kFieldObsMean, policy_.obs_dim_, policy_.obs_mean_) ||
        !numbers(kFieldObsStd, policy_.obs_dim_, policy_.obs_std_)) {
      return false;
    }
    for (std::size_t o = 0; o < policy_.obs_std_.size(); ++o) {
      if (!(policy_.obs_std_[o] > 0)) {
        return refuse("obs_std[" + std::to_string(o) + "] is " + shown(policy_.obs_std_[o]) +
                      ", but must be above 0");
      }
    }
    return true;
  }

  std::string tensor_name(std::size_t index) const {
    const std::size_t actor = 2 * (static_cast<std::size_t>(policy_.depth_) + 1);
    if (index < actor) return "actor/" + std::to_string(index / 2) + "/" + "wb"[index % 2];
    if (policy_.has_ood_ && index + 2 >= tensors_.size()) return kOodTensors[index + 2 - tensors_.size()];
    index -= actor;
    return "critic/" + std::to_string(index / 4) + "/" + "wbgc"[index % 4];
  }

  // The tensors that the dimensions ask for: actor w, b of each layer, then critic w, b, g, c (the
  // last layer without g, c), then those of observations. tensor_name() is the inverse of tensor_index().
  void expect_tensors() {
    const std::int64_t O = policy_.obs_dim_;
    const std::int64_t A = policy_.act_dim_;
    const std::int64_t H = policy_.hidden_;
    const std::int64_t E = policy_.ensemble_;
    const int depth = policy_.depth_;
    tensors_.reserve(count_tensors(static_cast<std::uint64_t>(depth)));
    for (int i = 0; i <= depth; ++i) {
      const std::int64_t in = i == 0 ? O + A + 2 : H;  // observation, z, t, log2(1/h)
      const std::int64_t out = i == depth ? A : H;
      tensors_.push_back({{in, out, 0}, 2});
      tensors_.push_back({{out, 0, 0}, 1});
    }
    for (int i = 0; E != 0 && i <= depth; ++i) {
      const std::int64_t in = i == 0 ? O + A + 1 : H;  // observation, action, k
      const std::int64_t out = i == depth ? 1 : H;
      tensors_.push_back({{E, in, out}, 3});
      tensors_.push_back({{E, out, 0}, 2});
      if (i == depth) break;
      tensors_.push_back({{E, out, 0}, 2});
      tensors_.push_back({{E, out, 0}, 2});
    }
    if (!policy_.has_ood_) return;
    tensors_.push_back({{O, 0, 0}, 1});
    tensors_.push_back({{O, O, 0}, 2});
  }

  /// Index of a tensor's name, or the number of tensors where the dimensions ask for none such.
  std::size_t tensor_index(const std::string& name) const {
    const std::size_t networks = tensors_.size() - (policy_.has_ood_ ? kOodTensors.size() : 0);
    for (std::size_t i = 0; networks + i < tensors_.size(); ++i)
      if (name == kOodTensors[i]) return networks + i;
    const bool critic = name.compare(0, 7, "critic/") == 0;
    if (!critic && name.compare(0, 6, "actor/") != 0) return tensors_.size();
    const char* const first = name.data() + (critic ? 7 : 6);
    const char* const last = name.data() + name.size();
    std::uint32_t layer = 0;
    const auto [end, error] = std::from_chars(first, last, layer);
    const bool canonical = error == std::errc() && (*first != '0' || end - first == 1);
    if (!canonical || last - end != 2 || *end != '/' ||
        layer > static_cast<std::uint32_t>(policy_.depth_)) {
      return tensors_.size();
    }
    const std::string kinds = critic ? "wbgc" : "wb";
    const std::size_t kind = kinds.find(end[1]);
    if (kind == std::string::npos) return tensors_.size();
    const std::size_t base = critic ? 2 * (static_cast<std::size_t>(policy_.depth_) + 1) : 0;
    // Past the networks' end for g and c of the critic's last layer, which has none.
    const std::size_t index = base + kinds.size() * layer + kind;
    return index < networks ? index : tensors_.size();
  }

  // Second pass over the header: every expected tensor once, no other, each of its shape.
  bool tensors() {
    expect_tensors();
    json::Reader reader = header();
    const auto member = [&](const std::string& key) {
      if (key == "__metadata__") return reader.skip();
      const std::size_t index = tensor_index(key);
      if (index == tensors_.size()) return reader.fail("unknown tensor " + quoted(key));
      if (std::exchange(tensors_[index].seen, true)) return reader.fail("the tensor " + key + " stands twice");
      return parse_tensor(reader, key, tensors_[index]);
    };
    if (!reader.object(member)) return refuse_json("header", reader);
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (!tensors_[i].seen) return refuse("the tensor " + tensor_name(i) + " is missing");
    }
    return true;
  }

  // The tensors tile the data section: no gap, no overlap, nothing before, behind or outside.
  bool offsets() {
    std::vector<std::uint32_t> order(tensors_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
    const auto earlier = [this](std::uint32_t a, std::uint32_t b) {
      return tensors_[a].begin < tensors_[b].begin;
    };
    std::sort(order.begin(), order.end(), earlier);
    std::uint64_t end = 0;
    for (const std::uint32_t i : order) {
      if (tensors_[i].begin != end) {
        return refuse("the tensor " + tensor_name(i) + " begins at byte " +
                      std::to_string(tensors_[i].begin) + " of the data, but must begin at " +
                      std::to_string(end));
      }
      end = tensors_[i].end;
    }
    if (end == data_size_) return true;
    return refuse("its tensors need " + std::to_string(end) + " bytes of data, but it has " +
                      std::to_string(data_size_),
                  "It is cut off or damaged: copy or save the policy again.");
  }

  bool weights() {
    // A header of odd length leaves the floats unaligned: move them down onto its last bytes.
    const std::size_t start = (kPrefix + header_size_) / sizeof(float) * sizeof(float);
    std::memmove(bytes() + start, bytes() + kPrefix + header_size_, data_size_);
    const float* const data = policy_.storage_.get() + start / sizeof(float);
    std::size_t next = 0;
    const auto place = [&] { return data + tensors_[next++].begin / sizeof(float); };
    const auto layers = static_cast<std::size_t>(policy_.depth_) + 1;
    policy_.actor_.reserve(layers);
    policy_.critic_.reserve(layers);
    for (std::size_t i = 0; i < (policy_.ensemble_ == 0 ? 1 : 2) * layers; ++i) {
      const bool critic = i >= layers;
      const bool last = i + 1 == layers || i + 1 == 2 * layers;
      const std::array<std::int64_t, 3>& shape = tensors_[next].shape;
      LayerView layer{};
      layer.in = static_cast<int>(shape[critic ? 1 : 0]);
      layer.out = static_cast<int>(shape[critic ? 2 : 1]);
      layer.w = place();
      layer.b = place();
      if (critic && !last) {
        layer.g = place();
        layer.c = place();
      }
      (critic ? policy_.critic_ : policy_.actor_).push_back(layer);
    }
    if (policy_.has_ood_) {
      policy_.ood_mean_ = place();
      policy_.ood_whiten_ = place();
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const float* const first = data + tensors_[i].begin / sizeof(float);
      const float* const last = data + tensors_[i].end / sizeof(float);
      const float* const bad = std::find_if_not(first, last, finite);
      if (bad != last) {
        return refuse("the tensor " + tensor_name(i) + " holds a value that is not finite, at index " +
                          std::to_string(bad - first),
                      "The training diverged, or the file is damaged: save a good checkpoint.");
      }
    }
    return true;
  }

  PolicyFile& policy_;
  std::size_t size_;
  const std::string& name_;
  std::size_t header_size_ = 0;
  std::size_t data_size_ = 0;
  std::string metadata_;
  std::int64_t format_ = 0;
  bool has_form_ = false;
  std::array<std::size_t, kFields> position_{};
  std::array<json::Kind, kFields> kind_{};
  std::string unknown_;
  std::vector<Tensor> tensors_;
  std::string message_;
};

PolicyFile::Result PolicyFile::finish(std::unique_ptr<PolicyFile> policy, std::size_t size,
                                      const std::string& name, Digest digest) {
  PolicyParser parser(*policy, size, name);
  if (!parser.run(digest)) return {nullptr, Outcome::refused, parser.message()};
  return {std::move(policy), Outcome::loaded, {}};
}

}  // namespace sorl
