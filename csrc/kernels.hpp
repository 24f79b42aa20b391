// The one interface that every instruction-set file fills. A Kernels is a table of functions over
// activations and packed weights; the engine calls nothing else that depends on the machine.
//
// Layouts. An activation row is `width` elements (fp32, or bf16 where `bf16_activations`), the row
// stride being a few lines longer so that rows don't share cache sets. Weights [K][N] are packed into
// panels of `panel` columns, a panel holding its K rows one after another: fp32 [K][panel], bf16
// [K/2][panel][2]. Rows and columns of padding are zero, so padded activations stay zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.hpp"
#include "pages.hpp"

namespace sorl {

inline constexpr int kWidthAlign = 32;    // hidden widths are padded to this
inline constexpr int kPointLanes = 16;  // candidates that are compared side by side
inline constexpr int kWhitenLanes = 32;  // outputs of a whitening that are summed side by side
inline constexpr int kInt8Group = 32;  // int8: columns of a panel; but on tiles values of a row that share one step

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

enum class Output {
  linear,      // y = float [rows][n]
  gelu,        // y = activations
  gelu_float,  // y = float: a LayerNorm follows, or bytes are made of it
  gelu_next,   // y = what the next product of Int8 reads
};

// y[r] = f(bias + init[r] + x[r] @ w), columns of panels [panel_begin, panel_end).
struct Dense {
  const void* x;             // activations [rows][k]
  std::size_t x_stride;      // bytes
  int rows;
  int k;                     // multiple of the kernels' k_align
  const void* w;             // panel 0
  int panel_begin, panel_end;
  const float* bias;         // [n]
  const float* const* init;  // [rows] pointers to [n], or null
  void* y;
  std::size_t y_stride;      // bytes
  Output output;
};

// x <- (x - mean) / sqrt(var + 1e-6) * g + c over `width` columns, `padded` of them stored.
struct Norm {
  const float* x;
  std::size_t x_stride;  // bytes
  int rows, width, padded;
  const float *g, *c;    // [padded], padding zero
  void* y;               // activations, or null: the head below
  std::size_t y_stride;  // bytes
  const float* head_w;   // [padded]: q[r] = norm(x[r]) . head_w + head_b
  float head_b;
  float* q;
};

// y[r][a] = b[a] + x[r] . w[a]: the actor's last layer for few rows. Its few outputs would fill a sixth
// of a panel, and each of them be one long chain of sums.
struct Head {
  const float* x;
  std::size_t x_stride;  // bytes
  int rows, width, outputs;
  const float* w;        // [outputs][width]
  const float* b;
  float* y;
  std::size_t y_stride;  // bytes
};

// y[r][n] = gelu(b[n] + init[r][n] + z[r] . w[.][n]), n from begin to end: the actor's first layer for few rows. Its
// few inputs would fill a sixth of a tile.
struct First {
  const float* z;  // [rows][inputs]
  int rows, inputs;
  const float* w;  // [inputs][width]
  int width;
  const float* b;
  const float* const* init;
  int begin, end;  // whole vectors
  void* y;         // floats where `floats`, else activations
  std::size_t y_stride;  // bytes
  bool floats;
};

// x -> (x + shift) * scale, of a row whose least value is `floor`.
struct RowAffine {
  float scale, shift, floor;
};

// The hidden layers in int8: kernels/int8.hpp, and on tiles kernels/amx_int8.hpp.
struct Int8 {
  std::size_t (*packed_bytes)(int k, int n);
  // gain [in], or null: ones, times w [in][out].
  void (*pack)(const float* w, const float* gain, int in, int out, int k, int n, void* packed);
  // What LayerNorm, less its gain and offset, does to each of float rows [padded].
  void (*affine)(const float* x, std::size_t x_stride, int rows, int width, int padded, RowAffine* to) noexcept;
  // Columns [begin, end), whole groups, of float rows [width] to quantised rows. affine, here and below:
  // null for GELU's output itself. Null: products read float rows, whole ones, and quantise them themselves.
  void (*quantise)(const float* x, std::size_t x_stride, const RowAffine* affine, int rows, int width, int begin,
                   int end, void* y, std::size_t y_stride) noexcept;
  // y = gelu(affine(x) @ w + bias), columns of panels of a group; x is as wide as y. Works in spare, floats [32 more
  // than rows][k].
  void (*dense)(const Dense&, const RowAffine*, float* spare) noexcept;
};

// Squares of Mahalanobis distances, |W (x - mean)|^2, W [dim][dim].
struct Whitening {
  int dim;
  const float* mean;  // [dim]
  const float* w;     // blocks of kWhitenLanes rows of W, each [dim][kWhitenLanes], padding zero
  const int* ends;    // of each block: its columns from here on are zero
};

struct Kernels {
  Isa isa;
  Precision precision;
  int panel;              // columns of a panel
  int k_align;            // K of every product is a multiple of this
  bool bf16_activations;  // else fp32
  // Up to so many rows the threads of a session walk the layers side by side, each owning columns; above,
  // each takes rows of its own. Together, a core reads and keeps only its share of the weights (fp32: a
  // whole actor of 3.3 MB doesn't fit its second-level cache) but waits and fetches the others'
  // activations after each layer. with_q: where critics are evaluated too, whose weights come from far.
  int together_rows, together_rows_with_q;
  // From so many rows on, more than walk together, and up to so many padded inputs (bf16), the first layer is one
  // product a step, not one of the observation a call and one of z a step: where to sum it again is cheaper than to
  // fetch the first product. 0: never.
  int joint_rows, joint_width;
  int block_rows;         // rows that go through all layers together in the throughput shape

