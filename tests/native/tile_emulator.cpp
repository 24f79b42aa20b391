// Runs AMX instructions on a machine that has none: a handler of SIGILL decodes the few that
// csrc/kernels/amx.cpp is compiled to, and does what the manual says to tiles kept in memory. So the
// very object code that ships is tested for its results, though not for its speed. Loaded as a shared
// library before the first tile instruction; one process, any number of threads (tiles are per thread).
#include <signal.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Tiles {
  bool configured = false;
  std::uint8_t config[64] = {};
  std::uint8_t data[8][16][64] = {};
  int rows(int t) const { return config[48 + t]; }
  int row_bytes(int t) const { return config[16 + 2 * t] | config[17 + 2 * t] << 8; }
};

thread_local Tiles tiles;
struct sigaction previous;

// Registers in the order of their encoding.
constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

[[noreturn]] void fault(const char* what) {
  std::fprintf(stderr, "tile emulator: %s\n", what);
  std::abort();
}

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

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
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < columns; ++n) {
      float sum[2] = {0, 0};
      for (int k = 0; k < pairs; ++k)
        for (int i = 0; i < 2; ++i)
          sum[i] = flush(std::fma(bf16(&tiles.data[a][m][4 * k + 2 * i]),
                                  bf16(&tiles.data[b][k][4 * n + 2 * i]), sum[i]));
      float total;
      std::memcpy(&total, &tiles.data[sums][m][4 * n], 4);
      total = flush(flush(total) + flush(sum[0] + sum[1]));
      std::memcpy(&tiles.data[sums][m][4 * n], &total, 4);
    }
    std::memset(&tiles.data[sums][m][4 * columns], 0, 64 - 4 * columns);
  }
  for (int m = rows; m < 16; ++m) std::memset(tiles.data[sums][m], 0, 64);
}

// True if the instruction at the program counter was a tile instruction, now done.
bool emulate(ucontext_t* context) {
  auto* g = context->uc_mcontext.gregs;
  const auto* p = reinterpret_cast<const std::uint8_t*>(g[REG_RIP]);
  if (p[0] != 0xC4 || (p[1] & 0x1F) != 2 || (p[2] & 0x84) != 0) return false;  // VEX.128.0F38.W0
  const int prefix = p[2] & 3, vvvv = ~p[2] >> 3 & 15, opcode = p[3], modrm = p[4];
  const int mod = modrm >> 6, reg = modrm >> 3 & 7;
  int rm = modrm & 7, length = 5;
  if (opcode != 0x49 && opcode != 0x4B && opcode != 0x5C) return false;

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
    for (int t = 0; t < 8; ++t)
      if (tiles.rows(t) > 16 || tiles.row_bytes(t) > 64) fault("a tile is too large");
    std::memset(tiles.data, 0, sizeof tiles.data);
    tiles.configured = true;
  } else if (opcode == 0x49 && mod == 3 && prefix == 0 && modrm == 0xC0) {  // tilerelease
    tiles.configured = false;
  } else {
    if (!tiles.configured) fault("tiles are used but not configured");
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
    } else {
      return false;
    }
  }
  g[REG_RIP] += length;
  return true;
}

void handle(int signal, siginfo_t*, void* context) {
  if (emulate(static_cast<ucontext_t*>(context))) return;
  sigaction(signal, &previous, nullptr);  // not ours: the instruction faults again, for good
}

}  // namespace

// Whether the handler is in place.
extern "C" int emulate_tiles() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGILL, &action, &previous) == 0 ? 1 : 0;
}
