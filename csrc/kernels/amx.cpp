// AMX: products on tiles. Its shapes, orders of reading and thresholds were fastest on a Xeon with 2 MiB of
// second-level cache a core (docs/speed.md has its times).
#include "amx_int8.hpp"
#include "choosing.hpp"
#include "philox.hpp"
#include "whitening.hpp"

namespace sorl {
namespace {

void enter() noexcept { configure_tiles(kTileRows); }
void leave() noexcept { _tile_release(); }

Kernels make(Precision precision) {
  static const Int8 int8{tiles_int8_packed_bytes, tiles_int8_pack, int8_affine<Avx512>, nullptr, tiles_int8_dense};
  Kernels k{};
  k.isa = Isa::amx;
  k.precision = precision;
  k.int8 = precision == Precision::int8 ? &int8 : nullptr;
  k.panel = WeightsTiles::panel;
  k.k_align = kTileK;
  k.bf16_activations = true;
  k.together_rows = k.int8 == nullptr ? 7 : 1;
  // A critic each: its weights come from far, and only once. In int8 so do the others' activations, which are floats.
  k.together_rows_with_q = k.int8 == nullptr ? 32 : 5;
  k.joint_rows = 64;
  k.joint_width = 256;
  k.block_rows = k.int8 == nullptr ? 512 : 128;
  k.packed_bytes = WeightsTiles::packed_bytes;
  k.pack = WeightsTiles::pack;
  k.input = input_bf16;
  k.dense = dense_bf16;
  k.norm = norm<Avx512, StoreBf16>;
  k.first = first_of_few;
  if (k.int8 != nullptr) k.head = head<Avx512>;
  k.tanh = tanh<Avx512>;
  k.normals = philox_normals;
  k.distance_sums = distance_sums;
  k.whiten = whiten;
  k.uniform = philox_uniform;
  k.enter = enter;
  k.leave = leave;
  return k;
}

}  // namespace

const Kernels* amx_kernels(Precision precision) {
  static const Kernels bf16 = make(Precision::bf16), int8 = make(Precision::int8);
  return precision == Precision::bf16 ? &bf16 : &int8;
}

}  // namespace sorl
