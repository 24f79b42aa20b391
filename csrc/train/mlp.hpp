// The network forward and backward as templates over a policy P, one per instruction set and precision:
//   T            element: float, or std::uint16_t holding bf16
//   precise      whether GELU is to be good to fp32
//   split        inputs of layer 1 enter as pairs (high, low)
//   transposes   a left operand that is read transposed must be transposed first (else: `gemm<true>`)
//   begin, end   machine state around a thread's work
//   store_row(T* natural, row, v16, v16), load_row, store_pair(T* paired, j, 4 v16): rows 2j, 2j + 1
//   store_transposed(const float* rows, T* paired), transpose(const T* natural, T* natural)
//   column_sums(const T* paired, n, float* sums)
//   gemm<transposed>(rows, columns, depth in blocks, ..., epilogue, last)
//
// Included by the instruction sets' files only.
#pragma once

#include "adam.hpp"
#include "backward.hpp"
#include "forward.hpp"
#include "pack.hpp"

namespace sorl::train {
namespace {

template <class P>
Ops table(Isa isa, Precision precision) {
  using T = typename P::T;
  Ops o{};
  o.isa = isa;
  o.precision = precision;
  o.element_bytes = sizeof(T);
  o.forward_bytes = [](const Shape& s) { return sizeof(T) * Plan<P>(s).fwd_size() * s.members; };
  o.backward_bytes = [](const Shape& s) { return sizeof(T) * Plan<P>(s).bwd_size() * s.members; };
  o.bias_floats = [](const Shape& s) { return Plan<P>(s).bias_floats(); };
  o.saved_bytes = [](const Shape& s, int rows, int steps) {
    const Plan<P> p(s);
    return Saved<P>(p, rows, steps).bytes();
  };
  o.shared_bytes = shared_bytes<P>;
  o.own_bytes = own_bytes<P>;
  o.pack = pack<P>;
  o.pack_rows = [](const Net& net, int e, int l, int kb, bool backward) {
    pack_hidden(Plan<P>(net.shape), net, e, l, kb, true, backward);
  };
  o.pack_rest = [](const Net& net, int item, bool backward) { pack_rest(Plan<P>(net.shape), net, item, true, backward); };
  o.forward = forward<P>;
  o.backward = backward<P>;
  o.adam = adam<P>;
  return o;
}

}  // namespace
}  // namespace sorl::train
