#!/usr/bin/env bash
# The C++ tests on AMX tiles where there are none: in Bochs, an emulator of whole machines, as a Sapphire
# Rapids under an ordinary Linux kernel. So CPUID, XCR0, the kernel's tile permission, its fault at the
# first tile instruction and its switches of context are real, and the instructions are somebody else's
# reading of the manual (tests/native/tile_emulator.cpp is ours). It says nothing of speed.
#
#   ci/amx.sh [TEST...]     (default: test_isas test_products test_training test_burn test_c_api test_deadline
#                            test_threads test_realtime), as root, on Debian x86-64; some minutes
#
# Not a part of .ci/run: a Bochs with AMX is younger than Debian 12, and needs mending.
# BUILD (build/amx) keeps what was downloaded and built.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD:-$root/build/amx}
tests=(${@:-test_isas test_products test_training test_burn test_c_api test_deadline test_threads test_realtime})
mkdir -p "$build"
cd "$build"

echo "== amx: tools"
apt-get update -qq
apt-get install -y -qq --no-install-recommends g++ make cmake curl xz-utils cpio xorriso isolinux \
  syslinux-common busybox-static bochsbios vgabios > /dev/null

echo "== amx: Bochs"
source=bochs_3.0+dfsg.orig.tar.xz
if [ ! -x bochs-3.0/bochs ]; then
  [ -f "$source" ] || curl -sSfLO "https://deb.debian.org/debian/pool/main/b/bochs/$source"
  echo "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b  $source" | sha256sum --quiet -c
  rm -rf bochs-3.0
  tar xf "$source"
  cd bochs-3.0
  # Linux uses tiles only with XFD, the fault at a thread's first tile instruction: two registers, two bits
  # of CPUID, and the fault itself.
  sed -i 's/^  Bit64u ia32_xss;/&\n  Bit64u ia32_xfd[2];  \/\/ what faults, what has faulted/' cpu/cpu.h
  sed -i -e '/eax |= (1<<3);/a if (is_cpu_extension_supported(BX_ISA_AMX)) leaf->eax |= 1 << 4;' \
    -e '/ecx = (cpu->ia32_xss_suppmask & (1/a if (subfunction == 18) leaf->ecx |= 4;' cpu/cpuid.cc
  register='case BX_MSR_IA32_XFD: case BX_MSR_IA32_XFD_ERROR:' value='BX_CPU_THIS_PTR msr.ia32_xfd[index - BX_MSR_IA32_XFD]'
  sed -i -e '/msr_desc\[BX_MSR_XSS\]/a\
      for (int r = BX_MSR_IA32_XFD; r <= BX_MSR_IA32_XFD_ERROR; ++r) msr_desc[r] = new MSR_Descriptor("XFD", BX_ISA_AMX);' \
    -e "/::rdmsr(/,/::wrmsr(/s/^    case BX_MSR_XSS:/$register val64 = $value; break;\n&/" \
    -e "/::wrmsr(/,\$s/^    case BX_MSR_XSS:/$register $value = val_64; handleAvxModeChange(); break;\n&/" cpu/msr.cc
  sed -i -e '/^    clear_amx_ok();/,/^    set_amx_ok();/s/^    set_amx_ok();/&\n  if (BX_CPU_THIS_PTR msr.ia32_xfd[0]) clear_amx_ok();/' \
    -e '/::BxNoAMX/,/BX_ASSERT/s/^  BX_ASSERT(0);/  BX_CPU_THIS_PTR msr.ia32_xfd[1] = BX_CPU_THIS_PTR msr.ia32_xfd[0];\n\
  exception(BX_NM_EXCEPTION, 0);/' cpu/proc_ctrl.cc
  # Saved tiles: rows and bytes of a row were taken for each other, half of the rows left out, and tiles in
  # use taken for unused ones.
  sed -i -e '/tilecfg.vmm16u(8+n) /s/\.rows/.bytes_per_row/' -e '/tilecfg.vmmubyte(48+n) =/s/\.bytes_per_row/.rows/' \
    -e 's/row < BX_TILE_REGISTERS/row < BX_TILE_MAX_ROWS/' -e 's/tile_use_tracker == 0/tile_use_tracker != 0/' cpu/xsave.cc
  # VCVTNE2PS2BF16 read the second half of its result from beyond its first operand.
  sed -i '/other half/,/}/s/op1.vmm32u(n)/op1.vmm32u(n - DWORD_ELEMENTS(len))/' cpu/avx/avx512_bf16.cc
  # TDPBUSD took the signed bytes for unsigned ones.
  sed -i '/ DPBDUS(/,/^}/s/const Bit8u ybyte.*/const Bit8s ybyte[4] = { Bit8s(y), Bit8s(y >> 8), Bit8s(y >> 16), Bit8s(y >> 24) };/' \
    cpu/avx/amx.cc
  # A Linux kernel takes fast string operations for off, and then copies wrongly, unless this register says on.
  sed -i '/BX_CPU_C::rdmsr(/,/^{/s/^{/{ if (index == 0x1a0) { *msr = 1; return true; }/' cpu/msr.cc
  ./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-vmx=2 --enable-pci \
    --enable-all-optimizations --enable-long-phy-address --disable-plugins --disable-docbook --with-nogui > configure.log 2>&1
  make -j"$(nproc)" > make.log 2>&1 || { grep error: make.log; exit 1; }
  cd ..
