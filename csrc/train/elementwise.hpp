// Arithmetic on small arrays between two passes of the networks, each operation rounded as PyTorch rounds it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace sorl::train {

// An array of two dimensions that may be repeated along either (stride 0), or one number for all.
struct Operand {
  void* data = nullptr;  // null: `value`
  std::ptrdiff_t rows = 0, columns = 0;  // elements from one to the next
  float value = 0;
};

struct Elementwise {
  void (*run)(const Elementwise&);
  int rows, columns;
  Operand out, in[3];

  void operator()() const { run(*this); }
};

// out = op(in...), element by element. `op`:
//   copy, neg, abs              of a number
//   add, sub, mul, div          of two
//   sum, half_sum               a + b, (a + b) / 2; nothing is -0
//   min                         of two; a NaN is less than anything, and of 0 and -0 either may be given
//   clamp                       of a number, the least and the largest; a NaN stays one
//   ge, le, eq                  of two numbers: bytes 0 and 1
//   and                         of two such bytes
//   where                       of a byte and two numbers: the first where the byte isn't 0
//   row_sum_1, _4, _8, _16      of a row of `columns` numbers beside each other, so many lanes at a time (row_sum.hpp): out
//                               has one a row
// Throws std::invalid_argument: no such operation, or another number of operands.
Elementwise elementwise(const std::string& op, int rows, int columns, const Operand& out,
                        const std::vector<Operand>& in);

}  // namespace sorl::train
