// AMX: products on tiles. This version is not timed on a machine that has them; its shapes, orders of reading
// and thresholds are those that were fastest there as a prototype.
#include "amx_bf16.hpp"
#include "choosing.hpp"
#include "philox.hpp"

namespace sorl {
namespace {

void enter() noexcept { configure_tiles(kTileRows); }
void leave() noexcept { _tile_release(); }

Kernels make() {
  Kernels k{};
  k.isa = Isa::amx;
  k.precision = Precision::bf16;
  k.panel = WeightsTiles::panel;
  k.k_align = kTileK;
  k.bf16_activations = true;
  k.together_rows = 7;
  k.together_rows_with_q = 32;  // a critic each: its weights come from far, and only once
  k.block_rows = 256;
  k.packed_bytes = WeightsTiles::packed_bytes;
  k.pack = WeightsTiles::pack;
  k.input = input_bf16;
  k.dense = dense_bf16;
  k.norm = norm<Avx512, StoreBf16>;
  k.tanh = tanh<Avx512>;
  k.normals = philox_normals;
  k.distance_sums = distance_sums;
  k.uniform = philox_uniform;
  k.enter = enter;
  k.leave = leave;
  return k;
}

}  // namespace

const Kernels* amx_kernels(Precision) {
  static const Kernels kernels = make();
  return &kernels;
}

}  // namespace sorl
