#include "model.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "finite.hpp"
#include "placement.hpp"

namespace sorl {

namespace {

// Lays one side of `view` out in `bump`; run once over nothing, to count, and once over memory.
class Packer {
 public:
  Packer(const PolicyView& view, Packed& packed, Bump& bump) : v_(view), p_(packed), bump_(bump) {}

  void constants() {
    p_.zero = bump_.take<float>(p_.width);
  }

  void first_layers() {
    const int inputs = v_.obs_dim + v_.act_dim, H = v_.hidden, E = v_.ensemble;
    const LayerView& actor = v_.actor[0];
    const float* const after = actor.w + static_cast<std::size_t>(inputs) * H;
    p_.first.b = row(actor.b, H, H);
    p_.first.t = row(after, H, H);
    p_.first.log2_steps = row(after + H, H, H);
    float* k = bump_.take<float>(static_cast<std::size_t>(E) * H);
    p_.first.k = k;
    p_.first.q_b = E == 0 ? nullptr : row(v_.critic[0].b, E * H, E * H);
    for (int e = 0; e < E && !bump_.counting(); ++e) {
      const std::size_t at = static_cast<std::size_t>(e) * H;
      std::memcpy(k + at, v_.critic[0].w + at * (inputs + 1) + static_cast<std::size_t>(inputs) * H, H * sizeof(float));
    }
  }

  // W by blocks of its rows, see Whitening; with how far each block's columns are not all zero.
  void ood(Ood& ood) {
    const int O = v_.obs_dim, blocks = round_up(O, kWhitenLanes) / kWhitenLanes;
    float* to = bump_.take<float>(static_cast<std::size_t>(blocks) * O * kWhitenLanes);
    if (bump_.counting()) return;
    ood.mean.assign(v_.ood_mean, v_.ood_mean + O);
    ood.ends.assign(static_cast<std::size_t>(blocks), 0);
    for (int row = 0; row < O; ++row) {
      const int block = row / kWhitenLanes;
      int& end = ood.ends[static_cast<std::size_t>(block)];
      for (int i = 0; i < O; ++i) {
        const float w = v_.ood_whiten[static_cast<std::size_t>(row) * O + i];
        to[(static_cast<std::size_t>(block) * O + i) * kWhitenLanes + row % kWhitenLanes] = w;
        if (w != 0) end = std::max(end, i + 1);
      }
    }
    ood.threshold = v_.ood_threshold;
    ood.whitening = {O, ood.mean.data(), to, ood.ends.data()};
  }

  void schedule(Schedule& schedule) {
    float* biases = bump_.take<float>(p_.bias_floats(schedule));
    if (!bump_.counting()) p_.fold(schedule, biases);
  }

  void side(Side& side, const Kernels* kernels) {
    const Kernels& k = *kernels;
    side.kernels = kernels;
    const int pair = k.bf16_activations ? 2 : 1;  // inputs travel as (high, low) pairs
    side.obs_k = round_up(pair * v_.obs_dim, k.k_align);
    side.in_k = round_up(pair * v_.act_dim, k.k_align);
    side.head_width = round_up(v_.act_dim, k.panel);
    // Whole lines, an odd number of them: rows of tiles then fall into different cache sets.
    const auto stride = [](int n, std::size_t size) { return ((n * size + kLine - 1) / kLine | 1) * kLine; };
    const std::size_t size = k.bf16_activations ? 2 : 4;
    side.obs_stride = stride(side.obs_k, size);
    side.in_stride = stride(side.in_k, size);
    const int joint = side.obs_k + side.in_k;
    side.joint_k = k.joint_rows > 0 && joint <= k.joint_width ? joint : 0;
    side.joint_stride = side.joint_k == 0 ? 0 : stride(joint, size);
    // Where products of bytes quantise what they read, it is floats.
    side.act_stride = stride(p_.width, k.int8 == nullptr ? size : 4);

    // All of the actor lies together and first: it is what each step reads.
    side.actor = actor(k, side);
    side.critics.clear();
    for (int e = 0; e < v_.ensemble; ++e) side.critics.push_back(critic(k, side, e));
  }