fi

echo "== amx: Linux"
if [ ! -d linux ]; then
  image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/ *Depends: //p')
  apt-get download -qq "$image" 2> /dev/null
  dpkg -x "$image"_*.deb linux
fi

echo "== amx: the tests"
cmake -S "$root/csrc" -B tests -DSORL_TESTS=ON > tests.log
cmake --build tests --parallel "$(nproc)" --target "${tests[@]}" >> tests.log
rm -rf guest disc
mkdir -p guest/{bin,proc,dev,tests} disc/isolinux
cp /bin/busybox guest/bin/
for name in "${tests[@]}"; do cp "tests/tests/$name" guest/tests/; done
ldd guest/tests/* | grep -o '/[^ :]*' | grep -v '^/tests' | sort -u | while read -r library; do
  [ ! -f "$library" ] || install -D "$library" "guest$library"
done
cat > guest/init << 'INIT'
#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
busybox grep -o -m1 -w amx_tile /proc/cpuinfo
for t in /tests/test_*; do
  echo "== $t"
  arguments=
  case $t in *realtime) arguments="200 amx" ;; *products | *training) arguments=amx ;; esac
  $t $arguments && echo "passed: $t"
done
busybox sleep 1
busybox poweroff -f
INIT
chmod +x guest/init
(cd guest && find . | cpio -o -H newc --quiet | gzip -1) > disc/guest.gz
cp linux/boot/vmlinuz-* disc/vmlinuz
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 disc/isolinux/
# five-level page tables and system management mode do not go together in Bochs
cat > disc/isolinux/isolinux.cfg << 'MENU'
default linux
label linux
  kernel /vmlinuz
  append initrd=/guest.gz console=ttyS0 quiet no5lvl nokaslr mitigations=off tsc=reliable lpj=1000000 random.trust_cpu=on
MENU
xorriso -as mkisofs -quiet -o disc.iso -b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot \
  -boot-load-size 4 -boot-info-table disc 2> /dev/null
cat > bochsrc << BOCHS
cpu: model=sapphire_rapids, ips=100000000
memory: guest=2048, host=2048
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.txt
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
display_library: nogui
clock: sync=none
BOCHS
rm -f serial.txt
timeout 1500 bochs-3.0/bochs -q -f bochsrc > bochs.out 2>&1 < /dev/null || true
tr -d '\r' < serial.txt | sed -n '/^amx_tile/,$p'
for name in "${tests[@]}"; do grep -q "passed: /tests/$name" serial.txt || { echo "$name did not pass"; exit 1; }; done
if [[ " ${tests[*]} " == *" test_isas "* ]]; then grep -q "amx/bf16" serial.txt; fi
echo "passed on emulated AMX: ${tests[*]}"
