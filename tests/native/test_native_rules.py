"""Rules of choosing and schedules of steps on the native backend, against the definition."""

import dataclasses
import re

import numpy as np
import pytest
from forms import FORMS, form_policy
from native.twin import errors, make_policy

from sorl_fast import BadInput, Sampler
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.philox import normals, uniforms
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.rules import pick, rule_of, scale_of
from sorl_fast.act.sampler import Status
from sorl_fast.act.schedule import schedule_of

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

NAN = float("nan")
RULES = [
    *("argmax", "medoid", "medoid:1", "medoid:1/8", "nearest", "nearest:1", "nearest:2/3"),
    *("better", "better:1", "better:1/5", "soft", "soft:1/4", "soft:3", "centre"),
]
PATHS = [(p, isa) for p in ("fp32", "bf16", "int8") for isa in _native.isas(p)]
by_path = pytest.mark.parametrize(("precision", "isa"), PATHS, ids=[f"{i}-{p}" for p, i in PATHS])
# how far a candidate's action and Q may be from those of the same in a call of another size
NEAR = {"fp32": 2e-5, "bf16": 2e-3, "int8": 2e-2}
POLICY = make_policy(O=7, A=3, H=40, depth=3, normalise=True, bounds=(-9.0, 9.0))


def native(monkeypatch, policy=POLICY, precision="fp32", isa=None, threads=1):
    if isa is None:
        monkeypatch.delenv("SORL_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("SORL_CPU_ISA", isa)
    return Sampler(policy, "native", precision, threads)


def observations(rows, O=7):
    return 2 * normals(0, rows, 1, O, call=99)[:, 0]


def expected(rule, actions, q, u, near):
    """Return `pick` of each row, and where none of a few moved copies chooses another."""
    rng, w = np.random.default_rng(0), scale_of(POLICY.action_low, POLICY.action_high)
    found = []
    for scale in (0, near, near, near, near):
        a, v = (x + scale * rng.uniform(-1, 1, x.shape) for x in (actions, q))
        rows = zip(a.astype("f4"), v.astype("f4"), u, strict=True)
        found.append([pick(rule, x, y, np.isfinite(y), w, at) for x, y, at in rows])
    return np.array(found[0]), (np.array(found) == found[0]).all(0)


@by_path
def test_chooses_as_the_definition(monkeypatch, precision, isa):
    s, B = native(monkeypatch, POLICY, precision, isa), 12
    obs, u = observations(B), uniforms(5, B, 3, 2)
    seen = 0
    for N in (2, 3, 8, 32):
        noise = normals(5, B, N, 3, 3, 2)
        one = {"noise": noise.reshape(B * N, 1, 3), "return_info": True}
        actions, info = s.act(obs.repeat(N, 0), 4, 1, **one)
        actions, q = actions.reshape(B, N, 3), info.q.reshape(B, N)
        for name in RULES:
            chosen, sure = expected(rule_of(name), actions, q, u, NEAR[precision])
            for given in ({}, {"noise": noise}):
                keyed = not given or rule_of(name).draws
                key = {"seed": 5, "call": 3, "row_offset": 2} if keyed else {}
                action, info = s.act(obs, 4, N, rule=name, return_info=True, **given, **key)
                np.testing.assert_array_equal(info.candidate[sure], chosen[sure], name)
                won = actions[np.arange(B), info.candidate]
                assert np.abs(action - won).max() <= NEAR[precision], name
                assert np.abs(info.q - q[np.arange(B), info.candidate]).max() <= NEAR[precision]
                assert not (info.status & ~np.uint32(Status.CLIPPED)).any()
            seen += sure.sum()
    assert seen > 0.4 * 4 * len(RULES) * B


@by_path
def test_of_equal_candidates_the_first(monkeypatch, precision, isa):
    s, obs = native(monkeypatch, POLICY, precision, isa), observations(9)
    noise = normals(1, 9, 6, 3).repeat(2, 1)
    for name in RULES:
        if not rule_of(name).draws:
            _, info = s.act(obs, 2, 12, rule=name, noise=noise, return_info=True)
            assert (info.candidate % 2 == 0).all(), name
            _, info = s.act(obs, 2, 6, rule=name, noise=np.zeros((9, 6, 3)), return_info=True)
            assert (info.candidate == 0).all(), name


@by_path
def test_what_is_drawn_is_philox(monkeypatch, precision, isa):
    s, obs = native(monkeypatch, POLICY, precision, isa), observations(40)
    for N in (2, 7, 32):
        u = uniforms(2**63 + 9, 40, 2**32 - 1, 2**32 - 41)
        key = {"seed": 2**63 + 9, "call": 2**32 - 1, "return_info": True}
        whole = s.act(obs, 1, N, rule="better:1", row_offset=2**32 - 41, **key)[1].candidate
        np.testing.assert_array_equal(whole, np.floor(u * N))
        for b in (0, 13, 39):
            one = s.act(obs[b], 1, N, rule="better:1", row_offset=2**32 - 41 + b, **key)[1]
            assert one.candidate == whole[b]


@by_path
def test_a_candidate_that_is_not_finite_moves_nothing(monkeypatch, precision, isa):
    s, obs = native(monkeypatch, POLICY, precision, isa), observations(5)
    noise = normals(4, 5, 9, 3)
    for name in RULES:
        options = {"rule": name, "return_info": True}
        options |= {"seed": 3} if rule_of(name).draws else {}
        _, before = s.act(obs, 2, 8, noise=np.delete(noise, 2, 1), **options)
        wide = noise.copy()
        wide[:, 2, 1] = NAN
        action, info = s.act(obs, 2, 9, noise=wide, **options)
        if precision == "fp32":
            moved = before.candidate + (before.candidate >= 2)
            np.testing.assert_array_equal(info.candidate, moved)
        assert (info.candidate != 2).all()
        assert (info.status & ~np.uint32(Status.CLIPPED) == Status.CANDIDATE_REJECTED).all()
        wide[:] = NAN
        held, info = s.act(obs, 2, 9, noise=wide, **options)
        np.testing.assert_array_equal(held, action[[4] * 5])
        assert (info.candidate == -1).all()
        assert np.isnan(info.q).all()
        assert (info.status == Status.NONFINITE_RESULT | Status.HELD).all()


@by_path
def test_same_bits_on_any_number_of_threads(monkeypatch, precision, isa):
    obs = observations(70)
    samplers = [native(monkeypatch, POLICY, precision, isa, threads) for threads in (1, 2, 3)]
    for name in RULES:
        for B, N, steps in ((1, 1, 3), (1, 32, "1/2,1/4,1/4"), (3, 7, 4), (70, 3, 5)):
            call = {"rule": name, "seed": 1, "return_info": True}
            (first, other), *rest = (s.act(obs[:B], steps, N, **call) for s in samplers)
            for action, info in rest:
                np.testing.assert_array_equal(action, first)
                for mine, its in zip(info, other, strict=True):
                    np.testing.assert_array_equal(mine, its)


@by_path
def test_schedules_agree_with_float64(monkeypatch, precision, isa):
    s, obs = native(monkeypatch, POLICY, precision, isa), observations(5)
    noise = normals(3, 5, 2, 3)
    near = {"fp32": 1, "bf16": 5e3, "int8": 5e3}[precision]
    for steps in (3, 5, 16, "1/2,1/4,1/4", "1/16,1/16,7/8", [0.3, 0.7], [1 / 32] * 16 + [0.5]):
        if len(schedule_of(steps).sizes) > 16:
            with pytest.raises(BadInput, match="takes at most 16"):
                s.act(obs, steps)
            continue
        action, info = s.act(obs, steps, 2, noise=noise, return_info=True)
        error = errors(POLICY, obs, noise, schedule_of(steps), action, info, None)
        assert error.action <= 1e-5 * near, steps
        assert error.q <= 2e-5 * near, steps
        assert error.regret <= 4e-5 * near, steps


def test_a_schedule_by_any_name_has_one_number(monkeypatch):
    s, obs = native(monkeypatch), observations(3)
    for steps in (1, 2, 4, 8):
        assert s._session._session.prepare([1 / steps] * steps) == steps
        same = s.act(obs, steps, 2, seed=1)
        np.testing.assert_array_equal(s.act(obs, [1 / steps] * steps, 2, seed=1), same)
    numbers = [
        s._session._session.prepare(h) for h in ([0.5, 0.25, 0.25], [0.25, 0.75], [1 / 3] * 3)
    ]
    assert numbers[2] == 3
    assert len({*numbers, 1, 2, 4, 8}) == 7
    assert s._session._session.prepare([0.5, 0.2500001, 0.2499999]) not in numbers
    assert s._session._session.prepare([0.5, 0.25, 0.25]) == numbers[0]
    uneven = schedule_of("1/2,1/4,1/4")
    expected = s.act(obs, uneven, 2, seed=1)
    out = np.zeros_like(expected)
    for steps in ("1/2,1/4,1/4", [0.5, 0.25, 0.25], uneven):
        np.testing.assert_array_equal(s.act(obs, steps, 2, seed=1), expected)
        s.act_into(obs, out * 0, steps, 2, seed=1)
        s.act_into(obs, out, steps, 2, seed=1)
        np.testing.assert_array_equal(out, expected)
    # a larger call's session has them too
    many = s.act(obs.repeat(50, 0), uneven, 2, seed=1)
    assert np.isfinite(many).all()
    np.testing.assert_array_equal(s.act(obs, uneven, 2, seed=1), expected)
    for number in (numbers[0], np.int64(numbers[0])):  # which are the C++ session's own affair
        for call in (s.act, lambda x, *more: s.act_into(x, out, *more)):
            with pytest.raises(BadInput, match=f"steps is .*{numbers[0]}"):
                call(obs, number)


def test_a_new_schedule_in_act_into_is_prepared(monkeypatch):
    obs, out = observations(2), np.zeros((2, 3), "f4")
    for steps in (3, 16, [0.5, 0.25, 0.25], "1/4,3/4", schedule_of([0.1, 0.9]), np.int64(7)):
        s = native(monkeypatch)
        s.act_into(obs, out, steps, 4, rule="medoid", seed=2)
        twin = native(monkeypatch).act(obs, steps, 4, rule="medoid", seed=2)
        np.testing.assert_array_equal(out, twin)


def test_what_is_no_schedule_is_refused_and_many_are_too_many(monkeypatch):
    s, obs, out = native(monkeypatch), observations(1), np.zeros((1, 3), "f4")
    for steps, words in {
        (0.5, 0.4): "steps is 0.5,0.4, which sums to 0.9",
        (1.5, -0.5): "steps[1] is -0.5",
        "0": "steps is 0,",
        17: "steps is 17, but this policy was trained for 1, 2, 4, 8 Euler steps and takes at most 16",
        None: None,
    }.items():
        for call in (s.act, lambda x, *more: s.act_into(x, out, *more)):
            if words is not None:
                with pytest.raises(BadInput, match=re.escape(words)):
                    call(obs, steps)
    session = s._session._session
    for sizes, words in (
        ([], "steps has 0 sizes"),
        ([1 / 17] * 17, "steps is 17, but this policy was trained for 1, 2, 4, 8 Euler steps and"),
        ([0.5, 0.4], "sum to 0.9, but they must sum to 1"),
        ([0.5, NAN], "a step's size is nan, but must be above 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            session.prepare(sizes)
    for i in range(1024):
        session.prepare([0.25 + i * 1e-5, 0.75 - i * 1e-5])
    with pytest.raises(ValueError, match="keeps at most 1024 schedules"):
        session.prepare([0.9, 0.1])
    assert session.prepare([0.25, 0.75]) == 1 << 16
    flow = native(monkeypatch, form_policy(FORMS["euler"]))._session._session
    assert flow.prepare([0.1] * 10) == 10
    for sizes in ([0.25] * 4, [0.5, 0.25, 0.25]):
        with pytest.raises(ValueError, match=r"but this policy acts with 3, 10$"):
            flow.prepare(sizes)


def test_rules_are_of_one_call(monkeypatch):
    s, obs = native(monkeypatch), observations(6)
    out = np.zeros((6, 3), "f4")
    alone = {name: native(monkeypatch).act(obs, 4, 8, rule=name, seed=1) for name in RULES}
    for name in (*RULES, *RULES[::-1], *RULES[::3]):
        np.testing.assert_array_equal(s.act(obs, 4, 8, rule=name, seed=1), alone[name])
        np.testing.assert_array_equal(s.act(obs, 4, 8, seed=1), alone["argmax"])
        s.act_into(obs, out, 4, 8, rule=rule_of(name), seed=1)
        np.testing.assert_array_equal(out, alone[name])
        s.act_into(obs, out, 4, 8, seed=1)
        np.testing.assert_array_equal(out, alone["argmax"])
    with pytest.raises(BadInput, match="rule is 'best'"):
        s.act_into(obs, out, 4, 8, rule="best")
    for bad in (
        "medoid",
        "medoid:2/4",
        "medoid:1/1",
        "medoid:01/2",
        "medoid:3/2",
        "soft:32769",
        "",
    ):
        with pytest.raises(ValueError, match="no rule's full name"):
            s._session._session.set_rule(bad)


def test_a_rule_named_as_before_is_not_set_again(monkeypatch):
    own = dataclasses.replace(POLICY, choice=PolicyChoice(rule="soft:2", steps=2, candidates=3))
    s, obs, out = native(monkeypatch, own), observations(2), np.zeros((2, 3), "f4")
    use, used = s._native.use, []
    monkeypatch.setattr(s._native, "use", lambda rule: (used.append(rule), use(rule)))
    for rule in (None, "medoid", rule_of("better:1/5"), "argmax", None):
        for _ in range(3):
            s.act_into(obs, out, rule=rule)
    assert list(map(str, used)) == ["soft:2", "medoid:1/2", "better:1/5", "argmax", "soft:2"]


def test_without_critics_there_is_the_centre(monkeypatch):
    policy = form_policy(FORMS["direct reading"], E=0)
    s, obs = native(monkeypatch, policy), observations(3, policy.obs_dim)
    action, info = s.act(obs, 1, 5, rule="centre", seed=1, return_info=True)
    noise = normals(1, 3, 5, policy.act_dim)
    twin = best_of_n(policy, obs, noise, 1, rule=rule_of("centre"))
    np.testing.assert_array_equal(info.candidate, twin.candidate)
    np.testing.assert_allclose(action, twin.action, rtol=0, atol=1e-5)
    assert np.isnan(info.q).all()
    out = np.zeros_like(action)
    s.act_into(obs, out, 1, 5, rule="centre", seed=1)
    np.testing.assert_array_equal(out, action)
    for call in (s.act, lambda x, *more: s.act_into(x, out, *more)):
        with pytest.raises(BadInput, match="candidates is 5, but this policy has no critic"):
            call(obs, 1, 5)


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "medoid:1/2", "steps": 4, "candidates": 8},
        {"rule": "nearest:1/4", "steps": [0.5, 0.25, 0.25], "candidates": 5},
        {"rule": "centre", "steps": 3, "candidates": 4},
        {"rule": "argmax", "steps": 16, "candidates": 2},
    ],
    ids=lambda v: v["rule"],
)
def test_a_policy_acts_its_own_way(monkeypatch, values):
    monkeypatch.delenv("SORL_BACKEND", raising=False)
    own = dataclasses.replace(POLICY, choice=PolicyChoice(**values))
    s, obs = Sampler(own), observations(4)
    assert s.backend == "native"
    plain = native(monkeypatch)
    N, M, rule = values["candidates"], values["steps"], values["rule"]
    expected = plain.act(obs, M, N, rule=rule, seed=3)
    out = np.zeros_like(expected)
    for _ in range(3):
        np.testing.assert_array_equal(s.act(obs, seed=3), expected)
        s.act_into(obs, out, seed=3)
        np.testing.assert_array_equal(out, expected)
        other = plain.act(obs, 2, 3, rule="argmax", seed=3)
        np.testing.assert_array_equal(s.act(obs, 2, 3, rule="argmax", seed=3), other)
    twin = Sampler(own, "numpy").act(obs, seed=3)
    assert (np.abs(twin - expected).max(1) < 1e-4).sum() >= 3


@pytest.mark.parametrize(
    "steps", [4, 5, schedule_of(4), schedule_of(5), schedule_of("1/2,1/4,1/4")]
)
def test_steps_are_looked_into_once(steps, monkeypatch):
    """What a first call has checked, and prepared where it was new, no later one checks again."""
    policy = make_policy(O=3, A=2, H=8, depth=1)
    s, fresh = Sampler(policy, "native"), Sampler(policy, "native")
    obs, out = np.zeros(3, "f4"), np.empty(2, "f4")
    s.act_into(obs, out, steps, seed=1)
    monkeypatch.setattr(s, "_check_steps", None)
    expected = fresh.act(obs, steps, seed=2)
    s.act_into(obs, out, steps, seed=2)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(s.act(obs, steps, seed=2), expected)
