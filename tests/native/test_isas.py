"""One list of instruction sets: csrc/isas.def, and beside it only their files and their flags."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

CSRC = Path(__file__).parents[2] / "csrc"
TABLE = (CSRC / "isas.def").read_text()
ACTS, TRAINS = (re.findall(rf"^{macro}\((\w+),", TABLE, re.M) for macro in ("ISA", "TRAINS"))


def test_a_row_is_a_file_of_each_kind_and_a_line_of_flags():
    rows = json.loads((CSRC / "sources.json").read_text())["isas"]
    assert len(ACTS) >= 9
    assert sorted(row["isa"] for row in rows) == sorted(ACTS)
    assert sorted(row["isa"] for row in rows if row["trains"]) == sorted(TRAINS)
    for folder, names in (("kernels", ACTS), ("bench", ACTS), ("train", TRAINS)):
        others = {"find", "bindings", "runtime", "network", "program", "elementwise"}
        assert {path.stem for path in (CSRC / folder).glob("*.cpp")} - others == set(names)


def test_no_other_list_names_them():
    """Outside its own files an instruction set is named where something is said of it alone."""
    rare = [name for name in ACTS if name not in ("scalar", "neon", "avx2", "avx512", "amx")]
    for path in CSRC.rglob("*.?pp"):
        if path.stem in ACTS or path.parts[-2] == "tests":
            continue
        named = {name for name in rare if re.search(rf"\b{name}\b", path.read_text())}
        assert named <= {"avx512_bf16"}, path  # isa.cpp: faster than its successor on AMD


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_slowest_come_first(precision):
    places = [ACTS.index(name) for name in _native.isas(precision)]
    assert places == sorted(places) or "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def test_the_robots_module_carries_no_benchmark():
    assert not {"burn", "flop_rate", "read_rate", "time"} & {*dir(_native), *dir(_native.Session)}
    script = """
import sys
import numpy as np
from native.twin import make_policy
from sorl_fast import Sampler
Sampler(make_policy(H=8), backend="native").act(np.zeros(28, "f4"))
assert "sorl_fast._native" in sys.modules and "sorl_fast._bench" not in sys.modules
"""
    tests = str(Path(__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{script}"], check=True
    )
