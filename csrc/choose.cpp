#include "choose.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "finite.hpp"

namespace sorl {

namespace {

// e^x of x <= 0 to 1e-15, without the C library, whose first call may take a lock to find its function.
double exp_below_0(double x) {
  if (!(x > -700)) return 0;
  const double n = static_cast<double>(static_cast<int>(x * 1.44269504088896340736 - 0.5));
  const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  for (const double c : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                         1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
    p = p * r + c;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &p, sizeof bits);
  bits += static_cast<std::uint64_t>(static_cast<std::int64_t>(n)) << 52;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

}  // namespace

void Chooser::lay_out(Bump& bump, const Packed& p, int candidates) {
  p_ = &p;
  const auto N = static_cast<std::size_t>(candidates);
  stride_ = static_cast<std::size_t>(round_up(candidates, kPointLanes));
  index_ = bump.take<std::int32_t>(N);
  order_ = bump.take<std::int32_t>(N);
  q_ = bump.take<float>(N);
  value_ = bump.take<float>(N);
  points_ = bump.take<float>(stride_ * static_cast<std::size_t>(p.act_dim));
}

template <class Before>
void Chooser::part(int size, Before before) noexcept {
  std::iota(order_, order_ + n_, 0);
  if (size >= n_) return;
  std::nth_element(order_, order_ + size, order_ + n_, before);
  std::sort(order_, order_ + size);
}

void Chooser::part_by_q(int size) noexcept {
  part(size, [this](std::int32_t i, std::int32_t j) { return q_[i] > q_[j] || (q_[i] == q_[j] && i < j); });
}

// The actions of order_[0, size), clipped, as points.
void Chooser::gather(const float* z, int size) noexcept {
  const int A = p_->act_dim;
  for (int i = 0; i < size; ++i) {
    const float* from = z + static_cast<std::size_t>(index_[order_[i]]) * A;
    for (int a = 0; a < A; ++a)
      points_[static_cast<std::size_t>(a) * stride_ + i] = std::min(std::max(from[a], p_->low[a]), p_->high[a]);
  }
  // What stands behind is summed in lanes of its own, and dropped: any number will do, but a NaN is slow.
  for (int i = size; i < round_up(size, kPointLanes); ++i)
    for (int a = 0; a < A; ++a) points_[static_cast<std::size_t>(a) * stride_ + i] = 0;
}

int Chooser::medoid(const float* z, int size) noexcept {
  gather(z, size);
  p_->side.kernels->distance_sums(points_, stride_, size, p_->act_dim, p_->scale.data(), value_);
  return order_[std::min_element(value_, value_ + size) - value_];
}

int Chooser::nearest(const float* z, int size) noexcept {
  std::fill(value_, value_ + n_, 0.0f);
  if (n_ > 2) {  // two are equally near to their mean, which rounding must not decide
    std::iota(order_, order_ + n_, 0);
    gather(z, n_);
    for (int a = 0; a < p_->act_dim; ++a) {
      const float* row = points_ + static_cast<std::size_t>(a) * stride_;
      float sum = 0;
      for (int i = 0; i < n_; ++i) sum += row[i];
      const float mean = sum / static_cast<float>(n_);
      for (int i = 0; i < n_; ++i) {
        const float d = (row[i] - mean) * p_->scale[static_cast<std::size_t>(a)];
        value_[i] += d * d;
      }
    }
    for (int i = 0; i < n_; ++i)  // bounds so wide that a difference overflows: a NaN has no place in an order
      if (value_[i] != value_[i]) value_[i] = std::numeric_limits<float>::infinity();
  }
  part(size, [this](std::int32_t i, std::int32_t j) {
    return value_[i] < value_[j] || (value_[i] == value_[j] && i < j);
  });
  int best = order_[0];
  for (int i = 1; i < size; ++i)
    if (q_[order_[i]] > q_[best]) best = order_[i];
  return best;
}

int Chooser::soft(float tau, double u) noexcept {
  const auto n = static_cast<float>(n_);
  float most = q_[0], sum = 0, squares = 0;
  for (int i = 0; i < n_; ++i) {
    most = std::max(most, q_[i]);
    sum += q_[i];
  }
  const float mean = sum / n;
  for (int i = 0; i < n_; ++i) squares += (q_[i] - mean) * (q_[i] - mean);
  const float scale = tau * std::sqrt(squares / n);
  const bool flat = !(scale > 0) || !finite(scale);
  float total = 0;
  for (int i = 0; i < n_; ++i) {
    total += flat ? 1.0f : static_cast<float>(exp_below_0(static_cast<double>((q_[i] - most) / scale)));
    value_[i] = total;
  }
  const float drawn = static_cast<float>(u) * total;
  for (int i = 0; i < n_; ++i)
    if (value_[i] > drawn) return i;
  return n_ - 1;
}

int Chooser::pick(const Rule& rule, const float* z, double u) noexcept {
  if (n_ == 0) return -1;
  const int size = rule.part(n_);
  int at = 0;
  switch (rule.kind) {
    case Rule::Kind::argmax:
      part_by_q(1);
      at = order_[0];
      break;
    case Rule::Kind::better:
      part_by_q(size);
      at = order_[static_cast<int>(u * size)];
      break;
    case Rule::Kind::medoid:
      part_by_q(size);
      at = medoid(z, size);
      break;
    case Rule::Kind::nearest: at = nearest(z, size); break;
    case Rule::Kind::soft: at = soft(static_cast<float>(rule.parameter()), u); break;
    case Rule::Kind::centre:
      std::iota(order_, order_ + n_, 0);
      at = medoid(z, n_);
  }
  return index_[at];
}

}  // namespace sorl
