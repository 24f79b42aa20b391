// The loader: what it accepts, that it refuses everything else by name, and how much memory it takes.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "../json.hpp"
#include "../policy_file.hpp"
#include "../sha256.hpp"
#include "check.hpp"
#include "make_policy.hpp"

namespace {

std::size_t held = 0;
std::size_t peak = 0;

}  // namespace

// Every allocation of this program, counted: its size stands in the 16 bytes before it.
void* operator new(std::size_t size) {
  auto* block = static_cast<char*>(std::malloc(size + 16));
  if (block == nullptr) throw std::bad_alloc();
  std::memcpy(block, &size, sizeof size);
  held += size;
  peak = std::max(peak, held);
  return block + 16;
}
void operator delete(void* memory) noexcept {
  if (memory == nullptr) return;
  char* const block = static_cast<char*>(memory) - 16;
  std::size_t size = 0;
  std::memcpy(&size, block, sizeof size);
  held -= size;
  std::free(block);
}
void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
void* operator new[](std::size_t size) { return operator new(size); }
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::size_t) noexcept { operator delete(memory); }

namespace {

using namespace sorl_test;
using sorl::PolicyFile;
using Outcome = PolicyFile::Outcome;

PolicyFile::Result parse(const std::string& bytes) {
  return PolicyFile::parse(bytes.data(), bytes.size(), "p.safetensors");
}

void refused(const std::string& bytes, const std::string& expected) {
  const PolicyFile::Result result = parse(bytes);
  const bool named = result.message.find(expected) != std::string::npos &&
                     result.message.compare(0, 15, "p.safetensors: ") == 0;
  if (result.outcome != Outcome::refused || result.policy || !named) {
    std::fprintf(stderr, "expected '%s', got outcome %d: %s\n", expected.c_str(),
                 static_cast<int>(result.outcome), result.message.c_str());
    std::exit(1);
  }
}

void sha256_vectors() {
  const auto digest = [](const std::string& text) {
    sorl::Sha256 sum;
    sum.update(text.data(), text.size());
    return sum.hex();
  };
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(digest(std::string(1000000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  const std::string text(200, 'x');
  for (std::size_t split = 0; split <= text.size(); ++split) {
    sorl::Sha256 sum;
    sum.update(text.data(), split);
    sum.update(text.data() + split, text.size() - split);
    CHECK(sum.hex() == digest(text));
  }
}

bool valid_json(const std::string& text) {
  sorl::json::Reader reader(text.data(), text.size());
  const bool valid = reader.skip() && reader.finish();
  CHECK(valid == reader.error().empty());
  return valid;
}

void json_grammar() {
  const std::string deep(61, '[');
  const std::string closed(61, ']');
  for (const std::string& text : {
           std::string("null"), std::string(" true "), std::string("false"), std::string("0"),
           std::string("-0"), std::string("-0.5e+10"), std::string("1E5"), std::string("12345678901234567890123"),
           std::string("\"\""), std::string("\"\\u00e9\\ud83d\\ude00\\n\\/\""),
           std::string("\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\""), std::string("[]"), std::string("{}"),
           std::string("[1, [2], {\"a\": {}}]"), std::string("{\"a\":1,\"b\":{\"a\":2}}"), deep + closed}) {
    if (!valid_json(text)) std::fprintf(stderr, "%s\n", text.c_str());
    CHECK(valid_json(text));
    for (std::size_t n = 0; n < text.size(); ++n) valid_json(text.substr(0, n));  // and never crashes
  }
  std::string many = "{";
  for (int i = 0; i <= 256; ++i) many += (i != 0 ? ",\"" : "\"") + std::to_string(i) + "\":0";
  for (const std::string& text : {
           std::string(""), std::string(" "), std::string("nul"), std::string("True"), std::string("NaN"),
           std::string("Infinity"), std::string("-"), std::string("01"), std::string("+1"), std::string("1."),
           std::string(".5"), std::string("1e"), std::string("1e999"), std::string("0x10"), std::string("\""),
           std::string("\"\\x\""), std::string("\"\\u12\""), std::string("\"\\u12G4\""), std::string("\"\\"),
           std::string("\"\\ud800\""), std::string("\"\\ud800\\u0041\""), std::string("\"\\udc00\""),
           std::string("\"\\ud800x\""), std::string("\"\n\""), std::string("\"\x80\""), std::string("\"\xC0\x80\""),
           std::string("\"\xE0\x80\x80\""), std::string("\"\xED\xA0\x80\""), std::string("\"\xF5\x80\x80\x80\""),
           std::string("\"\xF4\x90\x80\x80\""), std::string("\"\xC3"), std::string("\"\xC3\""), std::string("["),
           std::string("[1,]"), std::string("[,1]"), std::string("[1 2]"), std::string("[1}"), std::string("{"),
           std::string("{\"a\"}"), std::string("{\"a\":}"), std::string("{\"a\":1,}"), std::string("{a:1}"),
           std::string("{\"a\":1 \"b\":2}"), std::string("{\"a\":1,\"a\":2}"), std::string("{\"a\":1,\"\\u0061\":2}"),
           std::string("1 2"), std::string("\xEF\xBB\xBF""1"), "[" + deep + closed + "]", many + "}",
           "{\"" + std::string(257, 'k') + "\":1}"}) {
    if (valid_json(text)) std::fprintf(stderr, "%s\n", text.c_str());
    CHECK(!valid_json(text));
  }
}

void json_strings() {
  const std::string text = "\"a\\u00e9\\ud83d\\ude00\\b\\f\\n\\r\\t\\\"\\\\\\/\xE2\x82\xAC\"";
  sorl::json::Reader reader(text.data(), text.size());
  std::string out;
  CHECK(reader.string(out, 64) && reader.finish());
  CHECK(out == "a\xC3\xA9\xF0\x9F\x98\x80\b\f\n\r\t\"\\/\xE2\x82\xAC");
  sorl::json::Reader again(text.data(), text.size());
  CHECK(!again.string(out, 5));
}

void loads() {
  for (const Spec& spec : {Spec{}, Spec{1, 1, 1, 1, 1, 1, true, false}, Spec{28, 5, 17, 4, 3, 64, true, true}}) {
    const Parts parts = make_parts(spec);
    // whatever the header's length, the floats end up aligned
    for (const char* padding : {"", " ", "  ", "   ", "\n\t\r "}) {
      const PolicyFile::Result result = parse(join(parts, padding));
      if (!result.policy) std::fprintf(stderr, "%s\n", result.message.c_str());
      CHECK(result.outcome == Outcome::loaded && result.policy && result.message.empty());
      const sorl::PolicyView view = result.policy->view();
      CHECK(view.obs_dim == spec.obs_dim && view.act_dim == spec.act_dim && view.hidden == spec.hidden);
      CHECK(view.depth == spec.depth && view.ensemble == spec.ensemble && view.m_disc == spec.m_disc);
      CHECK(view.m_btt == 1 && view.q_min == spec.q_min);
      CHECK((view.obs_mean != nullptr) == spec.normaliser && (view.obs_std != nullptr) == spec.normaliser);
      CHECK(view.action_low[spec.act_dim - 1] == -1 && view.action_high[0] == 0.75f);
      CHECK(!spec.normaliser || (view.obs_mean[spec.obs_dim - 1] == 0.25f && view.obs_std[0] == 1.5f));
      CHECK(result.policy->env() == "test-v0" && result.policy->sha256().size() == 64);
      const char* data = parts.data.data();
      const auto same = [&data](const float* floats, int count) {
        CHECK(reinterpret_cast<std::uintptr_t>(floats) % sizeof(float) == 0);
        CHECK(std::memcmp(floats, data, sizeof(float) * static_cast<std::size_t>(count)) == 0);
        data += sizeof(float) * static_cast<std::size_t>(count);
      };
      for (int i = 0; i <= spec.depth; ++i) {
        const sorl::LayerView& layer = view.actor[i];
        CHECK(layer.in == (i == 0 ? spec.obs_dim + spec.act_dim + 2 : spec.hidden));
        CHECK(layer.out == (i == spec.depth ? spec.act_dim : spec.hidden));
        CHECK(layer.g == nullptr && layer.c == nullptr);
        same(layer.w, layer.in * layer.out);
        same(layer.b, layer.out);
      }
      for (int i = 0; i <= spec.depth; ++i) {
        const sorl::LayerView& layer = view.critic[i];
        CHECK(layer.in == (i == 0 ? spec.obs_dim + spec.act_dim + 1 : spec.hidden));
        CHECK(layer.out == (i == spec.depth ? 1 : spec.hidden));
        same(layer.w, spec.ensemble * layer.in * layer.out);
        same(layer.b, spec.ensemble * layer.out);
        CHECK((layer.g == nullptr) == (i == spec.depth) && (layer.c == nullptr) == (i == spec.depth));
        if (i == spec.depth) break;
        same(layer.g, spec.ensemble * layer.out);
        same(layer.c, spec.ensemble * layer.out);
      }
      CHECK(data == parts.data.data() + parts.data.size());
    }
  }
}

// Without a new digest: no damage of any byte, and no length but the true one, gets through.
void damage() {
  const std::string good = make_policy({1, 1, 2, 1, 1, 2, false, true});
  for (std::size_t n = 0; n < good.size(); ++n) CHECK(parse(good.substr(0, n)).outcome == Outcome::refused);
  CHECK(parse(good + std::string(1, '\0')).outcome == Outcome::refused);
  CHECK(parse(good + good).outcome == Outcome::refused);
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 1 << bit);
      CHECK(parse(bad).outcome == Outcome::refused);
    }
  }
}

// With a new digest: the checks of each field, by name.
void metadata_fields() {
  const Parts good = make_parts({});
  const auto with = [&good](const std::string& from, const std::string& to) {
    Parts parts = good;
    parts.metadata = replaced(parts.metadata, from, to);
    return join(parts);
  };
  CHECK(parse(with("\"env\":\"test-v0\"", "\"env\":\"\\u00e9\"")).policy);
  for (const char* field : {"format", "obs_dim", "act_dim", "hidden", "depth", "ensemble", "m_disc", "m_btt"}) {
    const std::string key = std::string("\"") + field + "\":";
    const std::size_t at = good.metadata.find(key) + key.size();
    const std::string value = good.metadata.substr(at, good.metadata.find(',', at) - at);
    for (const char* bad : {"0", "-1", "3.0", "1e0", "true", "null", "\"1\"", "[1]", "{}", "99999999",
                            "2147483647", "4294967297", "99999999999999999999999"}) {
      refused(with(key + value, key + bad), field);
    }
    refused(with(key + value + ",", ""), std::string("lacks the field ") + field);
    refused(with(key + value, key + value + "," + key + value), std::string(field) + " stands twice");
  }
  refused(with("\"format\":1", "\"format\":99"), "format is 99, but this version reads 1 to ");
  refused(with("\"format\":1", "\"format\":99,\"novel\":3"), "format is 99");
  refused(with("\"format\":1", "\"format\":4"), "lacks the field form");
  refused(with("\"format\":1", "\"format\":3"), "lacks the field form");
  refused(with("\"format\":1", "\"format\":2"), "lacks the field form");
  refused(with("\"config\"", "\"form\":{},\"config\""), "unknown field \"form\"");
  refused(with("\"obs_dim\":3", "\"obs_dim\":4"), "obs_mean");
  refused(with("\"act_dim\":2", "\"act_dim\":1"), "action_low");
  refused(with("\"hidden\":5", "\"hidden\":6"), "tensor actor/0/w");
  refused(with("\"depth\":2", "\"depth\":1"), "axis 1 of tensor actor/1/w");
  refused(with("\"depth\":2", "\"depth\":3"), "axis 1 of tensor actor/2/w");
  refused(with("\"depth\":2", "\"depth\":60"), "depth is 60, more layers");
  refused(with("\"ensemble\":2", "\"ensemble\":1"), "tensor critic/0/w");
  for (const char* m : {"3", "6", "2097152"}) {
    refused(with("\"m_disc\":8", std::string("\"m_disc\":") + m), "m_disc is " + std::string(m));
  }
  CHECK(parse(with("\"m_btt\":1", "\"m_btt\":8")).policy);
  refused(with("\"m_btt\":1", "\"m_btt\":16"), "m_btt is 16, but must be a power of two, at most 8");
  for (const char* bad : {"\"max\"", "\"\"", "null", "1", "[\"mean\"]"}) {
    refused(with("\"q_agg\":\"mean\"", std::string("\"q_agg\":") + bad), "q_agg is ");
  }
  refused(with("\"env\":\"test-v0\"", "\"env\":1"), "env is ");
  refused(with("\"env\":\"test-v0\"", "\"env\":\"" + std::string(4097, 'e') + "\""), "env is ");
  for (const char* bad : {"null", "1", "[]", "[-1.0]", "[-1.0,-1.0,-1.0]", "[-1.0,null]", "[-1.0,\"0\"]",
                          "[-1.0,[0]]", "[-1.0,1e39]", "[-1.0,true]"}) {
    refused(with("\"action_low\":[-1.0,-1.0]", std::string("\"action_low\":") + bad), "action_low is ");
  }
  refused(with("\"action_low\":[-1.0,-1.0]", "\"action_low\":[-1.0,1e999]"), "out of range");
  refused(with("\"action_low\":[-1.0,-1.0]", "\"action_low\":[-1.0,NaN]"), "expected a value");
  refused(with("\"action_low\":[-1.0,-1.0]", "\"action_low\":[-1.0,0.75]"),
          "action_low[1] is 0.75, but must be below action_high[1] = 0.75");
  refused(with("\"obs_mean\":[0.25,0.25,0.25]", "\"obs_mean\":null"), "one of obs_mean and obs_std");
  refused(with("\"obs_std\":[1.5,1.5,1.5]", "\"obs_std\":null"), "one of obs_mean and obs_std");
  refused(with("\"obs_mean\":[0.25,0.25,0.25]", "\"obs_mean\":{}"), "obs_mean is no list");
  for (const char* bad : {"0", "-1", "-0.0", "1e-300"}) {
    refused(with("\"obs_std\":[1.5,", std::string("\"obs_std\":[") + bad + ","), "obs_std[0] is ");
  }
  for (const char* bad : {"null", "[]", "1", "\"\""}) {
    refused(with("{\"hidden\":5,\"nested\":{\"list\":[1,2.5,true,null]}}", bad), "config is none");
  }
  refused(with("\"nested\"", "\"hidden\":6,\"nested\""), "the key \"hidden\" stands twice");
  refused(with("{\"format\"", "{\"novel\":1,\"format\""), "unknown field \"novel\"");
  refused(with("{\"format\"", "{\"n\\u001b[31m\":1,\"format\""), "unknown field \"n?[31m\"");
  refused(with("\"}", "\"} 1"), "something follows");
  refused(with("{\"format\"", "[{\"format\""), "in its metadata: expected '{'");
  Parts parts = good;
  const std::string zeros(64, '0');
  for (const std::string& bad : {std::string("\"\""), "\"" + zeros + "0\"", "\"" + std::string(64, 'A') + "\"",
                                 std::string("null"), std::string("7"), "[\"" + zeros + "\"]"}) {
    parts.metadata = replaced(good.metadata, "\"" + zeros + "\"", bad);
    refused(join(parts), "sha256 is malformed");
  }
  parts.metadata = replaced(good.metadata, zeros, std::string(64, '1'));
  refused(join(parts), "sha256 is 1111");
  parts.metadata = replaced(good.metadata, zeros, "\\u0061" + std::string(63, '2'));
  refused(join(parts), "written with escapes");
}

// Of format 3. Every value is in tests/native/test_loader.py: here that messages name the field.
void choices() {
  const auto of = [](const std::string& rule, const std::string& steps, const std::string& candidates,
                     const std::string& form = "", int ensemble = 2) {
    Spec spec;
    spec.form = form;
    spec.ensemble = ensemble;
    spec.choice = "{\"rule\":\"" + rule + "\",\"steps\":" + steps + ",\"candidates\":" + candidates + "}";
    return make_policy(spec);
  };
  const auto loaded = [](const std::string& bytes) {
    auto result = sorl::PolicyFile::parse(bytes.data(), bytes.size(), "test");
    CHECK(result.policy != nullptr && result.policy->view().choice != nullptr);
    return *result.policy->view().choice;
  };
  const sorl::Choice choice = loaded(of("medoid:1/3", "[0.5,0.25,0.25]", "7"));
  CHECK(choice.rule.kind == sorl::Rule::Kind::medoid && choice.rule.numerator == 1 && choice.rule.denominator == 3);
  CHECK(choice.sizes == std::vector<double>({0.5, 0.25, 0.25}) && choice.candidates == 7);
  CHECK(loaded(of("argmax", "16", "1")).sizes.size() == 16);
  CHECK(loaded(of("centre", "10", "3", kEuler, 0)).sizes == std::vector<double>(10, 0.1));
  refused(of("medoid:2/4", "1", "2"), "choice rule is wrong, but must be a rule's full name");
  refused(of("argmax", "17", "2"), "choice steps has 17 steps, but the policy acts with 1, 2, 4, 8, and with at most 16");
  refused(of("argmax", "[0.5,0.25]", "2"), "choice steps has sizes that sum to 0.75");
  refused(of("argmax", "[0.5,-0.5]", "2"), "choice a step's size is -0.5");
  refused(of("argmax", "1", "4097"), "choice candidates is 4097, but must be an integer from 1 to 4096");
  refused(of("argmax", "4", "2", kEuler), "choice steps has 4 steps, but the policy acts with 3, 10");
  refused(of("argmax", "3", "2", kEuler, 0), "choice candidates is 2, but this policy has no critic");
}

// Of format 4. Every value is in tests/native/test_loader.py: here that messages name the field.
void maps() {
  const auto of = [](const std::string& low, const std::string& high) {
    Spec spec;
    spec.map = "{\"low\":" + low + ",\"high\":" + high + "}";
    return spec;
  };
  Spec spec = of("[-2.5,0.5]", "[-2,3]");
  for (const char* choice : {"", "{\"rule\":\"argmax\",\"steps\":1,\"candidates\":2}"}) {
    for (const std::string& form : {std::string(), kDirect}) {
      spec.choice = choice;
      spec.form = form;
      const PolicyFile::Result result = parse(make_policy(spec));
      if (!result.policy) std::fprintf(stderr, "%s\n", result.message.c_str());
      CHECK(result.outcome == Outcome::loaded);
      const sorl::PolicyView view = result.policy->view();
      CHECK(view.map_low[0] == -2.5f && view.map_low[1] == 0.5f && view.map_high[0] == -2 && view.map_high[1] == 3);
      CHECK((view.choice != nullptr) == !spec.choice.empty());
      CHECK((view.form->kind == sorl::Form::Kind::direct) == !form.empty());
    }
  }
  CHECK(parse(make_policy(Spec{})).policy->view().map_low == nullptr);
  refused(make_policy(of("[0]", "[1,1]")), "action_map low is a list of 1, but must be a list of 2 finite numbers");
  refused(make_policy(of("[0,0]", "[1,1,1]")), "action_map high is wrong (");
  refused(make_policy(of("[0,1e-40]", "[1,1]")), "action_map low[1] is 9.99");
  refused(make_policy(of("[0,0]", "[1,1e38]")), "action_map high[1] is 9.99");
  refused(make_policy(of("[0,2]", "[1,1]")), "action_map low[1] is 2, but must be at most high[1] = 1");
  spec = of("[0,0]", "[1,1]");
  spec.map = "[1]";
  refused(make_policy(spec), "action_map is no object");
  spec.map = "{\"low\":[0,0]}";
  refused(make_policy(spec), "action_map high is missing, but must be there");
  spec.map = "{\"low\":[0,0],\"high\":[1,1],\"unit\":1}";
  refused(make_policy(spec), "it has a field that is neither low nor high");
  Parts parts = make_parts(of("[0,0]", "[1,1]"));
  parts.metadata = replaced(parts.metadata, "\"action_high\":[0.75,0.75]", "\"action_high\":[0.75,1.5]");
  refused(join(parts), "action_high[1] is 1.5, but must be in [-1, 1] where there is an action_map");
}

// Of format 2. Every value of VALUES is in tests/native/test_loader.py: here that messages name the field.
void forms() {
  using Kind = sorl::Form::Kind;
  const auto spec = [](const std::string& form, int ensemble = 2) {
    return Spec{3, 2, 5, 2, ensemble, 8, false, true, form};
  };
  const auto loaded = [&](const std::string& form, Kind kind, const std::vector<int>& counts, int draws) {
    for (const int ensemble : {0, 2}) {
      const PolicyFile::Result result = parse(make_policy(spec(form, ensemble)));
      if (!result.policy) std::fprintf(stderr, "%s\n", result.message.c_str());
      CHECK(result.outcome == Outcome::loaded);
      const sorl::PolicyView view = result.policy->view();
      CHECK(view.ensemble == ensemble && view.m_disc == 1 && view.m_btt == 1);
      CHECK(view.form->kind == kind && view.form->counts == counts && view.form->draws() == draws);
    }
  };
  loaded(kEuler, Kind::euler, {3, 10}, 1);
  loaded(kDirect, Kind::direct, {1}, 1);
  loaded(kReading, Kind::direct, {1}, 1);
  loaded(kTanh, Kind::tanh, {1}, 1);
  loaded(kDiffusion, Kind::diffusion, {4}, 4);
  loaded(replaced(kDiffusion, "0.25,0.0]", "0.0,0.0]"), Kind::diffusion, {4}, 2);
  loaded(replaced(kDiffusion, "[0.5,0,0.25,0.0]", "[0,0,0,-0.0]"), Kind::diffusion, {4}, 1);
  loaded(replaced(kDiffusion, "1.5,\"temp", "null,\"temp"), Kind::diffusion, {4}, 4);
  const auto wrong = [&](const std::string& form, const std::string& from, const std::string& to,
                         const std::string& expected) {
    refused(make_policy(spec(replaced(form, from, to))), expected);
  };
  for (const char* bad : {"[]", "null", "3", "[0]", "[3,3]", "[3,1025]", "[3.0]", "[1,2,3,4,5,6,7,8,9,10,11,12]"})
    wrong(kEuler, "[3,10]", bad, "form counts is ");
  wrong(kEuler, "\"counts\"", "\"clip\"", "form counts is missing");
  wrong(kEuler, "[3,10]", "[3,10],\"clip\":null", "form clip is there, but must be absent");
  wrong(kEuler, "[3,10]", "[3,10],\"colour\":1", "form has a field that no form of the kind euler has");
  wrong(kEuler, "[3,10]", "[3,10],\"counts\":[3]", "stands twice");
  wrong(kEuler, "\"euler\"", "\"sac\"", "form kind is none of them");
  wrong(kEuler, kEuler, "[1]", "form is no object");
  wrong(kDirect, "false", "0", "form reads_noise is neither");
  wrong(kDirect, "false", "true", "form temperature is not 0, but must be 0 where reads_noise is true");
  for (const char* bad : {"-0.5", "null", "1e39", "\"1\"", "true", "-1e-60"})
    wrong(kDirect, "0.75", bad, "form noise_scale is wrong, but must be a finite float32 number of at least 0");
  for (const char* bad : {"0", "-1", "1e-60", "true"})
    wrong(kDirect, "0.25", bad, "form noise_clip is wrong, but must be null, or");
  wrong(kDiffusion, "[0.75,0.5,0.25,0]", "[]", "form times is a list of 0");
  wrong(kDiffusion, "[2.0,1.5,1.25,1]", "[2.0]", "form z_scales is a list of 1, but must be a list of 4 numbers");
  wrong(kDiffusion, "[0.5,0,", "[0.5,-1,", "form noise_scales is wrong");
  wrong(kDiffusion, "\"blocks\":0", "\"blocks\":65", "form blocks is 65, but must be an integer from 0 to 64");
  wrong(kDiffusion, "\"blocks\":0", "\"blocks\":1", "form frequencies is 0");
  wrong(kDiffusion, "\"blocks\":0,\"frequencies\":0", "\"blocks\":1,\"frequencies\":2",
        "the native runtime does not run. Act with it from Python: backend numpy or torch.");
  Parts parts = make_parts(spec(kEuler));
  parts.metadata = replaced(parts.metadata, "\"m_disc\":1", "\"m_disc\":2");
  refused(join(parts), "m_disc is 2, but must be 1 where there is a form");
  parts = make_parts(spec(kEuler));
  parts.metadata = replaced(parts.metadata, "\"ensemble\":2", "\"ensemble\":0");
  refused(join(parts), "unknown tensor \"critic/0/w\"");
}

void tensor_entries() {
  const Parts good = make_parts({});
  const auto with = [&good](const std::string& from, const std::string& to) {
    Parts parts = good;
    parts.tensors = replaced(parts.tensors, from, to);
    return join(parts);
  };
  const std::string entry = ",\"actor/0/b\":{\"dtype\":\"F32\",\"shape\":[5],\"data_offsets\":[140,160]}";
  refused(with(entry, ""), "the tensor actor/0/b is missing");
  refused(with(entry, entry + entry), "the tensor actor/0/b stands twice");
  for (const char* name : {"actor/00/b", "actor/3/b", "actor/0/bb", "actor/0/g", "actor//b", "actor/-1/b", "actor",
                           "critic/2/g", "critic/2/c", "critic/9/w", "critic/99999999999/w", "actor/0/", "", "x"}) {
    refused(with("actor/0/b", name), "unknown tensor");
  }
  for (const char* dtype : {"F16", "BF16", "F64", "I32", "f32", ""}) {
    refused(with("actor/0/b\":{\"dtype\":\"F32\"", std::string("actor/0/b\":{\"dtype\":\"") + dtype + "\""),
            "the dtype of actor/0/b is");
  }
  const auto entry_with = [&](const std::string& from, const std::string& to) {
    return with(entry, replaced(entry, from, to));
  };
  for (const char* bad : {"3", "null", "\"F32F32F32F32F32F32\"", "[]"}) {
    refused(entry_with("\"F32\"", bad), "header");
  }
  for (const char* bad : {"[4]", "[6]", "[0]", "[-5]"}) refused(entry_with("[5]", bad), "axis 0 of tensor actor/0/b");
  for (const char* bad : {"[]", "[5,1]", "5", "null", "[5.0]", "[\"5\"]", "[99999999999999999999]"}) {
    refused(entry_with("[5]", bad), "header");
  }
  for (const char* bad : {"[140,161]", "[141,160]", "[160,140]", "[-20,0]", "[0,9223372036854775807]",
                          "[-9223372036854775808,9223372036854775807]"}) {
    refused(entry_with("[140,160]", bad), "data_offsets of tensor actor/0/b");
  }
  for (const char* bad : {"[]", "[140]", "[140,160,160]", "null", "[140.0,160]"}) {
    refused(entry_with("[140,160]", bad), "header");
  }
  refused(entry_with("[140,160]", "[120,140]"), "begins at byte");  // overlaps, leaves a hole
  refused(entry_with("\"dtype\"", "\"d\":1,\"dtype\""), "unknown key \"d\"");
  refused(entry_with("\"shape\":[5],", ""), "lacks a key");
  refused(entry_with("\"shape\":[5]", "\"shape\":[5],\"shape\":[5]"), "stands twice");
  refused(with(entry, ",\"actor/0/b\":1"), "expected '{'");
  Parts parts = good;
  parts.tensors += ",\"__metadata__\":{}";
  refused(join(parts), "__metadata__ stands twice");
  parts = good;
  parts.data += std::string(4, '\0');
  refused(join(parts), "bytes of data, but it has");
  parts.data.resize(good.data.size() - 4);
  refused(join(parts), "bytes of data, but it has");
  for (const std::uint32_t bits : {0x7FC00000u, 0x7F800000u, 0xFF800000u, 0xFFFFFFFFu}) {
    parts = good;
    std::memcpy(&parts.data[144], &bits, sizeof bits);
    refused(join(parts), "the tensor actor/0/b holds a value that is not finite, at index 1");
  }
}

void envelopes() {
  const auto file = [](std::uint64_t length, const std::string& rest) {
    return std::string(reinterpret_cast<const char*>(&length), sizeof length) + rest;
  };
  refused("", "0 bytes");
  refused(file(0, "{}"), "header");
  refused(file(1, "{}"), "header");
  refused(file(3, "{}"), "header");
  refused(file(~std::uint64_t{0}, "{}"), "header");
  refused(file(std::uint64_t{1} << 63, "{}"), "header");
  refused(file((1 << 20) + 1, std::string((1 << 20) + 1, ' ')), "header");
  refused(file(2, "{}"), "without the metadata key sorl_fast");
  refused(file(2, "[]"), "expected '{'");
  refused(file(19, "{\"__metadata__\":{}} "), "without the metadata key");
  refused(file(32, "{\"__metadata__\":{\"format\":\"pt\"}}"), "unknown metadata key \"format\"");
  refused(file(31, "{\"__metadata__\":{\"sorl_fast\":1}}"), "expected '\"'");
  const std::string metadata = "{\"__metadata__\":{\"sorl_fast\":\"{}\"}}";
  refused(file(metadata.size(), metadata), "lacks the field format");
}

// However a header lies, no more than twice the file and a few KiB are held while it is refused.
void memory() {
  const auto bounded = [](const std::string& bytes) {
    const std::size_t before = held;
    peak = held;
    parse(bytes);
    const std::size_t used = peak - before;
    if (used > 2 * bytes.size() + 16384) std::fprintf(stderr, "%zu of %zu\n", used, bytes.size());
    CHECK(used <= 2 * bytes.size() + 16384);
  };
  bounded(make_policy({28, 5, 64, 4, 2, 8, true, true}));
  const Parts good = make_parts({});
  Parts parts = good;
  std::string zeros = "0";
  for (int i = 0; i < 200000; ++i) zeros += ",0";
  for (const char* field : {"\"action_low\":[", "\"obs_mean\":["}) {
    parts.metadata = replaced(good.metadata, field, field + zeros + ",");
    bounded(join(parts));
  }
  parts.metadata = replaced(good.metadata, "test-v0", std::string(400000, 'e'));
  bounded(join(parts));
  parts.metadata = replaced(good.metadata, "[1,2.5,true,null]", "[" + zeros + "]");
  CHECK(parse(join(parts)).policy);
  bounded(join(parts));
  for (const char* field : {"\"obs_dim\":3", "\"act_dim\":2", "\"hidden\":5", "\"depth\":2", "\"ensemble\":2"}) {
    for (const char* claim : {"100", "1000", "1000000", "2147483647"}) {
      const std::string name(field, std::strchr(field, ':'));
      parts = good;
      parts.metadata = replaced(good.metadata, field, name + ":" + claim);
      bounded(join(parts));
      parts.data += std::string(1 << 20, '\0');
      bounded(join(parts, std::string(1 << 19, ' ')));
    }
  }
}

void paths() {
  std::string folder = "/tmp/sorl_fast_test_XXXXXX";
  CHECK(mkdtemp(folder.data()) != nullptr);
  const std::string path = folder + "/policy.safetensors";
  const auto unreadable = [](const std::string& file, const std::string& expected) {
    const PolicyFile::Result result = PolicyFile::load(file);
    CHECK(result.outcome == Outcome::unreadable && !result.policy);
    CHECK(result.message.find(file) == 0 && result.message.find(expected) != std::string::npos);
  };
  unreadable(path, "No such file");
  unreadable(folder, "it is no regular file");
  unreadable("/dev/null", "it is no regular file");
  unreadable("", "No such file");
  const std::string good = make_policy();
  std::ofstream(path, std::ios::binary) << good;
  CHECK(PolicyFile::load(path).policy);
  std::ofstream(path, std::ios::binary) << good.substr(0, good.size() - 1);
  const PolicyFile::Result cut = PolicyFile::load(path);
  CHECK(cut.outcome == Outcome::refused && cut.message.find(path) == 0);
  std::ofstream(path, std::ios::binary | std::ios::trunc).flush();
  CHECK(PolicyFile::load(path).outcome == Outcome::refused);
  unlink(path.c_str());
  rmdir(folder.c_str());
}

}  // namespace

int main() {
  sha256_vectors();
  json_grammar();
  json_strings();
  loads();
  damage();
  metadata_fields();
  forms();
  choices();
  maps();
  tensor_entries();
  envelopes();
  memory();
  paths();
  std::puts("policy file: all passed");
}