  // Behind what each call reads, for calls of many rows only.
  void joint_inputs(Side& side) {
    const Kernels& k = *side.kernels;
    const int O = v_.obs_dim, A = v_.act_dim, H = v_.hidden, W = p_.width;
    if (side.joint_k == 0) return;
    std::vector<float> w(static_cast<std::size_t>(side.joint_k / 2) * H);
    const auto pack = [&](Net& net, const float* first) {
      const float* const in = first + static_cast<std::size_t>(O) * H;
      std::copy(first, in, w.begin());
      std::copy(in, in + static_cast<std::size_t>(A) * H, w.begin() + static_cast<std::ptrdiff_t>(side.obs_k / 2) * H);
      net.joint_w = panels(k, w.data(), side.joint_k / 2, H, side.joint_k, W, true);
    };
    pack(side.actor, v_.actor[0].w);
    for (int e = 0; e < v_.ensemble; ++e)
      pack(side.critics[e], v_.critic[0].w + static_cast<std::size_t>(e) * (O + A + 1) * H);
  }

 private:
  const void* panels(const Kernels& k, const float* w, int in, int out, int padded_in,
                     int padded_out, bool split) {
    char* to = bump_.take<char>(k.packed_bytes(padded_in, padded_out));
    if (!bump_.counting()) k.pack(w, in, out, padded_in, padded_out, split, to);
    return to;
  }

  // A hidden layer [H][H] in int8, its inputs times gain [H], or null: ones.
  const void* quantised(const Kernels& k, const float* w, const float* gain) {
    char* to = bump_.take<char>(k.int8->packed_bytes(p_.width, p_.width));
    if (!bump_.counting()) k.int8->pack(w, gain, v_.hidden, v_.hidden, p_.width, p_.width, to);
    return to;
  }

  // b [H] += c [H] @ w [H][H].
  void fold_offset(float* b, const float* w, const float* c) const {
    const int H = v_.hidden;
    for (int j = 0; j < H; ++j) {
      double sum = b[j];
      for (int i = 0; i < H; ++i)
        sum += static_cast<double>(c[i]) * static_cast<double>(w[static_cast<std::size_t>(i) * H + j]);
      b[j] = static_cast<float>(sum);
    }
  }

  // [n] -> [padded], zero beyond n.
  float* row(const float* from, int n, int padded) {
    float* to = bump_.take<float>(padded);
    if (!bump_.counting()) std::memcpy(to, from, n * sizeof(float));
    return to;
  }

  Net actor(const Kernels& k, const Side& side) {
    const int O = v_.obs_dim, A = v_.act_dim, H = v_.hidden, W = p_.width;
    const LayerView& first = v_.actor[0];
    const bool split = k.bf16_activations;
    Net net{};
    net.in_w = panels(k, first.w + static_cast<std::size_t>(O) * H, A, H, side.in_k, W, split);
    if (k.first != nullptr) {
      float* rows = bump_.take<float>(static_cast<std::size_t>(A) * W);
      if (!bump_.counting())
        for (int a = 0; a < A; ++a)
          std::memcpy(rows + static_cast<std::size_t>(a) * W, first.w + static_cast<std::size_t>(O + a) * H,
                      H * sizeof(float));
      net.in_rows = rows;
    }
    for (int l = 1; l < v_.depth; ++l) {
      const LayerView& layer = v_.actor[l];
      const void* w = k.int8 == nullptr ? panels(k, layer.w, H, H, W, W, false) : quantised(k, layer.w, nullptr);
      net.hidden.push_back({w, row(layer.b, H, W), nullptr, nullptr});
    }
    const LayerView& last = v_.actor[v_.depth];
    net.head_w = panels(k, last.w, H, A, W, side.head_width, false);
    net.head_b = row(last.b, A, side.head_width);
    if (k.head != nullptr) {
      float* rows = bump_.take<float>(static_cast<std::size_t>(A) * W);
      if (!bump_.counting())
        for (int a = 0; a < A; ++a)
          for (int i = 0; i < H; ++i)
            rows[static_cast<std::size_t>(a) * W + i] = last.w[static_cast<std::size_t>(i) * A + a];
      net.head_rows = rows;
    }
    net.obs_w = panels(k, first.w, O, H, side.obs_k, W, split);
    return net;
  }

