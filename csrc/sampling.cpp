// The arithmetic of a call: one program over a range of rows (a row is one candidate of one observation), in one
// of two shapes:
// - together: few rows; all threads walk the layers side by side, each owning some of the columns,
//   and meet after each layer. Each core then reads, and keeps in its own cache, its share of the
//   weights only. The first layer is narrow: of few rows each thread computes all of it, without meeting.
// - apart: many rows; each thread takes blocks of rows through all layers and steps, so that a
//   block's activations and the layer at hand stay in its second-level cache.
// An output is summed in one order in both, so threads and blocks never change a bit of a result.
#include "sampling.hpp"

#include <algorithm>
#include <cstring>

#include "denormals.hpp"
#include "engine.hpp"
#include "finite.hpp"

namespace sorl {

namespace {

// From here on the threads share the actor's narrow last layer out by rows, at the price of one more
// meeting a step; below, each computes all of it for itself.
constexpr int kShareHeadRows = 8;
// Up to here its outputs are products of rows by vectors.
constexpr int kHeadRows = 2;
// Up to here each thread computes all of the actor's first layer: its few inputs cost less than a meeting.
// (Of 16 and 32 rows it was no faster, or slower.)
constexpr int kAloneRows = 8;

// Where in a joint row of activations, which are bf16, z begins.
std::size_t joint_offset(const Side& side) { return side.obs_k * sizeof(std::uint16_t); }

}  // namespace

Sampling::Sampling(const Packed& packed, int threads, int rows, int candidates)
    : p(packed), team(threads), scratch_(static_cast<std::size_t>(threads)) {
  const std::size_t total = static_cast<std::size_t>(rows) * candidates;
  const Kernels& k = *p.side.kernels;
  const int block = std::max({k.block_rows, k.together_rows, k.together_rows_with_q});
  capacity_ = static_cast<int>(std::min<std::size_t>(total, block));
}

void Sampling::lay_out(Bump& bump, int rows, int candidates) {
  const std::size_t total = static_cast<std::size_t>(rows) * candidates;
  for (Scratch& s : scratch_) s.lay_out(bump, p, capacity_, kAloneRows);
  z = bump.take<float>(total * p.act_dim);
  q = bump.take<float>(total * p.ensemble);
  status = bump.take<std::uint32_t>(rows);
  scored_by = bump.take<std::int32_t>(p.ensemble);
  far = bump.take<float>(p.ood.whitening.dim == 0 ? 0 : rows);
}

// Where thread t's share of n things begins.
int Sampling::share(int n, int t) const noexcept {
  return static_cast<int>(static_cast<std::int64_t>(n) * t / team_size_);
}

void Sampling::observe(const Scratch& s, int first, int count) const noexcept {
  const int O = p.obs_dim;
  for (int b = 0; b < count; ++b) {
    const float* from = call.obs + static_cast<std::size_t>(first + b) * O;
    float* to = s.obs + static_cast<std::size_t>(b) * O;
    const bool seen = (status[first + b] & nonfinite_obs) == 0;
    for (int i = 0; i < O; ++i) to[i] = seen ? from[i] : 0.0f;
    if (!p.mean.empty())
      for (int i = 0; i < O; ++i) to[i] = (to[i] - p.mean[i]) / p.std[i];
  }
  const Side& side = *call.side;
  side.kernels->input(s.obs, O * sizeof(float), count, O, side.obs_k, s.obs_in, side.obs_stride);
}

// How far the observations lie from those of the training. One that two blocks share is judged by its first row's.
void Sampling::judge(int first, int first_obs, int count_obs) const noexcept {
  const int skipped = first % call.candidates != 0;
  const int begin = first_obs + skipped, count = count_obs - skipped;
  const float* const x = call.obs + static_cast<std::size_t>(begin) * p.obs_dim;
  if (count > 0) call.side->kernels->whiten(p.ood.whitening, x, count, far + begin);
}

// The first layer's part that all steps and candidates of an observation share.
void Sampling::observation_part(const Scratch& s, const Net& net, int count, int panel_begin,
                      int panel_end) const noexcept {
  Dense d{};
  d.x = s.obs_in;
  d.x_stride = call.side->obs_stride;
  d.rows = count;
  d.k = call.side->obs_k;
  d.w = net.obs_w;
  d.panel_begin = panel_begin;
  d.panel_end = panel_end;
  d.bias = p.zero;
  d.y = s.obs_part;
  d.y_stride = p.width * sizeof(float);
  d.output = Output::linear;
  call.side->kernels->dense(d);
}

// What a network's first layer multiplies: `in`, added to the observation's part, or joint rows.
void Sampling::first_layer(Dense& d, const Net& net, const Scratch& s, const char* in) const noexcept {
  const Side& side = *call.side;
  d.x = in;
  d.x_stride = call.joint ? side.joint_stride : side.in_stride;
  d.k = call.joint ? side.joint_k : side.in_k;
  d.w = call.joint ? net.joint_w : net.in_w;
  d.init = call.joint ? nullptr : s.init;
}

// The candidates' normal number `d` of `count` rows from `first` on: the caller's, or the key's.
void Sampling::draw(int d, int first, int count, float* to) const noexcept {
  const int A = p.act_dim;
  const std::size_t draws = p.draws, row = A * sizeof(float);
  if (call.noise == nullptr) {
    call.side->kernels->normals(call.seed, call.call, call.row_offset, call.candidates, A, first, count, d, to);
  } else if (draws == 1) {
    std::memcpy(to, call.noise + static_cast<std::size_t>(first) * A, count * row);
  } else {
    for (int r = 0; r < count; ++r)
      std::memcpy(to + r * A, call.noise + ((first + r) * draws + d) * A, row);
  }
}

// A step's end, for `count` rows from `first` on: from the velocity in `own` to the next z.
void Sampling::advance(const Step& step, const Scratch& own, const Side& side, int first, int count, float* z_mine) const
    noexcept {
  const int A = p.act_dim, stride = side.head_width;
  if (p.form.kind == Form::Kind::tanh) side.kernels->tanh(own.velocity, count * stride);
  for (int r = 0; r < count; ++r)
    for (int a = 0; a < A; ++a)
      z_mine[r * A + a] = step.a * z_mine[r * A + a] + step.b * own.velocity[static_cast<std::size_t>(r) * stride + a];
  // In double, as the definition multiplies them.
  const double scale = step.s * call.temperature;
  if (scale != 0) {
    draw(step.draw, first, count, own.added);
    for (int i = 0; i < count * A; ++i)
      z_mine[i] += clip_finite(static_cast<float>(scale) * own.added[i], p.form.noise_clip);
  }
  if (p.form.clip != Form::kNoClip)
    for (int i = 0; i < count * A; ++i) z_mine[i] = clip_finite(z_mine[i], p.form.clip);
}

// What is left of a flow by the last velocity, which needs no evaluation.
void Sampling::extend(const Step& rest, const Scratch& own, const Side& side, int count, float* z_mine) const
    noexcept {
  const int A = p.act_dim, stride = side.head_width;
  for (int r = 0; r < count; ++r)
    for (int a = 0; a < A; ++a) z_mine[r * A + a] += rest.b * own.velocity[static_cast<std::size_t>(r) * stride + a];
}

// Rows [first, first + n) of the call. Together: all threads run this at once over the same rows.
void Sampling::sample(int thread, int first, int n) noexcept {
  const Side& side = *call.side;
  const Kernels& k = *side.kernels;
  const bool together = call.together;
  const Scratch& own = scratch_[thread];
  const Scratch& shared = together ? scratch_[0] : own;
  const int A = p.act_dim, N = call.candidates;
  // Where a thread's columns may begin and end: with int8 at whole groups only.
  const int unit = k.int8 == nullptr ? k.panel : kInt8Group, units = p.width / unit;
  const int unit_begin = together ? share(units, thread) : 0;
  const int unit_end = together ? share(units, thread + 1) : units;
  const int panel_begin = unit_begin * unit / k.panel, panel_end = unit_end * unit / k.panel;
  const auto meet = [&] {
    if (together) team.barrier();
  };

  const int first_obs = first / N, count_obs = (first + n - 1) / N - first_obs + 1;
  observe(own, first_obs, count_obs);
  if (call.want_ood && (!together || thread == 0)) judge(first, first_obs, count_obs);
  const std::vector<PackedLayer>& hidden = side.actor.hidden;
  const bool alone = together && n <= kAloneRows && call.watch == nullptr && !hidden.empty();
  const int first_begin = alone ? 0 : panel_begin, first_end = alone ? p.width / k.panel : panel_end;
  if (call.joint)
    for (int r = 0; r < n; ++r)
      std::memcpy(own.joint + r * side.joint_stride, own.obs_in + ((first + r) / N - first_obs) * side.obs_stride,
                  joint_offset(side));
  else
    observation_part(own, side.actor, count_obs, first_begin, first_end);
  // What does not read its noise is the same for all candidates: evaluated once an observation.
  const bool once = !p.form.reads_noise;
  const int rows = once ? count_obs : n;
  for (int r = 0; r < rows && !call.joint; ++r)
    own.init[r] = own.obs_part + static_cast<std::size_t>(once ? r : (first + r) / N - first_obs) * p.width;

  // z: shared out by rows, or a copy each.
  const bool split = together && !once && n >= kShareHeadRows;
  const int begin = split ? share(n, thread) : 0, end = split ? share(n, thread + 1) : n;
  const std::size_t z_row = A * sizeof(float);
  float* z_all = together && !split && thread != 0 ? own.z : z + static_cast<std::size_t>(first) * A;
  char* in_all = call.joint ? own.joint : split ? shared.in : own.in;
  const std::size_t in_stride = call.joint ? side.joint_stride : side.in_stride;
  float* z_mine = z_all + static_cast<std::size_t>(begin) * A;
  char* in_mine = in_all + begin * in_stride + (call.joint ? joint_offset(side) : 0);
  if (p.form.reads_noise)
    draw(0, first + begin, end - begin, z_mine);
  else
    std::memset(z_mine, 0, (end - begin) * z_row);
  const bool by_vectors = call.total <= kHeadRows && side.actor.in_rows != nullptr;  // the first layer
  if (!by_vectors) k.input(z_mine, z_row, end - begin, A, side.in_k, in_mine, in_stride);
  if (split) team.barrier();

  int turn = 0;  // a layer writes act[turn & 1]; whoever reads it has passed the meeting in between
  Watch* const watch = call.watch;
  // What the actor's last layer reads.
  const Output top = vectors_head(side) && k.bf16_activations ? Output::gelu_float : Output::gelu;
  const auto enter = [&](const Dense& d) {
    if (by_vectors)
      k.first({z_all, rows, A, side.actor.in_rows, p.width, d.bias, own.init, d.panel_begin * k.panel,
               d.panel_end * k.panel, d.y, d.y_stride, d.output == Output::gelu_float});
    else
      k.dense(d);
  };
  const int M = static_cast<int>(call.schedule->steps.size());
  for (int i = 0, layer = 0; i < M; ++i) {
    const bool last = watch != nullptr && watch->is_last(i);
    if (watch != nullptr && watch->ended(i)) {
      extend(call.rests->steps[static_cast<std::size_t>(i)], own, side, end - begin, z_mine);
      if (split) team.barrier();
      break;
    }
    const Step& step = (last ? call.rests : call.schedule)->steps[static_cast<std::size_t>(i)];
    Dense d{};
    d.rows = rows;
    d.panel_begin = first_begin;
    d.panel_end = first_end;
    d.y_stride = side.act_stride;
    d.output = Output::gelu;
    first_layer(d, side.actor, own, in_all);
    d.bias = step.bias;
    char* const entered = alone ? own.first : shared.act[turn & 1];
    d.y = entered;
    for (std::size_t l = 0; l <= hidden.size(); ++l) {
      if (l > 0) {
        d.init = nullptr;
        d.panel_begin = panel_begin;
        d.panel_end = panel_end;
        d.x = l == 1 ? entered : shared.act[turn & 1];
        d.x_stride = side.act_stride;
        d.k = p.width;
        d.w = hidden[l - 1].w;
        d.bias = hidden[l - 1].b;
        turn += l > 1 || !alone;
        d.y = shared.act[turn & 1];
      }
      if (k.int8 == nullptr || hidden.empty()) {
        if (l == hidden.size()) d.output = top;
        if (l == 0)
          enter(d);
        else
          k.dense(d);
      } else if (l == 0) {
        d.output = Output::gelu_float;
        if (k.int8->quantise != nullptr) {
          d.y = own.pre;
          d.y_stride = p.width * sizeof(float);
        }
        enter(d);
        if (k.int8->quantise != nullptr)
          k.int8->quantise(own.pre, d.y_stride, nullptr, rows, p.width, alone ? 0 : unit_begin * unit,
                           alone ? p.width : unit_end * unit, entered, side.act_stride);
        d.y_stride = side.act_stride;
      } else {
        d.panel_begin = unit_begin;
        d.panel_end = unit_end;
        d.output = l == hidden.size() ? top : Output::gelu_next;
        k.int8->dense(d, nullptr, own.pre);
      }
      if (watch != nullptr && thread == 0) watch->layer_done(layer, i, l == hidden.size(), M);
      if (l > 0 || !alone) meet();
      if (watch != nullptr && watch->stopped(layer++)) {
        if (i > 0) extend(call.rests->steps[static_cast<std::size_t>(i)], own, side, end - begin, z_mine);
        return;
      }
    }
    velocities(side, shared.act[turn & 1] + begin * side.act_stride, once ? rows : end - begin, own.velocity);
    ++turn;
    if (once) spread(own.velocity, side.head_width, first, n, N);
    advance(step, own, side, first + begin, end - begin, z_mine);
    if (!by_vectors) k.input(z_mine, z_row, end - begin, A, side.in_k, in_mine, in_stride);
    if (split) team.barrier();
    if (last) break;
  }
  if (!call.want_q) return;
  if (together && !split) team.barrier();  // act[] is about to be overwritten
  score(thread, first, n, first_obs, count_obs, z_all);
}

// The critics. Together, each thread takes whole ones: their LayerNorms need whole rows. With a deadline they see
// the candidates by groups, and what there is no time for is left out.
void Sampling::score(int thread, int first, int n, int first_obs, int count_obs, const float* z_all) noexcept {
  const Scratch& own = scratch_[thread];
  Watch* const watch = call.watch;
  const int most = watch == nullptr ? n : kScoreRows;
  for (int begin = 0; begin < n; begin += most) {
    const int count = std::min(most, n - begin);
    if (watch != nullptr && !watch->can_score()) return;
    const std::int64_t begun = watch != nullptr && thread == 0 ? watch->now() : 0;
    for (int e = call.together ? thread : 0; e < p.ensemble; e += call.together ? team_size_ : 1) {
      const float* const z_group = z_all + static_cast<std::size_t>(begin) * p.act_dim;
      if (!critic(own, *call.side, e, first + begin, count, first_obs, count_obs, z_group)) return;
      if (watch != nullptr) scored_by[e] = begin + count;
    }
    if (watch != nullptr && thread == 0) watch->group_done(begun);
  }
}

int Sampling::scored() const noexcept {
  return call.want_q ? *std::min_element(scored_by, scored_by + p.ensemble) : 0;
}

// Whether the actor's last layer is products of rows by vectors.
bool Sampling::vectors_head(const Side& side) const noexcept {
  return call.total <= kHeadRows && side.actor.head_rows != nullptr;
}

// The actor's last layer: float [rows][head_width].
void Sampling::velocities(const Side& side, const char* act, int rows, float* velocity) const noexcept {
  const Kernels& k = *side.kernels;
  const std::size_t stride = side.head_width * sizeof(float);
  if (vectors_head(side)) {
    k.head({reinterpret_cast<const float*>(act), side.act_stride, rows, p.width, p.act_dim,
            side.actor.head_rows, side.actor.head_b, velocity, stride});
    return;
  }
  Dense d{};
  d.x = act;
  d.x_stride = side.act_stride;
  d.rows = rows;
  d.k = p.width;
  d.w = side.actor.head_w;
  d.panel_end = side.head_width / k.panel;
  d.bias = side.actor.head_b;
  d.y = velocity;
  d.y_stride = stride;
  d.output = Output::linear;
  k.dense(d);
}

// False: the time ran out before it was done.
bool Sampling::critic(const Scratch& s, const Side& side, int e, int first, int n, int first_obs, int count_obs,
            const float* z_all) noexcept {
  const Kernels& k = *side.kernels;
  const Net& net = side.critics[e];
  const int A = p.act_dim, panels = p.width / k.panel;
  // Of the rows' actions only the activations are needed: clip into the velocity's place.
  float* action = s.velocity;
  for (int r = 0; r < n; ++r)
    for (int a = 0; a < A; ++a) action[r * A + a] = p.clip(z_all[static_cast<std::size_t>(r) * A + a], a);
  if (call.joint) {
    k.input(action, A * sizeof(float), n, A, side.in_k, s.joint + joint_offset(side), side.joint_stride);
  } else {
    k.input(action, A * sizeof(float), n, A, side.in_k, s.in, side.in_stride);
    observation_part(s, net, count_obs, 0, panels);
  }
  for (int r = 0; r < n && !call.joint; ++r)
    s.init[r] = s.obs_part + static_cast<std::size_t>((first + r) / call.candidates - first_obs) * p.width;

  Dense d{};
  d.rows = n;
  d.panel_begin = 0;
  d.panel_end = panels;
  d.y = s.pre;
  d.y_stride = p.width * sizeof(float);
  d.output = Output::gelu_float;
  first_layer(d, net, s, call.joint ? s.joint : s.in);
  d.bias = call.schedule->critic_bias + static_cast<std::size_t>(e) * p.width;
  Norm norm{};
  norm.x = s.pre;
  norm.x_stride = d.y_stride;
  norm.rows = n;
  norm.width = p.hidden;
  norm.padded = p.width;
  norm.g = net.g;
  norm.c = net.c;
  norm.y = s.act[0];
  norm.y_stride = side.act_stride;
  norm.head_w = static_cast<const float*>(net.head_w);
  norm.head_b = *net.head_b;
  norm.q = q + static_cast<std::size_t>(e) * call.total + first;
  for (int l = 0; l < p.depth; ++l) {
    if (l > 0) {
      const PackedLayer& layer = net.hidden[l - 1];
      d.init = nullptr;
      d.x = s.act[0];
      d.x_stride = side.act_stride;
      d.k = p.width;
      d.w = layer.w;
      d.bias = layer.b;
      norm.g = layer.g;
      norm.c = layer.c;
    }
    const bool head = l == p.depth - 1;  // is behind it
    if (k.int8 == nullptr || l == 0) {
      k.dense(d);
    } else {
      d.panel_end = p.width / kInt8Group;
      if (k.int8->quantise == nullptr) {
        d.x = s.pre;
        d.x_stride = d.y_stride;
      }
      k.int8->dense(d, s.affine, reinterpret_cast<float*>(s.act[1]));
    }
    if (k.int8 == nullptr || head) {
      if (head) norm.y = nullptr;
      k.norm(norm);
    } else {  // the next product does the rest of it
      k.int8->affine(s.pre, d.y_stride, n, p.hidden, p.width, s.affine);
      if (k.int8->quantise != nullptr)
        k.int8->quantise(s.pre, d.y_stride, s.affine, n, p.width, 0, p.width, s.act[0], side.act_stride);
    }
    if (call.watch != nullptr && !head && call.watch->passed()) return false;
  }
  return true;
}

// A thread's first tile instruction makes the system allocate its tiles' state: here for the workers, and
// for the caller in whatever its first call is.
void Sampling::touch(void* self, int) noexcept {
  const Kernels& k = *static_cast<Sampling*>(self)->p.side.kernels;
  if (k.enter != nullptr) k.enter();
  if (k.leave != nullptr) k.leave();
}

void Sampling::thread_work(int thread) noexcept {
  const FlushDenormals flush;
  const Kernels& k = *p.side.kernels;
  if (k.enter != nullptr) k.enter();
  if (call.together) {
    sample(thread, 0, call.total);
  } else {
    for (int b = next_block_.fetch_add(1); b < call.blocks; b = next_block_.fetch_add(1)) {
      const int first = b * call.block;
      sample(thread, first, std::min(call.block, call.total - first));
    }
  }
  if (k.leave != nullptr) k.leave();
}

void Sampling::work(void* self, int thread) noexcept { static_cast<Sampling*>(self)->thread_work(thread); }

void Sampling::run() noexcept {
  // One deadline is one plan: its candidates are not dealt out to threads that work apart.
  const Kernels& k = *p.side.kernels;
  const bool few = call.total <= (call.want_q ? k.together_rows_with_q : k.together_rows);
  const bool whole = call.watch == nullptr || few;
  const bool threaded = team.size() > 1 && whole && team.alive();
  team_size_ = threaded ? team.size() : 1;
  call.together = threaded && few;
  call.joint = call.side->joint_k > 0 && call.total >= k.joint_rows && call.watch == nullptr && p.form.reads_noise;
  const int most = k.block_rows;
  // As many blocks as there are threads, or a multiple, so that none waits for the last block.
  int blocks = (call.total + most - 1) / most;
  blocks = round_up(blocks, team_size_);
  call.block = std::max(1, (call.total + blocks - 1) / blocks);
  call.blocks = (call.total + call.block - 1) / call.block;
  next_block_.store(0, std::memory_order_relaxed);
  if (team_size_ > 1 && (call.together || call.blocks > 1))
    team.run(work, this);
  else
    work(this, 0);
}

}  // namespace sorl
