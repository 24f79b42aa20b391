"""Policy files of earlier commits load, are written with the same bytes, and act with the same bits."""

from pathlib import Path

import numpy as np
import pytest
from record_old_policies import ISAS, actions, numpys_arithmetic
from tolerances import SPLIT

from sorl_fast import _native
from sorl_fast.act.policy_file import dumps, load

OLD = Path(__file__).parents[1] / "golden" / "old"
FILES = sorted(OLD.glob("*.safetensors"))
each = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


def recorded(path):
    """Return the record of a file's commit, and the file's name in it."""
    commit, _, name = path.stem.partition("_")
    return np.load(OLD / f"{commit}_actions.npz", allow_pickle=False), name


def test_there_are_some():
    assert {p.stem for p in FILES} == {"b89353b_plain", "b89353b_normalised"}


@each
def test_the_bytes_are_the_same(path):
    policy = load(path)
    assert dumps(policy) == path.read_bytes()
    assert policy.digest.encode() in path.read_bytes()


@each
def test_numpy_acts_the_same(path):
    record, name = recorded(path)
    got, expected = actions(load(path), "numpy"), record[f"{name} numpy"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=SPLIT)
    if np.array_equal(numpys_arithmetic(), record["numpys_arithmetic"]):
        np.testing.assert_array_equal(got, expected)


@each
@pytest.mark.parametrize("precision", ISAS)
def test_native_acts_with_the_same_bits(path, precision, monkeypatch):
    record, name = recorded(path)
    there = [isa for isa in ISAS[precision] if isa in _native.isas(precision)]
    assert "scalar" in there
    for isa in there:
        monkeypatch.setenv("SORL_CPU_ISA", isa)
        got = actions(load(path), "native", precision)
        np.testing.assert_array_equal(got, record[f"{name} {precision} {isa}"], isa)
