// Reads the policy file that sorl_fast.act.policy_file writes, and refuses every other byte string.
//
// The file is safetensors: a u64 length, a JSON header, float32 data; the header's one metadata key
// `sorl_fast` holds a JSON object with the dimensions and bounds and the SHA-256 of the whole file,
// its own 64 digits taken as '0'. Whatever the bytes are, loading neither crashes nor holds more than
// twice their number (and a few KiB), and says which field, which value and which bound failed. Refused too is
// the one form that the Python loader takes and the native runtime does not run, a residual diffusion.
// As in the Python loader, env has at most 4096 bytes; config is nested at most 60 deep,
// with at most 256 keys an object and 256 bytes a key.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "choice.hpp"
#include "engine.hpp"
#include "form.hpp"
#include "ood.hpp"

namespace sorl {

/// An immutable policy: the file's weights, in its own memory, and what the metadata says of them.
class PolicyFile {
 public:
  enum class Digest { check, ignore };
  enum class Outcome { loaded, unreadable, refused };

  /// Reads `path` whole. On failure `policy` is empty and `message` names file, field, value, bound.
  struct Result {
    std::unique_ptr<const PolicyFile> policy;
    Outcome outcome = Outcome::refused;
    std::string message;
  };
  static Result load(const std::string& path);

  /// The same from memory, which is copied. `name` stands for the file in messages.
  /// Digest::ignore is for the fuzzer, which could never get past the digest.
  static Result parse(const void* bytes, std::size_t size, const std::string& name,
                      Digest digest = Digest::check);

  /// The contract with the engine: pointers into this object.
  PolicyView view() const;

  const std::string& env() const { return env_; }
  const std::string& sha256() const { return sha256_; }

 private:
  friend class PolicyParser;

  // Checks the bytes in storage_ and fills in the rest: policy_parser.cpp.
  static Result finish(std::unique_ptr<PolicyFile> policy, std::size_t size, const std::string& name,
                       Digest digest);

  int obs_dim_ = 0;
  int act_dim_ = 0;
  int chunk_ = 1;
  int hidden_ = 0;
  int depth_ = 0;
  int ensemble_ = 0;
  int m_disc_ = 0;
  int m_btt_ = 0;
  bool q_min_ = false;
  Form form_;
  bool has_choice_ = false;
  Choice choice_;
  std::string env_;
  std::string sha256_;
  std::vector<float> action_low_;
  std::vector<float> action_high_;
  std::vector<float> map_low_;  // empty: actions are returned as they are
  std::vector<float> map_high_;
  std::vector<float> obs_mean_;  // empty: observations are taken as they are
  std::vector<float> obs_std_;
  bool has_ood_ = false;
  OodNumbers ood_;
  const float* ood_mean_ = nullptr;  // into storage_
  const float* ood_whiten_ = nullptr;
  std::unique_ptr<float[]> storage_;  // the file; its data section starts at the first float
  std::vector<LayerView> actor_;
  std::vector<LayerView> critic_;
};

}  // namespace sorl
