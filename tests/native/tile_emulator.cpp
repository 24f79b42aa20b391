// Runs AMX and AVX512_BF16 instructions on a machine with AVX-512 that has none: a handler of SIGILL decodes
// the few that csrc/kernels/amx.cpp and csrc/train/amx.cpp are compiled to, and does what the manual says, to
// tiles kept in memory. So the very object code that ships is tested for its results, though not for its speed.
// Loaded as a shared library before the first tile instruction; one process, any number of threads (tiles are
// per thread).
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

struct Tiles {
  bool configured = false;
  std::uint8_t config[64] = {};
  std::uint8_t data[8][16][64] = {};
  int rows(int t) const { return config[48 + t]; }
  int row_bytes(int t) const { return config[16 + 2 * t] | config[17 + 2 * t] << 8; }
  bool there(int t) const { return configured && rows(t) != 0; }
};

// For a test of what is multiplied: products of tiles, and operands and sums that are zero, denormal or not finite.
std::atomic<long> products{0}, odd_operands{0}, odd_sums{0};

thread_local Tiles tiles;
struct sigaction previous;

// Registers in the order of their encoding.
constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

[[noreturn]] void fault(const char* what) {
  std::fprintf(stderr, "tile emulator: %s\n", what);
  std::abort();
}

bool odd(float x) { return !std::isnormal(x); }

float flush(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

float bf16(const std::uint8_t* p) {
  const std::uint32_t u = static_cast<std::uint32_t>(p[0] | p[1] << 8) << 16;
  float x;
  std::memcpy(&x, &u, sizeof x);
  return flush(x);
}

void product(int sums, int a, int b) {
  const int rows = tiles.rows(sums), columns = tiles.row_bytes(sums) / 4, pairs = tiles.row_bytes(a) / 4;
  if (tiles.rows(a) != rows || tiles.rows(b) != pairs || tiles.row_bytes(b) != tiles.row_bytes(sums))
    fault("tile shapes do not fit");
  float x[16][32], w[16][32];
  long odd_here = 0;
  const auto read = [&](int t, float (&to)[16][32]) {
    for (int r = 0; r < tiles.rows(t); ++r)
      for (int i = 0; i < tiles.row_bytes(t) / 2; ++i) {
        to[r][i] = bf16(&tiles.data[t][r][2 * i]);
        odd_here += odd(to[r][i]);
      }
  };
  read(a, x);
  read(b, w);
  ++products;
  odd_operands += odd_here;
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < columns; ++n) {
      float sum[2] = {0, 0};
      for (int k = 0; k < pairs; ++k)
        for (int i = 0; i < 2; ++i)
          sum[i] = flush(std::fma(x[m][2 * k + i], w[k][2 * n + i], sum[i]));
      float total;
      std::memcpy(&total, &tiles.data[sums][m][4 * n], 4);
      total = flush(flush(total) + flush(sum[0] + sum[1]));
      std::memcpy(&tiles.data[sums][m][4 * n], &total, 4);
      if (odd(total)) ++odd_sums;
    }
    std::memset(&tiles.data[sums][m][4 * columns], 0, 64 - 4 * columns);
  }
  for (int m = rows; m < 16; ++m) std::memset(tiles.data[sums][m], 0, 64);
}

// Of unsigned by signed bytes.
void byte_product(int sums, int a, int b) {
  const int rows = tiles.rows(sums), columns = tiles.row_bytes(sums) / 4, fours = tiles.row_bytes(a) / 4;
  if (tiles.rows(a) != rows || tiles.rows(b) != fours || tiles.row_bytes(b) != tiles.row_bytes(sums))
    fault("tile shapes do not fit");
  ++products;
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < columns; ++n) {
      std::uint32_t total;  // wraps around
      std::memcpy(&total, &tiles.data[sums][m][4 * n], 4);
      for (int k = 0; k < fours; ++k)
        for (int i = 0; i < 4; ++i)
          total += static_cast<std::uint32_t>(tiles.data[a][m][4 * k + i] *
                                              static_cast<std::int8_t>(tiles.data[b][k][4 * n + i]));
      std::memcpy(&tiles.data[sums][m][4 * n], &total, 4);
    }
    std::memset(&tiles.data[sums][m][4 * columns], 0, 64 - 4 * columns);
  }
  for (int m = rows; m < 16; ++m) std::memset(tiles.data[sums][m], 0, 64);
}

// The vector registers of an interrupted thread: in three pieces, as XSAVE lays them out, of which a piece that
// was all zeros may not have been written.
class Vectors {
 public:
  explicit Vectors(ucontext_t* context) : area_(reinterpret_cast<std::uint8_t*>(context->uc_mcontext.fpregs)) {}