  Net critic(const Kernels& k, const Side& side, int e) {
    const int O = v_.obs_dim, A = v_.act_dim, H = v_.hidden, W = p_.width;
    const float* w = v_.critic[0].w + static_cast<std::size_t>(e) * (O + A + 1) * H;
    const bool split = k.bf16_activations;
    Net net{};
    net.obs_w = panels(k, w, O, H, side.obs_k, W, split);
    net.in_w = panels(k, w + static_cast<std::size_t>(O) * H, A, H, side.in_k, W, split);
    net.g = row(v_.critic[0].g + static_cast<std::size_t>(e) * H, H, W);
    net.c = row(v_.critic[0].c + static_cast<std::size_t>(e) * H, H, W);
    for (int l = 1; l < v_.depth; ++l) {
      const LayerView& layer = v_.critic[l];
      const std::size_t at = static_cast<std::size_t>(e) * H;
      const float* g = row(layer.g + at, H, W);
      const float* c = row(layer.c + at, H, W);
      if (k.int8 == nullptr) {
        net.hidden.push_back({panels(k, layer.w + at * H, H, H, W, W, false), row(layer.b + at, H, W), g, c});
        continue;
      }
      // The LayerNorm before is folded in: its gain into the weights, its offset into the bias.
      const LayerView& before = v_.critic[l - 1];
      const void* folded = quantised(k, layer.w + at * H, before.g + at);
      float* b = row(layer.b + at, H, W);
      if (!bump_.counting()) fold_offset(b, layer.w + at * H, before.c + at);
      net.hidden.push_back({folded, b, g, c});
    }
    const LayerView& last = v_.critic[v_.depth];
    net.head_w = row(last.w + static_cast<std::size_t>(e) * H, H, W);
    net.head_b = row(last.b + e, 1, 1);
    return net;
  }

