"""Who is sent to the native operations, and what SORL_OPS and SORL_CPU_ISA may say."""

import os

import pytest
from networks import double, layers, normal

from sorl_fast import ops
from sorl_fast.errors import BadInput

native = pytest.importorskip("sorl_fast.ops.native")


@pytest.fixture(autouse=True)
def as_before():
    yield
    os.environ.pop("SORL_CPU_ISA", None)
    ops.configure()


def spy(monkeypatch):
    calls = []
    real = native.rollout
    monkeypatch.setattr(native, "rollout", lambda *a, **k: calls.append(a[-1]) or real(*a, **k))
    return calls


def test_float32_goes_to_csrc_and_float64_to_the_definition(monkeypatch):
    monkeypatch.delenv("SORL_OPS", raising=False)
    calls, net = spy(monkeypatch), layers(4, 2, 8, 1)
    ops.rollout(net, normal(3, 4), normal(3, 2), 2)
    assert calls == ["fp32"]
    ops.rollout(double(net), normal(3, 4).double(), normal(3, 2).double(), 2)
    assert calls == ["fp32"]
    assert ops.backend() == "native"


def test_torch_can_be_forced(monkeypatch):
    monkeypatch.setenv("SORL_OPS", "torch")
    calls = spy(monkeypatch)
    ops.rollout(layers(4, 2, 8, 1), normal(3, 4), normal(3, 2), 2)
    assert not calls
    assert ops.backend() == "torch"
    with pytest.raises(BadInput, match="only the native backend"):
        ops.configure(precision="bf16")


def test_native_forced_raises_where_it_cannot_serve(monkeypatch):
    monkeypatch.setenv("SORL_OPS", "native")
    deep = layers(4, 2, 8, 17)
    with pytest.raises(BadInput, match="SORL_OPS"):
        ops.rollout(deep, normal(3, 4), normal(3, 2), 2)
    monkeypatch.setattr(ops, "_native_or_why", BadInput("not built"))
    with pytest.raises(BadInput, match="not built"):
        ops.configure()


def test_without_the_extension_the_definition_serves(monkeypatch):
    monkeypatch.delenv("SORL_OPS", raising=False)
    monkeypatch.setattr(ops, "_native_or_why", BadInput("not built"))
    assert ops.backend() == "torch"
    assert ops.rollout(layers(4, 2, 8, 1), normal(3, 4), normal(3, 2), 2).shape == (3, 2)


def test_an_unknown_backend_is_named(monkeypatch):
    monkeypatch.setenv("SORL_OPS", "cuda")
    with pytest.raises(BadInput, match="SORL_OPS is 'cuda'"):
        ops.configure()


@pytest.mark.parametrize("acting", ["numpy", "torch", "triton", "jax"])
def test_what_acts_does_not_choose_what_trains(acting, monkeypatch):
    monkeypatch.delenv("SORL_OPS", raising=False)
    monkeypatch.setenv("SORL_BACKEND", acting)
    assert ops.backend() == "native"
    ops.configure()


def test_an_instruction_set_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("SORL_CPU_ISA", "neon")
    with pytest.raises(BadInput, match="SORL_CPU_ISA is 'neon'"):
        ops.configure()


@pytest.mark.parametrize("wrong", [dict(precision="fp16"), dict(threads=0)], ids=str)
def test_configure_names_a_wrong_value(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        ops.configure(**wrong)