  void get(int r, std::uint8_t (&to)[64]) const {
    for (const Piece& p : pieces(r)) {
      if (there(p))
        std::memcpy(to + p.from, area_ + p.at, p.bytes);
      else
        std::memset(to + p.from, 0, p.bytes);
    }
  }
  void set(int r, const std::uint8_t (&from)[64]) {
    for (const Piece& p : pieces(r)) {
      if (!there(p)) {
        std::memset(area_ + p.start, 0, p.size);
        area_[512 + p.component / 8] |= static_cast<std::uint8_t>(1 << p.component % 8);
      }
      std::memcpy(area_ + p.at, from + p.from, p.bytes);
    }
  }

 private:
  struct Piece {
    int component;            // of XSAVE
    std::size_t start, size;  // of all of the component
    std::size_t at;           // of this register's part
    int from, bytes;          // which part of the register
  };
  struct Three {
    Piece pieces[3];
    int n;
    const Piece* begin() const { return pieces; }
    const Piece* end() const { return pieces + n; }
  };
  static Piece piece(int component, std::size_t in_component, int from, int bytes) {
    if (component == 1) return {1, 160, 256, 160 + in_component, from, bytes};
    unsigned size = 0, start = 0, c, d;
    __cpuid_count(0xD, component, size, start, c, d);
    return {component, start, size, start + in_component, from, bytes};
  }
  static Three pieces(int r) {
    const auto n = static_cast<std::size_t>(r);
    if (r >= 16) return {{piece(7, (n - 16) * 64, 0, 64), {}, {}}, 1};
    return {{piece(1, n * 16, 0, 16), piece(2, n * 16, 16, 16), piece(6, n * 32, 32, 32)}, 3};
  }
  bool there(const Piece& p) const { return (area_[512 + p.component / 8] >> p.component % 8 & 1) != 0; }

  std::uint8_t* area_;
};

