"""What every backend declares, and the one vocabulary of status bits."""

import re
import sys
from pathlib import Path

import pytest
from policies import make_policy

from sorl_fast import BadInput, Sampler
from sorl_fast.act.backends import BACKENDS
from sorl_fast.act.session import Status
from sorl_fast.status import Status as Leaf

ROOT = Path(__file__).parents[2]


def test_the_header_has_the_same_status_bits():
    header = (ROOT / "csrc/include/sorl_fast/sorl.h").read_text()
    found = re.findall(r"#define SORL_STATUS_(\w+) (\d+)", header)
    assert {name: int(bit) for name, bit in found} == {s.name: s.value for s in Status}


def test_the_kernel_has_the_same_status_bits():
    source = (ROOT / "kernels/best_of_n.py").read_text()  # which needs triton to be imported
    found = re.findall(r"^([A-Z_]+) = (\d+)  #", source, re.MULTILINE)
    bits = {name: int(bit) for name, bit in found}
    # a session holds an action, has a deadline and judges observations, the sampler replays
    others = Status.HELD, Status.CUT_SHORT, Status.OUT_OF_DISTRIBUTION, Status.REPLAYED
    assert bits == {s.name: s.value for s in Status if s not in others}


def test_there_is_one_status():
    assert Status is Leaf


def test_a_backend_is_a_file_of_its_name():
    files = {p.stem for p in (ROOT / "sorl_fast/act/backends").glob("[a-z]*.py")}
    assert files == set(BACKENDS)
    assert [b.name for b in BACKENDS.values()] == list(BACKENDS)
    assert all(b.precisions[0] == "fp32" for b in BACKENDS.values())


@pytest.mark.parametrize(
    ("name", "gone", "says"),
    [
        ("native", "sorl_fast._native", "no working native module"),
        ("torch", "torch", "'torch', but torch is not installed"),
        ("triton", "torch", "'triton', but torch is not installed"),
    ],
)
def test_a_backend_says_why_it_cannot_serve(name, gone, says, monkeypatch):
    monkeypatch.setitem(sys.modules, gone, None)
    assert says in BACKENDS[name].why_not("fp32")
    with pytest.raises(BadInput, match=says):
        Sampler(make_policy(), backend=name)


def test_the_definition_always_serves():
    assert BACKENDS["numpy"].why_not("fp32") == ""
