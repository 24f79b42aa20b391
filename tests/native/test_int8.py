"""The int8 path rounds as int8_twin.py does, and only so."""

import dataclasses

import numpy as np
import pytest
from native import int8_twin
from native.twin import make_policy

from sorl_fast.act.backends.native import _SAME_NAME
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.sampler import Sampler, Status
from sorl_fast.layout import LETTERS

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

SHAPES = {
    "cube": {"H": 128},
    "odd, min, normalised": {"O": 7, "A": 2, "H": 33, "E": 3, "q_agg": "min", "normalise": True},
    "two layers": {"O": 69, "A": 21, "H": 96, "depth": 2},
    "nothing hidden to quantise": {"O": 3, "A": 1, "H": 40, "depth": 1},
}


def exact_in_bf16(w, rows):
    """Return w [..., in, out] whose first `rows` inputs come through the packing in bf16 unchanged.

    Two inputs share a word, and the second one's fraction ends in the first one's bits: see WeightsBf16 in
    csrc/kernels/dense.hpp. So only every other input is heard.
    """
    bits = np.ascontiguousarray(w[..., :rows, :]).view(np.uint32) & np.uint32(0xFFFF0000)
    heard = bits.view(np.float32).copy()
    heard[..., ::2, :] = 0
    return np.concatenate([heard, w[..., rows:, :]], axis=-2)


def with_exact_ends(policy):
    """Return the policy with first and last layers that the int8 path computes in float32's precision."""
    inputs = (policy.obs_dim, policy.act_dim)

    def first(w):
        x, z = exact_in_bf16(w, inputs[0]), exact_in_bf16(w[..., inputs[0] :, :], inputs[1])
        return np.concatenate([x[..., : inputs[0], :], z], axis=-2)

    (w, b), *hidden, (last, c) = policy.actor
    actor = ((first(w), b), *hidden, (exact_in_bf16(last, len(last)), c))
    (w, *rest), *others = policy.critic
    return dataclasses.replace(policy, actor=actor, critic=((first(w), *rest), *others))


@pytest.mark.parametrize("isa", _native.isas("int8"))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("M", "B"), [(1, 200), (4, 200), (1, 1), (1, 2), (1, 3), (1, 5)])
def test_rounds_as_its_twin(monkeypatch, isa, shape, M, B):
    """What is left are values that float32 puts on the other side of the middle between two steps.

    On tiles they are more: first layers and GELU are bf16's (test_products looks at each product alone).
    The 200 observations go B at a time: kernels have other forms for few rows.
    """
    policy = with_exact_ends(make_policy(**shape))
    rng = np.random.default_rng(M)
    obs = rng.normal(size=(200, policy.obs_dim)).astype("f4")
    noise = rng.normal(size=(200, 1, policy.act_dim)).astype("f4")
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    sampler = Sampler(policy, "native", "int8")
    parts = [
        sampler.act(obs[i : i + B], M, noise=noise[i : i + B], return_info=True)
        for i in range(0, 200, B)
    ]
    action = np.concatenate([action for action, _ in parts])
    q = np.concatenate([info.q for _, info in parts])
    twin_action, twin_q = int8_twin.sample(policy, obs, noise[:, 0], M, isa, B)
    exact = best_of_n(policy, obs, noise, M, dtype=np.float64)
    for ours, twin, truth in ((action, twin_action, exact.action), (q, twin_q, exact.q)):
        part, rest = (0.5, 3e-5) if isa == "amx" else (0.05, 1e-6)
        assert np.abs(ours - twin).mean() <= part * np.abs(ours - truth).mean() + rest


@pytest.mark.parametrize("isa", _native.isas("int8"))
@pytest.mark.parametrize(("scale", "offset"), [(0.1, 0), (0.001, 0), (100, 0), (1, 10), (1, -2)])
def test_the_scale_that_a_layer_norm_takes_away_costs_nothing(monkeypatch, isa, scale, offset):
    """However small, large or shifted a critic's layer is before its LayerNorm, Q stays as near."""
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    policy = make_policy(O=3, A=2, H=72, depth=3)
    (w, b, g, c), *rest = policy.critic
    first = (w * np.float32(scale), b * np.float32(scale) + np.float32(offset), g, c)
    policy = dataclasses.replace(policy, critic=(first, *rest))
    rng = np.random.default_rng(0)
    obs, noise = rng.normal(size=(100, 3)).astype("f4"), rng.normal(size=(100, 1, 2)).astype("f4")
    _, info = Sampler(policy, "native", "int8").act(obs, 1, noise=noise, return_info=True)
    error = np.abs(info.q - best_of_n(policy, obs, noise, 1, dtype=np.float64).q).max()
    assert error <= 0.03 * np.ptp(info.q)


def changed(policy, network, layer, **arrays):
    """Return a native session over the policy with other arrays in one layer of one network."""
    layers = list(getattr(policy, network))
    old = zip(LETTERS, layers[layer], strict=False)
    layers[layer] = tuple(arrays.get(n, x) for n, x in old)
    fields = {name: getattr(policy, name) for name in _SAME_NAME} | {network: tuple(layers)}
    model = _native.Model(**fields, q_min=False, precision="int8")
    return _native.Session(model, 1, 64, 1)


def assert_held(session, candidates):
    """Check that every candidate is rejected and the action held."""
    action, status = np.full((4, 5), np.nan, "f4"), np.empty(4, "u4")
    session.act_into(np.zeros((4, 28), "f4"), action, 2, candidates, 0, 0, 0, status=status)
    assert np.array_equal(action, np.zeros((4, 5), "f4"))
    assert (status == Status.NONFINITE_RESULT | Status.HELD).all()


@pytest.mark.parametrize("isa", _native.isas("int8"))
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("network", "candidates"), [("actor", 1), ("critic", 3)])
def test_a_bad_number_inside_is_not_rounded_away(monkeypatch, isa, layer, bad, network, candidates):
    """A non-finite value of any layer reaches the result, the action or its Q, where it is seen."""
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    policy = make_policy(H=64, depth=3)
    b = getattr(policy, network)[layer][1].copy()
    b[..., -1] = bad
    assert_held(changed(policy, network, layer, b=b), candidates)


@pytest.mark.parametrize("isa", _native.isas("int8"))
def test_a_weight_that_overflows_with_its_gain_is_seen(monkeypatch, isa):
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    policy = make_policy(H=64, depth=3)
    g, w = policy.critic[0][2].copy(), policy.critic[1][0].copy()
    g[0, 5], w[0, 5, 7] = 1e30, 1e30
    first = (*policy.critic[0][:2], g, policy.critic[0][3])
    policy = dataclasses.replace(policy, critic=(first, *policy.critic[1:]))
    assert_held(changed(policy, "critic", 1, w=w), 3)
