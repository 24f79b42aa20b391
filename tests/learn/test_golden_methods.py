"""Every method but SORL against the figures of its authors' code: `tests/golden/{method}_small.npz`."""

import re
from functools import cache
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from golden_methods import CHECKS

FOLDER = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for each other in networks so small
    yield
    torch.set_num_threads(before)


def backends():
    yield "torch"
    try:
        from sorl_fast.ops import native
    except ImportError:
        return
    if native.isas("fp32"):
        yield "native"


@pytest.mark.parametrize("backend", [*backends()])
@pytest.mark.parametrize("method", CHECKS)
def test_every_quantity_agrees(method, backend, monkeypatch, capsys):
    monkeypatch.setenv("SORL_OPS", backend)
    assert golden.main([str(FOLDER / f"{method}_small.npz")]) == 0
    out = capsys.readouterr().out
    assert f"{backend} backend" in out
    assert "actor gradient" in out
    assert "step2 networks" in out


@cache
def numbers(method):
    return golden.read(FOLDER / f"{method}_small.npz")[1]


def quantities(method):
    """One key of every kind: a layer of each network, a gradient, an intermediate, ..."""
    kinds = {}
    for key in numbers(method):
        if not key.startswith("meta/"):
            kind = re.sub(r"/[0-9a-z]+/[gbcw]$", "/layer", key)
            kinds[re.sub(r"(step|sample/)\d", r"\1", kind)] = key
    return kinds.values()


def cases():
    """Every kind of quantity; those of one group after its first are slow."""
    for method in CHECKS:
        groups = set()
        for key in quantities(method):
            group = key.split("/")[0]
            slow = group in groups or group == "batch"
            groups.add(group)
            yield pytest.param(method, key, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("method", "key"), [*cases()], ids=lambda x: x.replace("/", "."))
def test_one_wrong_figure_is_found(method, key, monkeypatch):
    monkeypatch.setenv("SORL_OPS", "torch")
    x = numbers(method)[key]
    if "keep" in key or "time" in key:
        wrong = x.roll(1, 0)  # whole numbers
    else:
        change = torch.linspace(0.5, 1, x.numel()).view(x.shape)
        wrong = x + 1e-2 * x.abs().max().clamp(min=1e-2) * change
    errors = golden.check_method(method, {**numbers(method), key: wrong})
    assert max(errors.values()) > golden.TOLERANCE["fp32"]


def test_the_command_fails_on_a_wrong_figure(tmp_path, capsys):
    with np.load(FOLDER / "fql_small.npz") as file:
        arrays = dict(file)
    arrays["step2/critic/1/g"] = arrays["step2/critic/1/g"] + np.float32(1e-3)
    np.savez(tmp_path / "wrong.npz", **arrays)
    assert golden.main([str(tmp_path / "wrong.npz")]) == 1
    assert "step2 networks" in capsys.readouterr().out


def test_a_figure_that_nothing_compares_is_no_success(tmp_path):
    with np.load(FOLDER / "bc_small.npz") as file:
        np.savez(tmp_path / "more.npz", **file, surprise=np.zeros(3))
    with pytest.raises(SystemExit, match="nothing here reads 'surprise' of a file of bc"):
        golden.main([str(tmp_path / "more.npz")])


def test_an_unknown_method_is_named(tmp_path):
    with np.load(FOLDER / "bc_small.npz") as file:
        np.savez(tmp_path / "other.npz", **dict(file) | {"meta/method": np.array("sac")})
    with pytest.raises(SystemExit, match="'sac', but must be sorl, bc"):
        golden.main([str(tmp_path / "other.npz")])