// To the nearest, ties to even; denormals are zero, a NaN stays one.
std::uint16_t to_bf16(const std::uint8_t* p) {
  float x;
  std::memcpy(&x, p, sizeof x);
  x = flush(x);
  std::uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  if (std::isnan(x)) return static_cast<std::uint16_t>(u >> 16 | 0x40);
  return static_cast<std::uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

// vcvtneps2bf16, vcvtne2ps2bf16 and vdpbf16ps on registers, without a mask.
bool emulate_bf16(ucontext_t* context) {
  auto* g = context->uc_mcontext.gregs;
  const auto* p = reinterpret_cast<const std::uint8_t*>(g[REG_RIP]);
  if (p[0] != 0x62 || (p[1] & 0x0F) != 2 || (p[2] & 0x84) != 4) return false;  // EVEX.0F38.W0
  const int prefix = p[2] & 3, opcode = p[4], modrm = p[5], bytes = 16 << (p[3] >> 5 & 3);
  const bool one = opcode == 0x72 && prefix == 2, two = opcode == 0x72 && prefix == 3, dot = opcode == 0x52 && prefix == 2;
  if (!one && !two && !dot) return false;
  if (modrm >> 6 != 3 || (p[3] & 0x97) != 0) fault("a form of a bf16 instruction that this does not know");
  const int to = (modrm >> 3 & 7) | (~p[1] >> 7 & 1) << 3 | (~p[1] >> 4 & 1) << 4;
  const int first = (~p[2] >> 3 & 15) | (~p[3] >> 3 & 1) << 4;
  const int second = (modrm & 7) | (~p[1] >> 5 & 1) << 3 | (~p[1] >> 6 & 1) << 4;
  Vectors vectors(context);
  std::uint8_t a[64], b[64], y[64] = {};
  vectors.get(first, a);
  vectors.get(second, b);
  if (dot) {
    vectors.get(to, y);
    for (int i = 0; i < bytes; i += 4) {
      float sum;
      std::memcpy(&sum, y + i, 4);
      for (const int high : {2, 0}) sum = flush(std::fma(bf16(a + i + high), bf16(b + i + high), flush(sum)));
      std::memcpy(y + i, &sum, 4);
    }
    std::memset(y + bytes, 0, 64 - bytes);
  } else {
    for (int i = 0; i < bytes; i += 4) {
      const std::uint16_t low = to_bf16(b + i), high = to_bf16(a + i);
      std::memcpy(y + i / 2, &low, 2);
      if (two) std::memcpy(y + bytes / 2 + i / 2, &high, 2);
    }
  }
  vectors.set(to, y);
  g[REG_RIP] += 6;
  return true;
}

// True if the instruction at the program counter was a tile instruction, now done.
bool emulate(ucontext_t* context) {
  auto* g = context->uc_mcontext.gregs;
  const auto* p = reinterpret_cast<const std::uint8_t*>(g[REG_RIP]);
  if (p[0] != 0xC4 || (p[1] & 0x1F) != 2 || (p[2] & 0x84) != 0) return false;  // VEX.128.0F38.W0
  const int prefix = p[2] & 3, vvvv = ~p[2] >> 3 & 15, opcode = p[3], modrm = p[4];
  const int mod = modrm >> 6, reg = modrm >> 3 & 7;
  int rm = modrm & 7, length = 5;
  if (opcode != 0x49 && opcode != 0x4B && opcode != 0x5C && opcode != 0x5E) return false;

  std::uint64_t address = 0, stride = 0;
  if (mod != 3) {
    int base = rm | (~p[1] >> 5 & 1) << 3;
    bool absolute = false;
    if (rm == 4) {
      const int sib = p[length++];
      const int index = (sib >> 3 & 7) | (~p[1] >> 6 & 1) << 3;
      base = (sib & 7) | (~p[1] >> 5 & 1) << 3;
      if (index != 4) stride = static_cast<std::uint64_t>(g[kRegisters[index]]) << (sib >> 6);
      absolute = mod == 0 && (base & 7) == 5;
    } else if (mod == 0 && rm == 5) {
      absolute = true;
    }
    std::int32_t displacement = 0;
    if (mod == 1) {
      displacement = static_cast<std::int8_t>(p[length++]);
    } else if (mod == 2 || absolute) {
      std::memcpy(&displacement, p + length, 4);
      length += 4;
    }
    if (absolute)
      address = rm == 5 ? reinterpret_cast<std::uint64_t>(p) + length : 0;
    else
      address = g[kRegisters[base]];
    address += displacement;
  }
  auto* memory = reinterpret_cast<std::uint8_t*>(address);

  if (opcode == 0x49 && mod != 3 && prefix == 0) {  // ldtilecfg
    std::memcpy(tiles.config, memory + (rm == 4 ? stride : 0), 64);
    if (tiles.config[0] != 1) fault("palette is not 1");
    for (int i = 1; i < 64; ++i)
      if ((i < 16 || (i >= 32 && i < 48) || i >= 56) && tiles.config[i] != 0)
        fault("reserved bytes of a configuration are not zero");
    for (int t = 0; t < 8; ++t) {
      if (tiles.rows(t) > 16 || tiles.row_bytes(t) > 64) fault("a tile is too large");
      if ((tiles.rows(t) == 0) != (tiles.row_bytes(t) == 0)) fault("a tile has rows or bytes, but not both");
    }
    std::memset(tiles.data, 0, sizeof tiles.data);
    tiles.configured = true;
  } else if (opcode == 0x49 && mod == 3 && prefix == 0 && modrm == 0xC0) {  // tilerelease
    tiles.configured = false;
  } else {
    const bool all = (opcode != 0x5C && opcode != 0x5E) || (tiles.there(rm) && tiles.there(vvvv));
    if (!tiles.there(reg) || !all) fault("a tile is used but not configured");
    if (opcode == 0x49 && mod == 3 && prefix == 3) {  // tilezero
      std::memset(tiles.data[reg], 0, sizeof tiles.data[reg]);
    } else if (opcode == 0x4B && mod != 3 && (prefix == 3 || prefix == 1)) {  // tileloadd, tileloaddt1
      std::memset(tiles.data[reg], 0, sizeof tiles.data[reg]);
      for (int r = 0; r < tiles.rows(reg); ++r)
        std::memcpy(tiles.data[reg][r], memory + r * stride, tiles.row_bytes(reg));
    } else if (opcode == 0x4B && mod != 3 && prefix == 2) {  // tilestored
      for (int r = 0; r < tiles.rows(reg); ++r)
        std::memcpy(memory + r * stride, tiles.data[reg][r], tiles.row_bytes(reg));
    } else if (opcode == 0x5C && mod == 3 && prefix == 2) {  // tdpbf16ps
      product(reg, rm, vvvv);
    } else if (opcode == 0x5E && mod == 3 && prefix == 1) {  // tdpbusd
      byte_product(reg, rm, vvvv);
    } else {
      return false;
    }
  }
  g[REG_RIP] += length;
  return true;
}

void handle(int signal, siginfo_t*, void* context) {
  if (emulate(static_cast<ucontext_t*>(context)) || emulate_bf16(static_cast<ucontext_t*>(context))) return;
  sigaction(signal, &previous, nullptr);  // not ours: the instruction faults again, for good
}

}  // namespace

extern "C" long tile_products() { return products; }
extern "C" long odd_tile_operands() { return odd_operands; }
extern "C" long odd_tile_sums() { return odd_sums; }

// Whether the handler is in place.
extern "C" int emulate_tiles() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, &previous) == 0 ? 1 : 0;
}
