#include "elementwise.hpp"

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "row_sum.hpp"

namespace sorl::train {
namespace {

using Byte = std::uint8_t;

template <class T>
struct Reader {
  const T* data;
  std::ptrdiff_t rows, columns;
  explicit Reader(const Operand& x) : data(static_cast<const T*>(x.data)), rows(x.rows), columns(x.columns) {
    if constexpr (sizeof(T) == sizeof(float))
      if (x.data == nullptr) data = &x.value;
  }
  T operator()(int r, int c) const { return data[r * rows + c * columns]; }
};

template <class Out, class... In, class F, std::size_t... i>
void each(const Elementwise& e, F f, std::index_sequence<i...>) {
  const auto visit = [&](auto... in) {
    Out* out = static_cast<Out*>(e.out.data);
    for (int r = 0; r < e.rows; ++r)
      for (int c = 0; c < e.columns; ++c) out[r * e.out.rows + c * e.out.columns] = f(in(r, c)...);
  };
  visit(Reader<In>(e.in[i])...);
}

template <int lanes>
void row_sums(const Elementwise& e) {
  const float* x = static_cast<const float*>(e.in[0].data);
  float* out = static_cast<float*>(e.out.data);
  for (int r = 0; r < e.rows; ++r) out[r * e.out.rows] = row_sum<lanes>(x + r * e.in[0].rows, e.columns);
}

struct Entry {
  const char* name;
  std::size_t operands;
  void (*run)(const Elementwise&);
};

// f is a stateless lambda: each operation is a loop of its own.
template <class Out, class... In, class F>
Entry entry(const char* name, F) {
  return {name, sizeof...(In), [](const Elementwise& e) { each<Out, In...>(e, F{}, std::index_sequence_for<In...>{}); }};
}

struct Add { float operator()(float a, float b) const { return a + b; } };
struct Sub { float operator()(float a, float b) const { return a - b; } };
struct Mul { float operator()(float a, float b) const { return a * b; } };
struct Div { float operator()(float a, float b) const { return a / b; } };
struct Sum { float operator()(float a, float b) const { return 0.0f + a + b; } };
struct HalfSum { float operator()(float a, float b) const { return (0.0f + a + b) / 2.0f; } };
struct Min { float operator()(float a, float b) const { return a != a || a < b ? a : b; } };
struct Copy { float operator()(float a) const { return a; } };
struct Neg { float operator()(float a) const { return -a; } };
struct Abs { float operator()(float a) const { return std::fabs(a); } };
struct Clamp {
  float operator()(float x, float least, float largest) const { return x < least ? least : x > largest ? largest : x; }
};
struct Ge { Byte operator()(float a, float b) const { return a >= b; } };
struct Le { Byte operator()(float a, float b) const { return a <= b; } };
struct Eq { Byte operator()(float a, float b) const { return a == b; } };
struct And { Byte operator()(Byte a, Byte b) const { return a != 0 && b != 0; } };
struct Where { float operator()(Byte c, float a, float b) const { return c != 0 ? a : b; } };

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = {
      entry<float, float, float>("add", Add{}),
      entry<float, float, float>("sub", Sub{}),
      entry<float, float, float>("mul", Mul{}),
      entry<float, float, float>("div", Div{}),
      entry<float, float, float>("sum", Sum{}),
      entry<float, float, float>("half_sum", HalfSum{}),
      entry<float, float, float>("min", Min{}),
      entry<float, float>("copy", Copy{}),
      entry<float, float>("neg", Neg{}),
      entry<float, float>("abs", Abs{}),
      entry<float, float, float, float>("clamp", Clamp{}),
      entry<Byte, float, float>("ge", Ge{}),
      entry<Byte, float, float>("le", Le{}),
      entry<Byte, float, float>("eq", Eq{}),
      entry<Byte, Byte, Byte>("and", And{}),
      entry<float, Byte, float, float>("where", Where{}),
      {"row_sum_1", 1, row_sums<1>},
      {"row_sum_4", 1, row_sums<4>},
      {"row_sum_8", 1, row_sums<8>},
      {"row_sum_16", 1, row_sums<16>},
  };
  return all;
}

}  // namespace

Elementwise elementwise(const std::string& op, int rows, int columns, const Operand& out,
                        const std::vector<Operand>& in) {
  for (const Entry& e : entries()) {
    if (op != e.name) continue;
    if (in.size() != e.operands)
      throw std::invalid_argument(op + " takes " + std::to_string(e.operands) + " operands, not " +
                                  std::to_string(in.size()));
    Elementwise made{e.run, rows, columns, out, {}};
    for (std::size_t i = 0; i < in.size(); ++i) made.in[i] = in[i];
    return made;
  }
  throw std::invalid_argument("no elementwise operation " + op);
}

}  // namespace sorl::train
