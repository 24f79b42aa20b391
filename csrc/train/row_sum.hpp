// A sum in the order in which PyTorch adds the numbers of a contiguous row, so that it has PyTorch's bits.
//
// PyTorch adds `lanes` neighbours at a time, as its instruction set does, and beside each other four such vectors: 0, 4, 8
// and so on to the first, 1, 5, 9 and so on to the second. Each of the four is added in a hierarchy: sums of at least 16
// vectors are added to sums of as many of these, up to four levels, so that the rounding errors stay small. The vectors and
// numbers that are left over come last, and then the lanes are added up. Whether it does so is asked, not taken for
// granted: see ops/program.py.
#pragma once

namespace sorl::train {

// Four running sums of `lanes` numbers each, at one level.
template <int lanes>
struct SumLevel {
  float sums[4][lanes] = {};
  void add(const float* x) {
    for (int k = 0; k < 4; ++k)
      for (int i = 0; i < lanes; ++i) sums[k][i] += x[k * lanes + i];
  }
  void take(SumLevel& below) {
    add(below.sums[0]);
    below = {};
  }
};

template <int lanes>
float row_sum(const float* x, int n) {
  constexpr int kLevels = 4;
  if (lanes > 1 && n < lanes) return row_sum<1>(x, n);
  const int vectors = n / lanes, fours = vectors / 4;
  int power = 0;
  while (1 << power < fours) ++power;
  power = power / kLevels > 4 ? power / kLevels : 4;

  SumLevel<lanes> levels[kLevels];
  for (int i = 0; i < fours;) {
    levels[0].add(x + 4 * lanes * i++);
    // where a level is full it is added to the next one
    for (int j = 1; j < kLevels && i % (1 << j * power) == 0; ++j) levels[j].take(levels[j - 1]);
  }
  for (int j = 1; j < kLevels; ++j) levels[0].add(levels[j].sums[0]);

  auto& sums = levels[0].sums;
  for (int v = 4 * fours; v < vectors; ++v)
    for (int i = 0; i < lanes; ++i) sums[0][i] += x[v * lanes + i];
  for (int k = 1; k < 4; ++k)
    for (int i = 0; i < lanes; ++i) sums[0][i] += sums[k][i];
  if (lanes == 1) return sums[0][0];
  float total = 0.0f;
  for (int i = vectors * lanes; i < n; ++i) total += x[i];
  for (int i = 0; i < lanes; ++i) total += sums[0][i];
  return total;
}

}  // namespace sorl::train