  std::size_t (*packed_bytes)(int k, int n);
  // w [in][out] -> panels over padded k x n; input_split: each input became the pair (high, low).
  void (*pack)(const float* w, int in, int out, int k, int n, bool input_split, void* packed);
  // float [rows][n] -> activations, zero up to `k`; bf16: the pairs (high, low) of each value.
  void (*input)(const float* x, std::size_t x_stride, int rows, int n, int k, void* y,
                std::size_t y_stride) noexcept;
  void (*dense)(const Dense&) noexcept;
  const Int8* int8;  // or null: hidden layers are like the others. With it, activations are the first and last layers'
  void (*norm)(const Norm&) noexcept;
  void (*first)(const First&) noexcept;  // where it is faster than dense; or null
  void (*head)(const Head&) noexcept;  // null where the last hidden layer cannot be floats
  // tanh of n floats, whole panels of them, in place; of what is not finite a NaN.
  void (*tanh)(float* x, int n) noexcept;
  // Standard normals of `count` consecutive rows of the linear index row * candidates + candidate; `draw`, below
  // 256, is which of the candidate's.
  void (*normals)(std::uint64_t seed, std::uint32_t call, std::uint32_t row_offset, int candidates,
                  int act_dim, int first, int count, int draw, float* z) noexcept;
  // sums[i] = sum over j of |(x_j - x_i) scale|, of n points x [act_dim][stride] that can be read to whole
  // kPointLanes, finite there; scale [act_dim].
  void (*distance_sums)(const float* x, std::size_t stride, int n, int act_dim, const float* scale,
                        float* sums) noexcept;
  // Of `count` observations x [count][dim], finite ones: what is too large is infinite or a NaN. All instruction sets
  // sum in one order.
  void (*whiten)(const Whitening&, const float* x, int count, float* squares) noexcept;
  // What a rule draws by for a row, in [0, 1).
  double (*uniform)(std::uint64_t seed, std::uint32_t call, std::uint32_t row) noexcept;
  // Machine state around a call, on each thread (AMX tiles), or null.
  void (*enter)() noexcept;
  void (*leave)() noexcept;
};

// kernels/NAME.cpp: NAME_kernels, of the precisions that its row in isas.def lists.
#define ISA(name, needs, ...) const Kernels* name##_kernels(Precision);
#include "isas.def"

// Null where they are not there, or not available on this machine.
const Kernels* find_kernels(Isa, Precision);

}  // namespace sorl
