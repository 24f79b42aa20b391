// The Kernels of a vector type whose activations are fp32: all of it is the template's.
#pragma once

#include "choosing.hpp"
#include "dense.hpp"
#include "philox.hpp"
#include "whitening.hpp"

namespace sorl {
namespace {

template <class V, class Weights>
Kernels table(Isa isa, int block_rows) {
  Kernels k{};
  k.isa = isa;
  k.precision = Weights::precision;
  k.panel = V::W * V::panel_vectors;
  k.k_align = Weights::k_step;
  k.bf16_activations = false;
  k.together_rows = k.together_rows_with_q = Weights::precision == Precision::fp32 ? 31 : 15;
  k.block_rows = block_rows;
  k.packed_bytes = Weights::packed_bytes;
  k.pack = Weights::pack;
  k.input = input_f32;
  k.dense = Layer<V, Weights>::run;
  k.norm = norm<V, StoreF32<V>>;
  k.head = head<V>;
  k.tanh = tanh<V>;
  k.normals = philox_normals;
  k.distance_sums = distance_sums;
  k.whiten = whiten;
  k.uniform = philox_uniform;
  return k;
}

// fp32 and bf16 of V.
template <class V>
const Kernels* tables(Isa isa, Precision precision, int block_rows) {
  static const Kernels fp32 = table<V, WeightsF32<V>>(isa, block_rows);
  static const Kernels bf16 = table<V, WeightsBf16<V>>(isa, block_rows);
  return precision == Precision::fp32 ? &fp32 : &bf16;
}

}  // namespace
}  // namespace sorl
