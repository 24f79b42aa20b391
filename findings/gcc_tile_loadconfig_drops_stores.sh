#!/usr/bin/env bash
# Expected: _tile_loadconfig(&config) loads the 64 bytes that were stored into config just before.
# Happens: at -O2 the stores of all but the first bytes are gone: the intrinsic's operand is 8 bytes
#   ("m" of one pointer), so the compiler takes the rest for dead. ldtilecfg then reads whatever lay on the
#   stack: on hardware with AMX an illegal instruction or a fault, or wrong shapes.
# Versions: g++ (Debian 12.2.0-14+deb12u1) 12.2.0
# Date: 2026-11-29
# Matters: shapes of tiles are set in small functions that are inlined. An own ldtilecfg with the whole
#   structure as its operand keeps the stores.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compiler=${CXX:-g++}
version=$("$compiler" -dumpfullversion)
"$compiler" --version | head -1
if [[ $version != 12.* ]]; then
  echo "SKIPPED: this was seen with g++ 12, and this is $version"
  exit 0
fi
cat > "$work/tiles.cpp" <<'CPP'
#include <immintrin.h>

struct Config {
  unsigned char palette, start_row, reserved[14];
  unsigned short bytes_a_row[16];
  unsigned char rows[16];
};

void load(const Config& config) {
#ifdef WHOLE
  asm volatile("ldtilecfg %0" : : "m"(config));
#else
  _tile_loadconfig(&config);
#endif
}

void configure() {
  Config config{};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.bytes_a_row[i] = 77, config.rows[i] = 13;
  load(config);
}
CPP
stores() { # options: how often configure() stores its eight rows, 0x0d0d0d0d0d0d0d0d
  "$compiler" -O2 -mamx-tile "$@" -S -o "$work/tiles.s" "$work/tiles.cpp"
  sed -n '/^_Z9configurev:/,/cfi_endproc/p' "$work/tiles.s" | tee "$work/configure.s" >&2
  grep -q ldtilecfg "$work/configure.s"
  grep -c 940422246894996749 "$work/configure.s" || true
}
intrinsic=$(stores)
whole=$(stores -DWHOLE)
echo "stores of the rows before ldtilecfg: $intrinsic with the intrinsic, $whole with the whole structure as operand"
[[ $intrinsic == 0 && $whole != 0 ]]
