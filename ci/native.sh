#!/usr/bin/env bash
# Checks of the native library that pytest does not make. Each stage stands alone:
#
#   ci/native.sh [STAGE...]       all of them without an argument, in this order
#
#   tools    installs what the others, and the tests of the reports in a browser, need (Debian; as root)
#   gcc      builds with g++, without a warning; runs the C++ tests; looks at the exported names
#   realtime SORL_REALTIME_CALLS (1,000,000) calls of every instruction set without an allocation, lock, system
#            call or page fault; not among "all of them": before a release
#   asan     builds with clang, without a warning, under the address and undefined-behaviour sanitizers; runs
#            the C++ tests
#   tsan     the threads' test under the thread sanitizer
#   old      runs the C++ tests of the library as g++ builds it on a processor of 2008 that has no AVX (under qemu)
#   aarch64  cross-builds, runs the C++ tests under qemu, and looks for NEON in the disassembly
#   fuzz     shows that the seeds of csrc/fuzz/make_corpus.py reach every line of the JSON reader; then fuzzes
#            the loader from them for SORL_FUZZ_SECONDS (60; 0: no end) or SORL_FUZZ_RUNS inputs (no end)
#
# Builds go into BUILD (build/native): its folders are kept, so that a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build/native}
jobs=${JOBS:-$(nproc)}

configure() { # folder, options of cmake
  local folder=$build/$1
  shift
  for _ in 1 2; do
    cmake -S csrc -B "$folder" -DSORL_WERROR=ON "$@" > "$folder.log" 2>&1 || { cat "$folder.log"; return 1; }
    # of a folder that knew another path to the compiler, CMake forgets every option, and so the tests
    grep -q "require your cache to be deleted" "$folder.log" || return 0
  done
}

make() { # folder, targets
  local folder=$build/$1
  shift
  cmake --build "$folder" --parallel "$jobs" ${1:+--target "$@"} > "$folder.log" 2>&1 ||
    { grep -E "error|warning|undefined|FAILED" "$folder.log" | head -40; return 1; }
}

tests() { # folder, options of ctest
  local folder=$build/$1
  shift
  ctest --test-dir "$folder" --output-on-failure "$@"
}

stage_tools() {
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends ccache cmake g++ clang llvm libclang-rt-14-dev \
    g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user valgrind pkg-config chromium > /dev/null
}

# With the flags of a user's build, so that one compilation (ccache) also serves the tests that make such a build.
configure_gcc() {
  configure gcc -DSORL_WERROR=OFF -DSORL_TESTS=ON -DSORL_EXAMPLES=ON -DCMAKE_CXX_COMPILER=g++ -DCMAKE_C_COMPILER=gcc
}

stage_gcc() {
  configure_gcc
  make gcc
  ! grep "warning:" "$build/gcc.log" || return 1
  tests gcc
  # nothing but the C interface is exported
  local others
  others=$(nm -D --defined-only "$build/gcc/libsorl_fast.so" | awk '$3 !~ /^sorl_/ {print $3}')
  if [ -n "$others" ]; then
    echo "exported beside sorl_*: $others"
    return 1
  fi
}

stage_realtime() {
  configure_gcc
  make gcc test_realtime
  "$build/gcc/tests/test_realtime" "${SORL_REALTIME_CALLS:-1000000}" | tee "$build/realtime.txt"
  grep -q "memory was locked, system calls were watched, allocations were counted" "$build/realtime.txt" ||
    { echo "without the right to lock memory (ulimit -l), seccomp and glibc not all was looked at"; return 1; }
}

stage_asan() {
  configure asan -DSORL_TESTS=ON -DSORL_SANITIZE=address,undefined -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_C_COMPILER=clang
  make asan
  # test_realtime replaces malloc, as the sanitizer does
  UBSAN_OPTIONS=print_stacktrace=1 tests asan -E test_realtime
}

stage_tsan() {
  configure tsan -DSORL_TESTS=ON -DSORL_SANITIZE=thread
  make tsan test_threads test_team
  tests tsan -R 'test_threads|test_team'
}

stage_old() {
  configure_gcc
  make gcc test_isas test_burn test_c_api
  local old=(qemu-x86_64 -cpu Nehalem)
  "${old[@]}" "$build/gcc/tests/test_isas" | tee "$build/old.txt"
  grep -q "instruction sets: scalar/fp32 scalar/bf16 scalar/int8: all passed" "$build/old.txt"
  "${old[@]}" "$build/gcc/tests/test_burn"
  "${old[@]}" "$build/gcc/tests/test_c_api"
}

# How many instructions of an object file of the kernels match.
count_aarch64() {
  aarch64-linux-gnu-objdump -d "$build/aarch64/CMakeFiles/sorl_fast_objects.dir/kernels/$1.o" | grep -cP "\t$2" || true
}

stage_aarch64() {
  local qemu=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
  configure aarch64 -DSORL_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
  make aarch64
  tests aarch64 -E 'test_realtime|test_isas'
  # fewer calls: qemu is slow. Page faults and system calls are not counted, qemu's own would be among them
  "${qemu[@]}" "$build/aarch64/tests/test_realtime" 100
  "${qemu[@]}" "$build/aarch64/tests/test_isas" | tee "$build/aarch64.txt"
  grep -q neon_dotprod/int8 "$build/aarch64.txt"  # else the processor that qemu plays lacks it
  local fused dots
  fused=$(count_aarch64 neon.cpp 'fmla\tv[0-9]+\.4s')
  dots=$(count_aarch64 neon_dotprod.cpp 'sdot\tv[0-9]+\.4s')
  echo "NEON: $fused vector multiply-adds (fmla v.4s), $dots dot products of bytes (sdot v.4s)"
  [ "$fused" -gt 0 ] && [ "$dots" -gt 0 ]
}

stage_fuzz() {
  configure fuzz -DSORL_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_C_COMPILER=clang
  make fuzz fuzz_policy_file cover_policy_file
  local seeds=$build/fuzz/seeds found=$build/fuzz/found cover=$build/fuzz/fuzz/cover_policy_file missed
  rm -rf "$seeds"
  mkdir -p "$found"
  python3 csrc/fuzz/make_corpus.py "$seeds"
  LLVM_PROFILE_FILE=$cover.raw "$cover" -runs=0 "$seeds" 2> /dev/null
  llvm-profdata merge -o "$cover.data" "$cover.raw"
  missed=$(llvm-cov show "$cover" -instr-profile "$cover.data" csrc/json.cpp |
    grep -E "^ +[0-9]+\| +0\|" | grep -vE "\| +\}$" || true)  # but brackets behind a return
  if [ -n "$missed" ]; then
    echo "no seed reaches these lines of csrc/json.cpp:"
    echo "$missed"
    return 1
  fi
  # no single allocation may exceed 1 MiB: the inputs have at most 16 KiB
  "$build/fuzz/fuzz/fuzz_policy_file" -max_total_time="${SORL_FUZZ_SECONDS:-60}" \
    -runs="${SORL_FUZZ_RUNS:--1}" -max_len=16384 \
    -timeout=10 -malloc_limit_mb=1 -dict=csrc/fuzz/policy_file.dict -artifact_prefix="$build/fuzz/" \
    -print_final_stats=1 "$found" "$seeds" 2>&1 | tail -12
}

mkdir -p "$build"
for stage in ${@:-tools gcc asan tsan old aarch64 fuzz}; do
  echo "== native: $stage"
  "stage_$stage"
done
