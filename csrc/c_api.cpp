// The C interface over the loader and the engine: checks, handles, and no exception beyond it.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "action_map.hpp"
#include "deadline.hpp"
#include "engine.hpp"
#include "policy_file.hpp"
#include "replay.hpp"
#include "sorl_fast/sorl.h"

namespace {

using sorl::Choice;
using sorl::Engine;
using sorl::Isa;
using sorl::Model;
using sorl::PolicyFile;
using sorl::Precision;
using sorl::Rule;
using sorl::Way;

static_assert(SORL_STATUS_NONFINITE_OBS == sorl::nonfinite_obs, "");
static_assert(SORL_STATUS_NONFINITE_RESULT == sorl::nonfinite_result, "");
static_assert(SORL_STATUS_HELD == sorl::held, "");
static_assert(SORL_STATUS_CLIPPED == sorl::clipped, "");
static_assert(SORL_STATUS_CANDIDATE_REJECTED == sorl::candidate_rejected, "");
static_assert(SORL_STATUS_CUT_SHORT == sorl::cut_short, "");
static_assert(SORL_STATUS_OUT_OF_DISTRIBUTION == sorl::out_of_distribution, "");
static_assert(SORL_PRECISION_FP32 == static_cast<int>(Precision::fp32), "");
static_assert(SORL_PRECISION_BF16 == static_cast<int>(Precision::bf16), "");
static_assert(SORL_PRECISION_INT8 == static_cast<int>(Precision::int8), "");

static_assert(SORL_RULE_ARGMAX == 1 + static_cast<int>(Rule::Kind::argmax), "");
static_assert(SORL_RULE_MEDOID == 1 + static_cast<int>(Rule::Kind::medoid), "");
static_assert(SORL_RULE_NEAREST == 1 + static_cast<int>(Rule::Kind::nearest), "");
static_assert(SORL_RULE_BETTER == 1 + static_cast<int>(Rule::Kind::better), "");
static_assert(SORL_RULE_SOFT == 1 + static_cast<int>(Rule::Kind::soft), "");
static_assert(SORL_RULE_CENTRE == 1 + static_cast<int>(Rule::Kind::centre), "");
static_assert(SORL_RULE_CENTRE == Rule::kKinds, "");

constexpr std::uint32_t kStatusBits = 127;

// The packed weights, one Model for each precision and instruction set, kept while a session of it
// lives. Only making a session locks.
class Models {
 public:
  std::shared_ptr<const Model> get(const PolicyFile& policy, Precision precision, Isa isa,
                                   std::string& error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::weak_ptr<const Model>& slot = models_[{precision, isa}];
    std::shared_ptr<const Model> model = slot.lock();
    if (!model) {
      model = Model::make(policy.view(), precision, isa, error);
      slot = model;
    }
    return model;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<Precision, Isa>, std::weak_ptr<const Model>> models_;
};

void write_error(char* error, std::size_t size, const std::string& text) noexcept {
  if (error == nullptr || size == 0) return;
  const std::size_t length = std::min(size - 1, text.size());
  std::memcpy(error, text.data(), length);
  error[length] = '\0';
}

// Runs `body`, a function that returns an error code and fills in a text.
template <class F>
std::int32_t guarded(char* error, std::size_t size, F&& body) noexcept {
  try {
    std::string text;
    const std::int32_t code = body(text);
    write_error(error, size, text);
    return code;
  } catch (const std::bad_alloc&) {
    // no std::string here: it might have to allocate
    if (error != nullptr && size != 0) {
      std::strncpy(error, "memory is short: free some, or ask for fewer rows, candidates or threads", size - 1);
      error[size - 1] = '\0';
    }
    return SORL_ERROR_MEMORY;
  } catch (...) {
    if (error != nullptr && size != 0) {
      std::strncpy(error, "a fault of the library: please report it", size - 1);
      error[size - 1] = '\0';
    }
    return SORL_ERROR_INTERNAL;
  }
}

std::string out_of_bounds(const char* name, std::int64_t value, const char* bound) {
  return std::string(name) + " is " + std::to_string(value) + ", but must be " + bound;
}

}  // namespace

struct sorl_policy {
  std::unique_ptr<const PolicyFile> file;
  sorl::PolicyView view{};
  Choice own;  // how it acts unless a call says otherwise
  std::vector<float> low, high;  // [A] bounds of what sorl_act returns
  std::unique_ptr<Models> models = std::make_unique<Models>();
};

struct sorl_session {
  std::unique_ptr<Engine> engine;
  Choice own;              // the policy's
  bool chosen = false;     // its file says so
  std::int32_t steps = 0;  // by which the engine knows its own steps
  std::unique_ptr<std::uint32_t[]> status;  // for calls whose caller wants none
  sorl::Replay replay;
  std::int32_t last = SORL_OK;
};

namespace {

std::int32_t hand_over(PolicyFile::Result result, sorl_policy** policy, std::string& text) {
  if (result.outcome != PolicyFile::Outcome::loaded) {
    text = std::move(result.message);
    return result.outcome == PolicyFile::Outcome::unreadable ? SORL_ERROR_READ : SORL_ERROR_POLICY;
  }
  auto handle = std::make_unique<sorl_policy>();
  handle->file = std::move(result.policy);
  handle->view = handle->file->view();
  if (handle->view.choice != nullptr)
    handle->own = *handle->view.choice;
  else
    handle->own.sizes = sorl::even_sizes(handle->view.form->counts.front());
  const sorl::PolicyView& view = handle->view;
  sorl::ActionMap map;
  if (view.map_low != nullptr) map = sorl::ActionMap(view.map_low, view.map_high, view.act_dim);
  handle->low = map.applied({view.action_low, view.action_low + view.act_dim});
  handle->high = map.applied({view.action_high, view.action_high + view.act_dim});
  *policy = handle.release();
  return SORL_OK;
}

// The first published struct: all that the exported sorl_options_init may write, whatever was added since.
constexpr std::size_t kFirstOptions = offsetof(sorl_options, isa) + sizeof(const char*);
constexpr std::size_t kMostOptions = 4096;  // beyond it struct_size was never set

// The caller's options, or those that its older, shorter struct has, over the defaults.
std::int32_t read_options(const sorl_options* given, sorl_options& options, std::string& text) {
  sorl_options_init(&options);
  if (given != nullptr) {
    const std::size_t size = given->struct_size;
    if (size < kFirstOptions || size > kMostOptions) {
      text = out_of_bounds("options.struct_size", given->struct_size,
                           "that of sorl_options: call sorl_options_init first");
      return SORL_ERROR_ARGUMENT;
    }
    std::memcpy(&options, given, std::min(size, sizeof options));
    // A newer caller's fields, unknown here: zero is their default, and all that can be done.
    const auto* const bytes = reinterpret_cast<const unsigned char*>(given);
    if (size > sizeof options &&
        std::any_of(bytes + sizeof options, bytes + size, [](unsigned char byte) { return byte != 0; })) {
      text = "options that this library does not know are set: leave them 0, or use the library that came with "
             "the caller's sorl.h";
      return SORL_ERROR_ARGUMENT;
    }
  }
  if (options.precision < SORL_PRECISION_FP32 || options.precision > SORL_PRECISION_INT8) {
    text = out_of_bounds("precision", options.precision,
                         "SORL_PRECISION_FP32, SORL_PRECISION_BF16 or SORL_PRECISION_INT8");
  } else if (options.threads < 1 || options.threads > Engine::max_threads) {
    text = out_of_bounds("threads", options.threads, "1 to 64");
  } else if (options.max_rows < 1) {
    text = out_of_bounds("max_rows", options.max_rows, "at least 1");
  } else if (options.max_candidates < 1) {
    text = out_of_bounds("max_candidates", options.max_candidates, "at least 1");
  }
  return text.empty() ? SORL_OK : SORL_ERROR_ARGUMENT;
}

constexpr std::int32_t kMostWays = 1024;
constexpr double kMostMicroseconds = 1e12;  // more is no deadline

// A rule and its parameter as sorl.h numbers them. False: there is none such.
bool rule_of(const Choice& own, std::int32_t rule, double parameter, Rule& made) noexcept {
  if (rule < SORL_RULE_POLICY || rule > SORL_RULE_CENTRE) return false;
  if (rule == SORL_RULE_POLICY) {
    made = own.rule;
    return parameter == 0;
  }
  const auto kind = static_cast<Rule::Kind>(rule - 1);
  made = Rule::of(kind);
  return parameter == 0 || Rule::of(kind, parameter, made);
}

std::int32_t result_code(int result) noexcept {
  switch (static_cast<sorl::Result>(result)) {
    case sorl::Result::ok: return SORL_OK;
    case sorl::Result::bad_steps: return SORL_ERROR_STEPS;
    case sorl::Result::bad_rows:
    case sorl::Result::bad_candidates:
    case sorl::Result::no_critic:
    case sorl::Result::no_plan:
    case sorl::Result::null_pointer: return SORL_ERROR_ARGUMENT;
    case sorl::Result::too_large: return SORL_ERROR_TOO_LARGE;
  }
  return SORL_ERROR_INTERNAL;
}

}  // namespace

extern "C" {

uint32_t sorl_abi_version(void) noexcept { return SORL_ABI_VERSION; }

const char* sorl_error_name(int32_t code) noexcept {
  switch (code) {
    case SORL_ERROR_ARGUMENT: return "an argument is out of bounds";
    case SORL_ERROR_READ: return "the file cannot be read";
    case SORL_ERROR_POLICY: return "the file is no sound policy";
    case SORL_ERROR_ISA: return "the instruction set is not there";
    case SORL_ERROR_MEMORY: return "memory or threads are short";
    case SORL_ERROR_STEPS: return "the policy does not act with these steps, or the session did not prepare them";
    case SORL_ERROR_TOO_LARGE: return "more rows or candidates than the session was made for";
    case SORL_ERROR_INTERNAL: return "a fault of the library";
    default: return code >= 0 ? "ok" : "unknown error code";
  }
}

int32_t sorl_policy_load(const char* path, sorl_policy** policy, char* error,
                         size_t error_size) noexcept {
  if (policy != nullptr) *policy = nullptr;
  return guarded(error, error_size, [&](std::string& text) -> std::int32_t {
    if (path == nullptr || policy == nullptr) {
      text = "path and policy must not be NULL";
      return SORL_ERROR_ARGUMENT;
    }
    return hand_over(PolicyFile::load(path), policy, text);
  });
}

int32_t sorl_policy_load_memory(const void* bytes, size_t size, sorl_policy** policy, char* error,
                                size_t error_size) noexcept {
  if (policy != nullptr) *policy = nullptr;
  return guarded(error, error_size, [&](std::string& text) -> std::int32_t {
    if (policy == nullptr || (bytes == nullptr && size != 0)) {
      text = "bytes and policy must not be NULL";
      return SORL_ERROR_ARGUMENT;
    }
    return hand_over(PolicyFile::parse(bytes, size, "policy in memory"), policy, text);
  });
}

void sorl_policy_free(sorl_policy* policy) noexcept { delete policy; }

int32_t sorl_policy_obs_dim(const sorl_policy* policy) noexcept { return policy->view.obs_dim; }
int32_t sorl_policy_act_dim(const sorl_policy* policy) noexcept { return policy->view.act_dim; }
int32_t sorl_policy_chunk(const sorl_policy* policy) noexcept { return policy->view.chunk; }
int32_t sorl_policy_hidden(const sorl_policy* policy) noexcept { return policy->view.hidden; }
int32_t sorl_policy_depth(const sorl_policy* policy) noexcept { return policy->view.depth; }
int32_t sorl_policy_ensemble(const sorl_policy* policy) noexcept { return policy->view.ensemble; }
int32_t sorl_policy_max_steps(const sorl_policy* policy) noexcept { return policy->view.form->counts.back(); }
int32_t sorl_policy_default_steps(const sorl_policy* policy) noexcept {
  const std::vector<double>& sizes = policy->own.sizes;
  return sorl::are_even(sizes) ? static_cast<std::int32_t>(sizes.size()) : 0;
}
int32_t sorl_policy_default_candidates(const sorl_policy* policy) noexcept { return policy->own.candidates; }
int32_t sorl_policy_default_rule(const sorl_policy* policy, double* parameter) noexcept {
  const Rule& rule = policy->own.rule;
  if (parameter != nullptr) *parameter = rule.has_parameter() ? rule.parameter() : 0;
  return 1 + static_cast<std::int32_t>(rule.kind);
}
int32_t sorl_policy_steps(const sorl_policy* policy, int32_t index) noexcept {
  const std::vector<int>& counts = policy->view.form->counts;
  const bool there = index >= 0 && static_cast<std::size_t>(index) < counts.size();
  return there ? counts[static_cast<std::size_t>(index)] : 0;
}
const char* sorl_policy_form(const sorl_policy* policy) noexcept { return policy->view.form->name(); }
int32_t sorl_policy_draws(const sorl_policy* policy) noexcept { return policy->view.form->draws(); }
float sorl_policy_temperature(const sorl_policy* policy) noexcept { return policy->view.form->temperature; }
const float* sorl_policy_action_low(const sorl_policy* policy) noexcept {
  return policy->low.data();
}
const float* sorl_policy_action_high(const sorl_policy* policy) noexcept {
  return policy->high.data();
}
const char* sorl_policy_env(const sorl_policy* policy) noexcept { return policy->file->env().c_str(); }
const char* sorl_policy_sha256(const sorl_policy* policy) noexcept {
  return policy->file->sha256().c_str();
}

void(sorl_options_init)(sorl_options* options) noexcept {  // in brackets: not the header's macro
  std::memset(options, 0, kFirstOptions);
  options->struct_size = kFirstOptions;
  options->precision = SORL_PRECISION_FP32;
  options->threads = 1;
  options->max_rows = 1;
  options->max_candidates = 1;
  options->isa = nullptr;
}

int32_t sorl_session_create(const sorl_policy* policy, const sorl_options* given,
                            sorl_session** session, char* error, size_t error_size) noexcept {
  if (session != nullptr) *session = nullptr;
  return guarded(error, error_size, [&](std::string& text) -> std::int32_t {
    if (policy == nullptr || session == nullptr) {
      text = "policy and session must not be NULL";
      return SORL_ERROR_ARGUMENT;
    }
    sorl_options options;
    const std::int32_t code = read_options(given, options, text);
    if (code != SORL_OK) return code;
    const auto precision = static_cast<Precision>(options.precision);
    Isa isa{};
    if (!sorl::choose_isa(precision, options.isa, isa, text)) return SORL_ERROR_ISA;
    std::shared_ptr<const Model> model = policy->models->get(*policy->file, precision, isa, text);
    if (!model) return SORL_ERROR_MEMORY;
    if (options.max_candidates == 1) options.max_candidates = policy->own.candidates;
    const std::int64_t total = std::int64_t{options.max_rows} * options.max_candidates;
    if (total > Engine::max_numbers / policy->view.act_dim) {
      text = out_of_bounds("max_rows * max_candidates", total, "at most 2^30 / the action's dimension");
      return SORL_ERROR_ARGUMENT;
    }
    auto handle = std::make_unique<sorl_session>();
    handle->engine = Engine::make(std::move(model), options.threads, options.max_rows,
                                  options.max_candidates, text);
    if (!handle->engine) return SORL_ERROR_MEMORY;
    handle->status = std::make_unique<std::uint32_t[]>(static_cast<std::size_t>(options.max_rows));
    handle->replay = sorl::Replay(policy->view.chunk, policy->view.act_dim);
    handle->own = policy->own;
    handle->chosen = policy->view.choice != nullptr;
    handle->engine->set_rule(handle->own.rule);
    handle->steps = handle->engine->prepare(handle->own.sizes, text);
    if (handle->steps == 0) return SORL_ERROR_INTERNAL;  // the loader let it pass
    *session = handle.release();
    return SORL_OK;
  });
}

int32_t sorl_session_prepare(sorl_session* session, const double* sizes, int32_t count, char* error,
                             size_t error_size) noexcept {
  return guarded(error, error_size, [&](std::string& text) -> std::int32_t {
    // the count first: an empty vector's data may be NULL
    if (count < 1 || count > sorl::kMostSizes) {
      text = out_of_bounds("count", count, "1 to 2048");
      return SORL_ERROR_ARGUMENT;
    }
    if (session == nullptr || sizes == nullptr) {
      text = "session and sizes must not be NULL";
      return SORL_ERROR_ARGUMENT;
    }
    const int number = session->engine->prepare(std::vector<double>(sizes, sizes + count), text);
    return number == 0 ? SORL_ERROR_STEPS : number;
  });
}

int32_t sorl_session_set_rule(sorl_session* session, int32_t rule, double parameter) noexcept {
  Rule made;
  if (session == nullptr || !rule_of(session->own, rule, parameter, made)) return SORL_ERROR_ARGUMENT;
  session->engine->set_rule(made);
  return SORL_OK;
}

int32_t sorl_session_prepare_deadline(sorl_session* session, const sorl_way* ways, int32_t count, char* error,
                                      size_t error_size) noexcept {
  return guarded(error, error_size, [&](std::string& text) -> std::int32_t {
    if (session == nullptr || (ways == nullptr && count != 0)) {
      text = "session and ways must not be NULL";
      return SORL_ERROR_ARGUMENT;
    }
    if (count < 0 || count > kMostWays) {
      text = out_of_bounds("count", count, "0 to 1024");
      return SORL_ERROR_ARGUMENT;
    }
    std::vector<Way> wanted(static_cast<std::size_t>(count));
    for (std::int32_t i = 0; i < count; ++i) {
      const sorl_way& given = ways[i];
      Way& way = wanted[static_cast<std::size_t>(i)];
      way.steps = given.steps == 0 ? session->steps : given.steps;
      way.candidates = given.candidates == 0 ? session->own.candidates : given.candidates;
      if (!rule_of(session->own, given.rule, given.parameter, way.rule)) {
        text = out_of_bounds("rule", given.rule, "one of SORL_RULE_*, with a parameter that it takes");
        return SORL_ERROR_ARGUMENT;
      }
    }
    if (!session->engine->prepare_deadline(wanted, session->chosen ? &session->own : nullptr, text))
      return SORL_ERROR_ARGUMENT;
    return static_cast<std::int32_t>(session->engine->planned());
  });
}

int32_t sorl_session_way(const sorl_session* session, int32_t index, sorl_way* way, double* cost_us) noexcept {
  if (session == nullptr || index < 0 || static_cast<std::size_t>(index) >= session->engine->planned())
    return SORL_ERROR_ARGUMENT;
  const sorl::Planned& planned = session->engine->planned(static_cast<std::size_t>(index));
  const Rule& rule = planned.way.rule;
  if (way != nullptr)
    *way = {planned.way.steps, planned.way.candidates, 1 + static_cast<std::int32_t>(rule.kind),
            rule.has_parameter() ? rule.parameter() : 0};
  if (cost_us != nullptr) *cost_us = static_cast<double>(planned.cost.call) * 1e-3;
  return SORL_OK;
}

void sorl_session_free(sorl_session* session) noexcept { delete session; }

int32_t sorl_act(sorl_session* session, const float* obs, int32_t rows, int32_t steps,
                 int32_t candidates, uint64_t seed, uint32_t call, uint32_t row_offset,
                 const float* noise, float* actions, int32_t* candidate, float* q,
                 uint32_t* status) noexcept {
  if (session == nullptr) return SORL_ERROR_ARGUMENT;
  if (steps == 0) steps = session->steps;
  if (candidates == 0) candidates = session->own.candidates;
  std::uint32_t* const bits = status != nullptr ? status : session->status.get();
  std::int32_t code = result_code(session->engine->act(obs, noise, rows, steps, candidates, seed,
                                                       call, row_offset, actions, candidate, q, bits));
  if (code == SORL_OK) {
    std::uint32_t all = 0;
    for (std::int32_t row = 0; row < rows; ++row) all |= bits[row];
    code = static_cast<std::int32_t>(all & kStatusBits);
  }
  session->last = code;
  return code;
}

int32_t sorl_replay(sorl_session* session, const float* obs, int32_t steps, int32_t candidates, uint64_t seed,
                    uint32_t call, float* action) noexcept {
  if (session == nullptr || action == nullptr) return SORL_ERROR_ARGUMENT;
  sorl::Replay& replay = session->replay;
  if (replay.due()) {
    const std::int32_t code = sorl_act(session, obs, 1, steps, candidates, seed, call, 0, nullptr, replay.call(),
                                       nullptr, nullptr, nullptr);
    if (code >= 0) replay.begin((code & SORL_STATUS_HELD) != 0, action);
    return code;
  }
  replay.next(action);
  return session->last = SORL_STATUS_REPLAYED;
}

int32_t sorl_act_deadline(sorl_session* session, const float* obs, double deadline_us, uint64_t seed, uint32_t call,
                          uint32_t row_offset, float* action, sorl_done* done) noexcept {
  if (session == nullptr || !(deadline_us >= 0)) return SORL_ERROR_ARGUMENT;
  const auto budget = static_cast<std::int64_t>(std::min(deadline_us, kMostMicroseconds) * 1e3);
  sorl_done made{};
  sorl::Done was;
  std::int32_t code = result_code(session->engine->act_by(obs, budget, seed, call, row_offset, action, &made.candidate,
                                                          &made.q, &made.status, &was));
  if (code == SORL_OK) {
    code = static_cast<std::int32_t>(made.status & kStatusBits);
    if (done != nullptr) {
      made.struct_size = done->struct_size;
      made.way = was.way;
      made.steps = was.steps;
      made.evaluations = was.evaluations;
      made.candidates = was.candidates;
      made.scored = was.scored;
      made.elapsed_us = static_cast<double>(was.elapsed) * 1e-3;
      std::memcpy(done, &made, std::min<std::size_t>(done->struct_size, sizeof made));
    }
  }
  session->last = code;
  return code;
}

int32_t sorl_session_set_temperature(sorl_session* session, float temperature) noexcept {
  const bool sound = temperature >= 0 && temperature <= std::numeric_limits<float>::max();
  if (session == nullptr || !sound || !session->engine->model().form().has_temperature()) return SORL_ERROR_ARGUMENT;
  session->engine->set_temperature(static_cast<double>(temperature));
  return SORL_OK;
}

int32_t sorl_last_status(const sorl_session* session) noexcept { return session->last; }
void sorl_session_reset(sorl_session* session) noexcept {
  session->engine->reset();
  session->replay.drop();
}
const char* sorl_isa_name(const sorl_session* session) noexcept {
  return sorl::name(session->engine->model().isa());
}

}  // extern "C"