  const PolicyView& v_;
  Packed& p_;
  Bump& bump_;
};

// The pages that hold bytes [begin, end), added to others in the order of addresses.
void add_pages(std::vector<char*>& pages, char* begin, char* end) {
  begin -= reinterpret_cast<std::uintptr_t>(begin) % kPage;
  if (!pages.empty()) begin = std::max(begin, pages.back() + kPage);
  for (; begin < end; begin += kPage) pages.push_back(begin);
}

// What each step reads, where the second-level cache can hold it: all of the actor, or else what each of a team
// reads of it when it walks the layers together.
void place(const Packed& p) {
  const Kernels& k = *p.side.kernels;
  char* const begin = p.pages.data();
  char* const end = begin + (static_cast<const char*>(p.side.actor.obs_w) - begin);
  const std::size_t layer = k.int8 == nullptr ? k.packed_bytes(p.width, p.width) : k.int8->packed_bytes(p.width, p.width);
  std::vector<char*> pages;
  const auto bytes = static_cast<std::size_t>(end - begin);
  if (bytes <= most_placed()) {
    add_pages(pages, begin, end);
    return spread_over_cache(pages);
  }
  constexpr std::size_t most_parts = 4;
  std::size_t parts = 2;
  while (parts <= most_parts && bytes / parts > most_placed()) parts *= 2;
  for (std::size_t part = 0; part < parts && parts <= most_parts; ++part) {
    pages.clear();
    for (const PackedLayer& hidden : p.side.actor.hidden) {
      char* const w = begin + (static_cast<const char*>(hidden.w) - begin);
      add_pages(pages, w + layer * part / parts, w + layer * (part + 1) / parts);
    }
    spread_over_cache(pages);
  }
}

}  // namespace

std::size_t Packed::bias_floats(const Schedule& schedule) const {
  return (schedule.steps.size() + static_cast<std::size_t>(ensemble)) * width;
}

void Packed::fold(Schedule& schedule, float* biases) const {
  for (Step& step : schedule.steps) {
    for (int j = 0; j < hidden; ++j) {
      const double sum = first.b[j] + step.t * first.t[j];
      biases[j] = static_cast<float>(sum + step.log2_steps * first.log2_steps[j]);
    }
    step.bias = biases;
    biases += width;
  }
  schedule.critic_bias = biases;
  for (int e = 0; e < ensemble; ++e, biases += width)
    for (int j = 0; j < hidden; ++j) {
      const std::size_t at = static_cast<std::size_t>(e) * hidden + j;
      biases[j] = static_cast<float>(first.q_b[at] + static_cast<double>(schedule.k) * first.k[at]);
    }
}

std::shared_ptr<const Model> Model::make(const PolicyView& view, Precision precision, Isa isa,
                                         std::string& error) {
  const Kernels* kernels = find_kernels(isa, precision);
  if (kernels == nullptr) {
    error = std::string(name(isa)) + " is not there for " + name(precision);
    return nullptr;
  }
  try {
    auto p = std::make_unique<Packed>();
    p->obs_dim = view.obs_dim;
    p->act_dim = view.act_dim;
    p->chunk = view.chunk;
    p->hidden = view.hidden;
    p->depth = view.depth;
    p->ensemble = view.ensemble;
    p->width = round_up(view.hidden, kWidthAlign);
    p->q_min = view.q_min;
    p->precision = precision;
    p->isa = isa;
    p->low.assign(view.action_low, view.action_low + view.act_dim);
    p->high.assign(view.action_high, view.action_high + view.act_dim);
    for (int a = 0; a < view.act_dim; ++a) {
      const float scale = 2 / (p->high[a] - p->low[a]);
      p->scale.push_back(finite(scale) ? scale : 0);
    }
    if (view.map_low != nullptr) p->map = ActionMap(view.map_low, view.map_high, view.act_dim);
    const std::vector<float> least = p->map.applied(p->low), most = p->map.applied(p->high);
    for (std::size_t a = 0; a < least.size(); ++a) p->rest.push_back(std::min(std::max(0.0f, least[a]), most[a]));
    if (view.obs_mean != nullptr && view.obs_std != nullptr) {
      p->mean.assign(view.obs_mean, view.obs_mean + view.obs_dim);
      p->std.assign(view.obs_std, view.obs_std + view.obs_dim);
    }
    p->form = *view.form;
    p->draws = p->form.draws();
    for (const int steps : p->form.counts) p->schedules.push_back(p->form.schedule(steps));
    const auto lay_out = [&](char* base) {
      Bump bump(base);
      Packer packer(view, *p, bump);
      packer.side(p->side, kernels);
      packer.joint_inputs(p->side);
      packer.constants();
      packer.first_layers();
      for (Schedule& schedule : p->schedules) packer.schedule(schedule);
      if (view.ood_mean != nullptr) packer.ood(p->ood);
      return bump.used();
    };
    p->pages = Pages(lay_out(nullptr));
    lay_out(p->pages.data());
    place(*p);
    return std::shared_ptr<const Model>(new Model(std::move(p)));
  } catch (const std::bad_alloc&) {
    error = "out of memory while packing the policy";
    return nullptr;
  }
}

Model::Model(std::unique_ptr<Packed> packed) : packed_(std::move(packed)) {}
Model::~Model() = default;
int Model::obs_dim() const noexcept { return packed_->obs_dim; }
int Model::act_dim() const noexcept { return packed_->act_dim; }
int Model::ensemble() const noexcept { return packed_->ensemble; }
const Form& Model::form() const noexcept { return packed_->form; }
Precision Model::precision() const noexcept { return packed_->precision; }
Isa Model::isa() const noexcept { return packed_->isa; }

}  // namespace sorl
