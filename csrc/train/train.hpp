// Native training: one multi-layer perceptron, evaluated over S Euler steps (S = 1: once), forward and
// backward, for an ensemble of E members; and the optimiser step. The actor and the critic are both
// instances. Nothing here sees Python.
//
// Blocks. Every matrix of a product is cut into blocks of 32 x 32 elements, kPitch elements apart, in one
// of two layouts: `natural`, row-major, the left operand; `paired`, the right operand: in fp32 the same,
// in bf16 two tiles of 16 columns, each [16 pairs of rows][16 columns][2], as TDPBF16PS and VDPBF16PS
// read it. Rows and columns of padding are zero.
//
// Layer 1 reads [x, a, extra]. Its product is split in two groups: the observation's part is computed
// once for all steps, the action group's (action and extra columns) at each. In bf16 each input enters
// as the pair (high, low), so that inputs keep 16 bits of mantissa.
//
// LayerNorm's gain and shift are folded into the next layer's weights and bias: x^ is what is stored.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../isa.hpp"
#include "../team.hpp"

namespace sorl::train {

inline constexpr int kBlock = 32;             // rows and columns of a block
inline constexpr int kArea = kBlock * kBlock;  // its elements
// Elements from a block to the next. A few lines more than a block holds: blocks of fp32 are 4 KiB, and
// rows that run across blocks would fight for two sets of the first-level cache (measured: LayerNorm's
// passes took a sixth of the critic's forward).
inline constexpr int kPitch = kArea + 32;
inline constexpr int kMaxDepth = 16;

constexpr int blocks(int n) { return (n + kBlock - 1) / kBlock; }

struct Shape {
  int obs, act, extra;  // columns of layer 1's input: observation, action (0 of V(x)), extra scalars
  int hidden, depth;    // hidden layers of that width
  int out, members;
  bool norm;  // LayerNorm after each hidden layer's GELU

  int group() const { return act + extra; }
  int inputs() const { return obs + act + extra; }
  int in(int layer) const { return layer == 0 ? inputs() : hidden; }
  int width(int layer) const { return layer == depth ? out : hidden; }
};

// One layer's parameters, members one after another.
struct Layer {
  const float* w;  // [E, in, out]
  const float* b;  // [E, out]
  const float* g;  // [E, out] or null
  const float* c;
};

struct LayerGrad {
  float *w, *b, *g, *c;
};

// A network's weights as the products read them.
struct Net {
  Shape shape;
  Layer layers[kMaxDepth + 1];
  void* forward;   // Ops::forward_bytes
  void* backward;  // Ops::backward_bytes
  float* bias;     // Ops::bias_floats
};

// Where a call's work memory is: grown by the runtime, never shrunk.
struct Scratch {
  void* shared;
  void* own[8];  // one a thread
};

struct Forward {
  const Net* net;
  int rows, steps;       // B, S
  const float* obs;      // [B, O]
  const float* act;      // [B, A]: z_0, or actions
  const float* extra[2];  // per row [B], or null: extra_value
  float extra_value[2];  // rollout: extra 0 is the time i/S whatever this says
  bool rollout;          // z <- z + net/S, S times, then clip; else `out` is the network's output
  float* out;            // rollout [B, A]; else [E, B, out]
  void* saved;           // Ops::saved_bytes, or null
  Scratch scratch;
};

struct Backward {
  const Net* net;
  int rows, steps;
  bool rollout;
  const float* grad;  // of `out`
  const void* saved;
  LayerGrad* layers;  // [depth + 1], or null: no gradient of the weights
  float* grad_obs;    // [B, O] or null, summed over the members
  float* grad_act;    // [B, A] or null
  Scratch scratch;
};

struct Ops;

// A network that is packed anew, for forward and perhaps for backward, while its parameters are near.
struct Packing {
  const Ops* ops;
  const Net* net;  // packed before: its layers are there
  bool backward;
};

struct Adam {
  int tensors;
  float* const* param;
  const float* const* const* grads;  // [sums][tensors]: gradients that are added up
  int sums;
  float* const* first;
  float* const* second;
  float* const* target;  // or null: no EMA
  const std::int64_t* sizes;
  double lr, b1, b2, eps, clip_norm, tau;
  bool ema_before;  // the targets follow the parameters as they were before the step
  std::int64_t step;
  const Packing* packings;  // [packed]: networks of which `param` or `target` are parameters
  int packed;
  double* partial;  // [chunks] of work memory
  float* norm;      // result
};

inline constexpr std::int64_t kAdamChunk = 1 << 14;  // elements that one partial sum covers

constexpr int rest_items(const Shape& s) { return s.members * (s.depth + 2); }

// One instruction set and precision.
struct Ops {
  Isa isa;
  Precision precision;
  std::size_t element_bytes;  // of a stored activation
  std::size_t (*forward_bytes)(const Shape&);
  std::size_t (*backward_bytes)(const Shape&);
  std::size_t (*bias_floats)(const Shape&);
  std::size_t (*saved_bytes)(const Shape&, int rows, int steps);
  // Bytes of Scratch::shared and of each Scratch::own.
  std::size_t (*shared_bytes)(const Shape&, int rows, int steps);
  std::size_t (*own_bytes)(const Shape&);
  void (*pack)(Team&, const Net&, bool forward, bool backward);
  // The parts of `pack`, forward included: rows 32 kb to 32 kb + 32 of layer l >= 1 of member e, and when all
  // of these are done, items 0 to rest_items of the rest.
  void (*pack_rows)(const Net&, int e, int l, int kb, bool backward);
  void (*pack_rest)(const Net&, int item, bool backward);
  void (*forward)(Team&, const Forward&);
  void (*backward)(Team&, const Backward&);
  void (*adam)(Team&, const Adam&);
};

// train/NAME.cpp: NAME_ops, of the precisions that its row in isas.def lists.
#define TRAINS(name, ...) const Ops* name##_ops(Precision);
#include "../isas.def"

// Null where they are not there, or not available on this machine.
const Ops* find_ops(Isa, Precision);

}  // namespace sorl::train
