// The compute core: a Model is a policy packed for one instruction set and precision; an Engine is
// one session over it. Nothing here reads files (policy_file.hpp) or sees Python (bindings.cpp).
//
// Shape letters: B rows (observations) of a call, O observation, A action, H hidden width, E ensemble,
// N candidates an observation, M steps. All arrays are row-major and float unless said.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "choice.hpp"
#include "form.hpp"
#include "isa.hpp"

namespace sorl {

// One dense layer as it lies in the policy file. Borrowed: valid while Model::make runs.
struct LayerView {
  const float* w;  // [in][out] (actor) or [E][in][out] (critic)
  const float* b;  // [out] or [E][out]
  const float* g;  // LayerNorm gain [E][out], null where there is none
  const float* c;  // LayerNorm offset [E][out], null where there is none
  int in, out;
};

// A whole policy, already checked by the loader. actor and critic have depth + 1 layers each.
struct PolicyView {
  int obs_dim, act_dim, hidden, depth, ensemble, m_disc, m_btt;
  bool q_min;                // the ensemble aggregates by min, not by mean
  const Form* form;          // never null; ensemble may be 0 where it is no shortcut's
  const float* action_low;   // [A] what the networks' actions are clipped to
  const float* action_high;  // [A]
  const float* obs_mean;     // [O] or null
  const float* obs_std;      // [O] or null
  const LayerView* actor;    // input order z after x: concat[x, z, t, log2 M]
  const LayerView* critic;   // concat[x, a, k]; not read where ensemble is 0
  const Choice* choice;      // how it acts unless a call says otherwise; null: its file does not say
  const float* map_low;      // [A] what -1 and 1 stand for in the units of the actions that it returns; both null:
  const float* map_high;     // themselves
  int chunk = 1;             // h, actions of a call one after another, act_dim / h numbers each
  const float* ood_mean = nullptr;    // [O]; null: no observation is out of distribution
  const float* ood_whiten = nullptr;  // [O][O]
  float ood_threshold = 0;            // of |W (o - mean)|^2
};

// What Engine::act returns. Anything but ok left every output untouched.
enum class Result : int {
  ok = 0,
  bad_steps = 1,       // steps is neither one of the form's counts nor what prepare returned
  bad_rows = 2,        // rows < 0
  bad_candidates = 3,  // candidates < 1
  too_large = 4,       // rows > max_rows or candidates > max_candidates of the session
  null_pointer = 5,    // obs or actions is null
  no_critic = 6,       // candidates > 1 and the rule reads Q, but the policy has no critic
  no_plan = 7,         // act_by without prepare_deadline
};

// Status bits of a row.
enum Status : std::uint32_t {
  nonfinite_obs = 1,
  nonfinite_result = 2,
  held = 4,
  clipped = 8,
  candidate_rejected = 16,
  cut_short = 32,
  out_of_distribution = 64,
};

struct Packed;  // model.hpp
struct Way;     // deadline.hpp, as all here
struct Planned;
struct Cost;
struct Clock;
struct Done;

// Immutable after make; any number of Engines on any number of threads may share it.
class Model {
 public:
  // Packs `view` for `isa` and `precision` (both as choose_isa gave them). Null, with the reason in
  // `error`, when memory is short. Copies everything that it needs of the view.
  static std::shared_ptr<const Model> make(const PolicyView& view, Precision precision, Isa isa,
                                           std::string& error);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  int obs_dim() const noexcept;
  int act_dim() const noexcept;
  int ensemble() const noexcept;
  const Form& form() const noexcept;
  Precision precision() const noexcept;
  Isa isa() const noexcept;
  const Packed& packed() const noexcept { return *packed_; }

 private:
  explicit Model(std::unique_ptr<Packed> packed);
  std::unique_ptr<Packed> packed_;
};

// One session: scratch, the last good action and, when threads > 1, parked workers. One thread at a
// time may call it. Everything is allocated, and touched once, by make.
class Engine {
 public:
  static constexpr int max_threads = 64;
  static constexpr std::int64_t max_numbers = std::int64_t{1} << 30;  // of all candidates' actions of a call

  // threads in [1, max_threads]; max_rows >= 1, max_candidates >= 1. Null and `error` otherwise, or when memory or
  // threads are short.
  static std::unique_ptr<Engine> make(std::shared_ptr<const Model> model, int threads, int max_rows,
                                      int max_candidates, std::string& error);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Samples `rows` actions. obs [B][O]; noise [B][N][S][A], S the form's draws, or null: Philox of (seed,
  // call, row_offset), by which a rule also draws; actions [B][A], in the units of the map; candidate, q, status [B] or null. The critic
  // runs when N > 1 and the rule reads Q, or q is not null; without critics q is NaN.
  // On one thread: no allocation, lock or system call; with more, at most one wake of each worker,
  // sched_yield while it waits long for them and, after the caller has moved to another core, the calls
  // that keep the workers off it. In a child of fork the first call starts the workers anew.
  int act(const float* obs, const float* noise, int rows, int steps, int candidates,
          std::uint64_t seed, std::uint32_t call, std::uint32_t row_offset, float* actions,
          std::int32_t* candidate, float* q, std::uint32_t* status) noexcept;

  // Makes a schedule of Euler steps ready and returns what to give as `steps`, see PreparedSchedules; 0, with the
  // reason in `error`, where the policy does not take these sizes. Throws std::bad_alloc.
  int prepare(std::vector<double> sizes, std::string& error);

  // How one of N > 1 candidates is chosen; at first by argmax.
  void set_rule(const Rule& rule) noexcept;

  // What multiplies the noise that the form adds, at least 0 and finite; at first the form's own.
  void set_temperature(double temperature) noexcept;

  // Makes ready what act_by chooses from: these ways, the best first, or those of usual_ways where there are none,
  // each measured on this session by some calls. False, with the reason in `error`, where a way or the policy's form
  // is not such that a deadline can cut it; nothing is changed then. Throws std::bad_alloc.
  bool prepare_deadline(const std::vector<Way>& ways, const Choice* own, std::string& error);
  std::size_t planned() const noexcept;  // ways
  const Planned& planned(std::size_t index) const noexcept;

  // One action for one observation, done `budget` nanoseconds after the call: by the best way that takes no longer,
  // cut short if the time runs out all the same. Otherwise as act, with the policy's own temperature.
  int act_by(const float* obs, std::int64_t budget, std::uint64_t seed, std::uint32_t call, std::uint32_t row_offset,
             float* action, std::int32_t* candidate, float* q, std::uint32_t* status, Done* done) noexcept;

  // For tests: another clock, and other costs than those measured.
  void set_clock(const Clock& clock) noexcept;
  void set_cost(std::size_t way, const Cost& cost) noexcept;

  // Forgets the last good action: held rows get clip(0, low, high) again.
  void reset() noexcept;
  // Takes over the last good action, temperature, rule and schedules of another session of the same model. Throws
  // std::bad_alloc.
  void continue_from(const Engine& other);

  const Model& model() const noexcept;
  int threads() const noexcept;
  int max_rows() const noexcept;
  int max_candidates() const noexcept;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sorl
