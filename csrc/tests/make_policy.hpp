// Policy files for the tests, written here so that they need neither Python nor a trained policy.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../sha256.hpp"

namespace sorl_test {

struct Spec {
  int obs_dim = 3;
  int act_dim = 2;
  int hidden = 5;
  int depth = 2;
  int ensemble = 2;
  int m_disc = 8;
  bool q_min = false;
  bool normaliser = true;
  std::string form = "";    // JSON; none: a shortcut's, of format 1
  std::string choice = "";  // JSON; none: format 1 or 2
  std::string map = "";     // JSON; none: format 1, 2 or 3, or null in 5
  std::string chunk = "";   // JSON; none: format 1 to 4, or 1 in 6
  std::string ood = "";     // JSON; none: format 1 to 5
};

// What tells observations that are out of distribution; of those that the tests make it tells some.
inline const std::string kOod = "{\"threshold\":1.5,\"rate\":0.01,\"measured\":0.0125}";
// A form of each kind that the native runtime runs.
inline const std::string kEuler = "{\"kind\":\"euler\",\"counts\":[3,10]}";
inline const std::string kDirect =
    "{\"kind\":\"direct\",\"reads_noise\":false,\"temperature\":0.5,\"noise_scale\":0.75,\"noise_clip\":0.25}";
inline const std::string kReading =
    "{\"kind\":\"direct\",\"reads_noise\":true,\"temperature\":0,\"noise_scale\":1.0,\"noise_clip\":null}";
inline const std::string kTanh =
    "{\"kind\":\"tanh\",\"reads_noise\":false,\"temperature\":0.0,\"noise_scale\":0.2,\"noise_clip\":null}";
inline const std::string kDiffusion =
    "{\"kind\":\"diffusion\",\"times\":[0.75,0.5,0.25,0],\"z_scales\":[2.0,1.5,1.25,1],"
    "\"v_scales\":[-0.75,-0.5,-0.25,-0.1],\"noise_scales\":[0.5,0,0.25,0.0],\"clip\":1.5,\"temperature\":1.0,"
    "\"blocks\":0,\"frequencies\":0}";

/// The parts of a policy file before they are joined; tests change them.
struct Parts {
  std::string metadata;  // the JSON object, sha256 64 zeros
  std::string tensors;   // the header's entries behind __metadata__, each led by a comma
  std::string data;
};

inline std::string list(const std::vector<long>& values) {
  std::string out = "[";
  for (const long value : values) out += (out.size() > 1 ? "," : "") + std::to_string(value);
  return out + "]";
}

inline Parts make_parts(const Spec& s) {
  Parts parts;
  std::uint32_t state = 12345;
  const auto uniform = [&state] {  // in [-1, 1), a linear congruential generator
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<std::int32_t>(state) / 2147483648.0);
  };
  const auto add = [&](const std::string& name, const std::vector<long>& shape, float offset, float scale) {
    std::size_t count = 1;
    for (const long n : shape) count *= static_cast<std::size_t>(n);
    const std::size_t begin = parts.data.size();
    for (std::size_t i = 0; i < count; ++i) {
      const float value = offset + scale * uniform();
      parts.data.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    parts.tensors += ",\"" + name + "\":{\"dtype\":\"F32\",\"shape\":" + list(shape) +
                     ",\"data_offsets\":[" + std::to_string(begin) + "," +
                     std::to_string(parts.data.size()) + "]}";
  };
  // weights as a training starts from
  const auto bound = [](long in, long out) { return std::sqrt(6.0f / static_cast<float>(in + out)); };
  for (int i = 0; i <= s.depth; ++i) {
    const std::string layer = "actor/" + std::to_string(i) + "/";
    const long in = i == 0 ? s.obs_dim + s.act_dim + 2 : s.hidden;
    const long out = i == s.depth ? s.act_dim : s.hidden;
    add(layer + "w", {in, out}, 0, bound(in, out));
    add(layer + "b", {out}, 0, 0.1f);
  }
  for (int i = 0; s.ensemble != 0 && i <= s.depth; ++i) {
    const std::string layer = "critic/" + std::to_string(i) + "/";
    const long in = i == 0 ? s.obs_dim + s.act_dim + 1 : s.hidden;
    const long out = i == s.depth ? 1 : s.hidden;
    add(layer + "w", {s.ensemble, in, out}, 0, bound(in, out));
    add(layer + "b", {s.ensemble, out}, 0, 0.1f);
    if (i == s.depth) break;
    add(layer + "g", {s.ensemble, out}, 1, 0.1f);
    add(layer + "c", {s.ensemble, out}, 0, 0.1f);
  }
  if (!s.ood.empty()) {
    add("ood/mean", {s.obs_dim}, 0, 0.1f);
    add("ood/whiten", {s.obs_dim, s.obs_dim}, 0, 1);
  }
  const auto repeat = [](const char* value, int count) {
    std::string out = "[";
    for (int i = 0; i < count; ++i) out += (i != 0 ? "," : "") + std::string(value);
    return out + "]";
  };
  const bool formed = !s.form.empty();
  // Each field that came with a later format: in that one and all behind it.
  const std::pair<const char*, const std::string*> later[] = {
      {"form", &s.form}, {"choice", &s.choice}, {"action_map", &s.map}, {"chunk", &s.chunk}, {"ood", &s.ood}};
  int format = 1;
  for (int i = 0; i < 5; ++i)
    if (!later[i].second->empty()) format = i + 2;
  std::string fields;
  for (int i = 0; i + 2 <= format; ++i)
    fields += std::string(",\"") + later[i].first + "\":" + (!later[i].second->empty() ? *later[i].second : i == 3 ? "1" : "null");
  parts.metadata = "{\"format\":" + std::to_string(format) + ",\"obs_dim\":" + std::to_string(s.obs_dim) +
                   ",\"act_dim\":" + std::to_string(s.act_dim) +
                   ",\"hidden\":" + std::to_string(s.hidden) + ",\"depth\":" + std::to_string(s.depth) +
                   ",\"ensemble\":" + std::to_string(s.ensemble) +
                   ",\"m_disc\":" + std::to_string(formed ? 1 : s.m_disc) + ",\"m_btt\":1,\"q_agg\":\"" +
                   (s.q_min ? "min" : "mean") + "\",\"env\":\"test-v0\",\"action_low\":" +
                   repeat("-1.0", s.act_dim) + ",\"action_high\":" + repeat("0.75", s.act_dim) +
                   ",\"obs_mean\":" + (s.normaliser ? repeat("0.25", s.obs_dim) : "null") +
                   ",\"obs_std\":" + (s.normaliser ? repeat("1.5", s.obs_dim) : "null") +
                   fields + ",\"config\":{\"hidden\":5,\"nested\":{\"list\":[1,2.5,true,null]}},\"sha256\":\"" +
                   std::string(64, '0') + "\"}";
  return parts;
}

/// Replaces the first `from` by `to`; `from` must be there.
inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) std::abort();
  return text.replace(at, from.size(), to);
}

/// The file: header, data and a true digest in place of the metadata's last 64 zeros.
inline std::string join(const Parts& parts, const std::string& padding = "") {
  std::string escaped;
  for (const char c : parts.metadata) escaped += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  const std::string header =
      "{\"__metadata__\":{\"sorl_fast\":\"" + escaped + "\"}" + parts.tensors + "}" + padding;
  const std::uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  file += header;
  const std::size_t digest = file.rfind(std::string(64, '0'));
  file += parts.data;
  if (digest == std::string::npos) return file;  // a test took it out
  sorl::Sha256 sum;
  sum.update(file.data(), file.size());
  return file.replace(digest, 64, sum.hex());
}

inline std::string make_policy(const Spec& spec = {}) { return join(make_parts(spec)); }

}  // namespace sorl_test
