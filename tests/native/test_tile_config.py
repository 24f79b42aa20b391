"""The machine code of every `ldtilecfg`: the tiles' shapes that it reads lie in memory that nobody writes.

A compiler may drop what is stored to a configuration just before (GCC 12's `_tile_loadconfig` names 8 of
its 64 bytes); then the first product is an illegal instruction, on a machine that has tiles. Whether stores
make up a configuration can't be read off machine code (GCC did store all 64 bytes: zeros), so only
constants pass.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sorl_fast import _bench, _native

CSRC = Path(__file__).parents[2] / "csrc"
COMPILERS = ("g++", "clang++")

pytestmark = [
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="AMX is of x86-64"),
    # where there is a compiler, there are binutils
    pytest.mark.skipif(
        shutil.which("objdump") is None and shutil.which("g++") is None, reason="no objdump"
    ),
]

OPERAND = re.compile(r"(?P<offset>-?0x[0-9a-f]+)?\((?P<registers>[^)]*)\)")
CONSTANT = re.compile(r"lea +-?0x[0-9a-f]+\(%rip\),(%\w+) +# ([0-9a-f]+)")


def objdump(*arguments):
    command = ["objdump", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def constant(library, address):
    """Return 64 bytes at an address of the file if they lie in memory that is only read, else None."""
    stretch = f"--start-address={address}", f"--stop-address={address + 64}"
    dump = objdump("-s", *stretch, library)
    if re.findall(r"^Contents of section (.*):", dump, re.M) != [".rodata"]:
        return None
    rows = re.findall(r"^ [0-9a-f]+ ((?:[0-9a-f]{2,8} ){1,4})", dump, re.M)
    found = bytes.fromhex("".join(rows).replace(" ", ""))
    return found if len(found) == 64 else None


def fault_of(config):
    """Return what `ldtilecfg` or the first product would find wrong with a configuration, or None."""
    if config is None:
        return "it is not a constant"
    widths = [int.from_bytes(config[i : i + 2], "little") for i in range(16, 32, 2)]
    rows = list(config[48:56])
    if config[0] != 1 or any(config[1:16] + config[32:48] + config[56:64]):
        return f"it is no configuration: {config.hex()}"
    if any(r > 16 or w > 64 or (r == 0) != (w == 0) for r, w in zip(rows, widths, strict=True)):
        return f"a tile has a shape that there is not: rows {rows}, bytes {widths}"
    if not any(rows):
        return "no tile has a shape"
    return None


def address_of(lines, at):
    """Return the address that the `ldtilecfg` in a line reads, less a variable index; None: no constant."""
    direct = re.search(r"\(%rip\) +# ([0-9a-f]+)", lines[at])
    if direct:
        return int(direct[1], 16)
    operand = OPERAND.search(lines[at])
    registers = [r for r in operand["registers"].split(",") if r.startswith("%")]
    for line in reversed(lines[:at]):
        written = re.search(r"(?:,|\s)(%\w+)(?:\s+#.*)?$", line)  # AT&T: the last operand
        if written is None or written[1] not in registers:
            continue
        table = CONSTANT.search(line)
        if table and table[1] in registers:
            return int(table[2], 16) + int(operand["offset"] or "0", 16)
        registers.remove(written[1])  # the index, or an address that is none of a constant
        if not registers:
            break
    return None


def faults(library):
    """Return (the number of `ldtilecfg` in a linked file, what is wrong with each that is wrong)."""
    lines = objdump("-d", "--no-show-raw-insn", library).splitlines()
    places = [i for i, line in enumerate(lines) if re.search(r"\bldtilecfg\b", line)]
    wrong = []
    for at in places:
        address = address_of(lines, at)
        why = fault_of(None if address is None else constant(library, address))
        if why:
            wrong.append(f"{lines[at].strip()}: {why}")
    return len(places), wrong


def linked(tmp_path, compiler, source, flags, name="code"):
    """Compile one source as the build does, and link it so that addresses are final."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    library = tmp_path / f"{name}.so"
    command = [
        compiler,
        "-std=c++17",
        "-fPIC",
        "-shared",
        *flags,
        "-I",
        CSRC,
        "-I",
        CSRC / "include",
    ]
    subprocess.run([*command, "-o", library, source], check=True)
    return library


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "least"),
    [(_native, 5), (_bench, 2)],  # enter, two products, forward, backward; enter, burn
    ids=["native", "bench"],
)
def test_the_built_modules(module, least):
    count, wrong = faults(module.__file__)
    assert count >= least
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("file", ["kernels/amx.cpp", "train/amx.cpp", "bench/amx.cpp"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_each_compiler(tmp_path, compiler, file):
    listed = json.loads((CSRC / "sources.json").read_text())
    (row,) = (r for r in listed["isas"] if r["isa"] == "amx")
    own = listed["train_flags"] if file.startswith("train/") else []
    flags = [*listed["flags"], *row["flags"], *own]
    count, wrong = faults(linked(tmp_path, compiler, CSRC / file, flags))
    assert count >= 2
    assert not wrong


CONFIG = """
#include <cstdint>
struct alignas(64) Config {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
void product();
"""
# What each is, and what the check says of it; None: nothing.
CODES = {
    "eight bytes of the operand are named": (
        'Config c; asm volatile("ldtilecfg %0" : : "m"(*reinterpret_cast<void**>(&c)));',
        "it is not a constant",
    ),
    "a variable": ('Config c; asm volatile("ldtilecfg %0" : : "m"(c));', "it is not a constant"),
    "a constant": ('static const Config c; asm volatile("ldtilecfg %0" : : "m"(c));', None),
    "one of some constants": (
        'static const Config c[9]; asm volatile("ldtilecfg %0" : : "m"(c[i]));',
        None,
    ),
    "a constant without shapes": (
        "struct alignas(64) None { int palette = 1, none[15] = {}; }; static const None c; "
        'asm volatile("ldtilecfg %0" : : "m"(c));',
        "no tile has a shape",
    ),
    "what anybody may write": (
        'static Config c; c.rows[0] = i; asm volatile("ldtilecfg %0" : : "m"(c));',
        "it is not a constant",
    ),
    "what the caller has": (
        'extern Config* where; asm volatile("ldtilecfg %0" : : "m"(where[i]));',
        "it is not a constant",
    ),
}


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", CODES)
def test_the_check_itself(tmp_path, compiler, name):
    body, says = CODES[name]
    source = tmp_path / "code.cpp"
    code = f"void set(long i) {{ {body} product(); }}"
    source.write_text(f'{CONFIG}\n#pragma GCC diagnostic ignored "-Wstrict-aliasing"\n{code}\n')
    count, wrong = faults(linked(tmp_path, compiler, source, ["-O3", "-mavx512f", "-mamx-tile"]))
    assert count == 1
    assert (says is None) == (not wrong), wrong
    assert says is None or says in wrong[0]
