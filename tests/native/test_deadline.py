"""Acting within a deadline, by a clock that the test holds: every reading of it is named."""

import dataclasses

import numpy as np
import pytest
from forms import FORMS, form_policy
from native.twin import make_policy

from sorl_fast import BadInput, Sampler
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.deadline import cut
from sorl_fast.act.philox import normals
from sorl_fast.act.reference import euler, plan_for
from sorl_fast.act.sampler import Status
from sorl_fast.act.schedule import schedule_of
from sorl_fast.action_map import ActionMap

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

PATHS = [(p, isa) for p in ("fp32", "bf16", "int8") for isa in _native.isas(p)]
by_path = pytest.mark.parametrize(("precision", "isa"), PATHS, ids=[f"{i}-{p}" for p, i in PATHS])
NEAR = {"fp32": 2e-5, "bf16": 2e-2, "int8": 6e-2}
DEPTH = 3
POLICY = make_policy(O=7, A=3, H=40, depth=DEPTH, normalise=True, bounds=(-9.0, 9.0))
OBS = normals(0, 1, 1, 7, call=99)[0, 0]
LATE = 10**12  # nanoseconds: beyond every deadline here
US = 1000


def ways(*given):
    return [PolicyChoice(steps=m, candidates=n, rule=r) for m, n, r in given]


def ready(monkeypatch, *given, policy=POLICY, precision="fp32", isa=None, threads=1):
    """Return a sampler with these ways, and its C++ session; nothing costs anything."""
    if isa is None:
        monkeypatch.delenv("SORL_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("SORL_CPU_ISA", isa)
    sampler = Sampler(policy, "native", precision, threads)
    planned = sampler.prepare_deadline(ways(*given))
    session = sampler._session._session
    for i in range(len(planned)):
        session._set_cost(i, 0, 0, 0, 0)
    return sampler, session


def act(sampler, deadline_us=1000.0, **key):
    return sampler.act(OBS, deadline_us=deadline_us, return_info=True, **{"seed": 5} | key)


def expected(policy, M, N, evaluations, planned):
    """Return z [N, A] of a call that was cut, by the definition."""
    noise = normals(5, 1, N, policy.act_dim)[0]
    obs = OBS[: policy.obs_dim]
    if policy.obs_mean is not None:
        obs = (obs - policy.obs_mean) / policy.obs_std
    steps = cut(plan_for(policy, schedule_of(M)), evaluations, policy.finest, planned=planned).steps
    return euler(policy.actor, np.repeat(obs[None], N, 0), noise, steps)


def only(session, way, count):
    """Let the budget of 1 ms fit one way alone."""
    for i in range(count):
        session._set_cost(i, 0 if i == way else LATE, 0, 0, 0)


@by_path
def test_enough_time_gives_the_bits_of_act(monkeypatch, precision, isa):
    given = [(8, 1, "argmax"), (4, 20, "medoid"), ("1/2,1/4,1/4", 9, "soft"), (2, 8, "centre")]
    for threads in (1, 2):
        s, session = ready(monkeypatch, *given, precision=precision, isa=isa, threads=threads)
        session._set_clock([0])
        for i, (m, n, rule) in enumerate(given):
            only(session, i, len(given))
            key = {"seed": 5, "call": 3, "row_offset": 2, "return_info": True}
            action, info = s.act(OBS, deadline_us=1000, **key)
            plain, other = s.act(OBS, m, n, rule=rule, **key)
            np.testing.assert_array_equal(action, plain)
            assert (info.candidate, info.status) == (other.candidate, other.status)
            scored = n if n > 1 and rule != "centre" else 0
            assert (info.evaluations, info.scored) == (schedule_of(m).count, scored)
            assert info.way == ways(given[i])[0]
            assert info.q == other.q if scored else np.isnan(info.q)


@by_path
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("candidates", [1, 9])
def test_at_every_layer_the_time_may_run_out(monkeypatch, precision, isa, threads, candidates):
    """Reading 0 is the call's begin, then one follows every layer of every step."""
    M = 4
    s, session = ready(
        *(monkeypatch, (M, candidates, "centre")), precision=precision, isa=isa, threads=threads
    )
    for layers in range(M * DEPTH):
        session._set_clock([0] * (1 + layers) + [LATE])
        s.reset()
        action, info = act(s)
        evaluations = (
            layers // DEPTH
        )  # the layer after which the clock was late is step `evaluations`'
        assert info.evaluations == evaluations
        assert info.status & Status.CUT_SHORT
        if evaluations == 0:
            assert info.status == Status.CUT_SHORT | Status.HELD
            assert (action == 0).all() and info.candidate == -1
            continue
        z = expected(POLICY, M, candidates, evaluations, False)
        near = np.abs(z - action).max(1)
        assert near[info.candidate] <= NEAR[precision]
        assert not info.status & Status.HELD
    session._set_clock([0] * (1 + M * DEPTH) + [LATE])  # all done, though late
    assert act(s)[1].status & Status.CUT_SHORT == 0


@by_path
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_left_decides_before_each_step(monkeypatch, precision, isa, threads):
    """Time for one more evaluation but not for two: it is the last; for none: there is none."""
    M, N = 8, 9
    s, session = ready(
        *(monkeypatch, (M, N, "centre")), precision=precision, isa=isa, threads=threads
    )
    for done in range(1, M):
        for left, more in ((209, 1), (110, 1), (109, 0), (1, 0), (210, M - done)):
            session._set_cost(0, 0, 100 * US, 0, 10 * US)  # also forgets what earlier calls took
            one_left = done == M - 1
            session._set_clock([0] * (done * DEPTH) + [(1000 - left) * US])
            s.reset()
            action, info = act(s)
            more = min(more, 1) if one_left else more
            assert info.evaluations == done + more, (done, left)
            whole = info.evaluations == M or (one_left and more)
            assert bool(info.status & Status.CUT_SHORT) == (not whole), (done, left)
            if left != 210 or one_left:
                z = expected(POLICY, M, N, info.evaluations, bool(more))
                assert np.abs(z[info.candidate] - action).max() <= NEAR[precision]


@pytest.mark.parametrize("rule", ["argmax", "medoid", "nearest", "soft", "better"])
def test_candidates_not_scored_are_left_out(monkeypatch, rule):
    M, N, groups = 2, 20, (8, 16, 20)
    s, session = ready(monkeypatch, (M, N, rule))
    noise = normals(5, 1, N, 3)[0]
    before = 1 + M * DEPTH
    group = 2 + POLICY.ensemble * (DEPTH - 1) + 1  # of readings
    for readings in range(3 * group):
        session._set_clock([0] * (before + readings) + [LATE])
        action, info = act(s)
        # within a group's last reading it is already counted
        scored = (0, *groups)[(readings + 1) // group]
        assert info.scored == scored, readings
        assert bool(info.status & Status.CUT_SHORT) == (scored < N)
        if scored == 0:
            assert info.candidate == 0 and np.isnan(info.q)  # as with N = 1
            np.testing.assert_allclose(action, s.act(OBS, M, 1, seed=5), atol=2e-5)
        elif rule not in ("soft", "better"):  # which read the key as well
            one, other = s.act(OBS, M, scored, rule=rule, noise=noise[:scored], return_info=True)
            assert info.candidate == other.candidate
            np.testing.assert_allclose(action, one, atol=2e-5)
        assert info.candidate < max(scored, 1)


def test_there_must_be_time_for_a_group(monkeypatch):
    s, session = ready(monkeypatch, (2, 20, "argmax"))
    for left, scored in ((104, 0), (105, 20)):
        session._set_cost(0, 0, 0, 100 * US, 5 * US)
        session._set_clock([0] * (1 + 2 * DEPTH) + [(1000 - left) * US])
        assert act(s)[1].scored == scored


def test_the_budget_chooses_the_first_that_fits(monkeypatch):
    s, session = ready(monkeypatch, (8, 1, "argmax"), (4, 4, "argmax"), (1, 1, "argmax"))
    session._set_clock([0])
    for i, cost in enumerate((500, 700, 90)):
        session._set_cost(i, cost * US, 0, 0, 0)
    for budget, steps in ((1000, 8), (500, 8), (499, 1), (90, 1), (10, 1), (0, 1)):
        info = act(s, budget)[1]
        assert info.way.steps.count == steps
        assert bool(info.status & Status.CUT_SHORT) == (budget == 0)  # 0: at once


def test_a_layer_is_begun_only_if_it_is_expected_to_be_in_time(monkeypatch):
    s, session = ready(monkeypatch, (4, 1, "argmax"))
    # after the sixth and the last a step follows or nothing, not a layer
    for layers, in_time in ((4, False), (5, False), (6, True), (12, True)):
        for left in (50, 51):
            session._set_cost(0, 0, 0, 0, 0, 50 * US)
            session._set_clock([0] * layers + [(1000 - left) * US] + [0])
            info = act(s)[1]
            cut = left == 50 and not in_time
            assert info.evaluations == (1 if cut else 4), (layers, left)
            assert bool(info.status & Status.CUT_SHORT) == cut


def steady(steps, step_us):
    """Return the clock of a call whose every layer takes as long."""
    return [round(i * step_us * US / DEPTH) for i in range(1 + steps * DEPTH)]


def test_a_machine_that_becomes_slower_gets_cheaper_ways(monkeypatch):
    s, session = ready(monkeypatch, (8, 1, "argmax"), (1, 1, "argmax"))
    session._set_cost(0, 800 * US, 100 * US, 0, 0)
    session._set_cost(1, 100 * US, 100 * US, 0, 0)

    def steps_of(calls, step_us):
        found = []
        for _ in range(calls):
            session._set_clock(steady(8, step_us))
            found.append(act(s)[1].way.steps.count)
        return found

    assert set(steps_of(100, 95)) == {8}
    slow = steps_of(50, 200)
    assert slow[0] == 8 and set(slow[10:]) == {1}
    quick = steps_of(2000, 95)
    assert quick[0] == 1 and set(quick[1500:]) == {8}
    session._set_cost(0, 1200 * US, 150 * US, 0, 0)  # it was slow while it was measured
    session._set_cost(1, 150 * US, 150 * US, 0, 0)
    quick = steps_of(1000, 75)
    assert quick[0] == 1 and set(quick[900:]) == {8}


def test_calls_that_another_program_delays_change_no_way(monkeypatch):
    s, session = ready(monkeypatch, (8, 1, "argmax"), (1, 1, "argmax"))
    session._set_cost(0, 800 * US, 100 * US, 0, 0)
    session._set_cost(1, 100 * US, 100 * US, 0, 0)
    for i in range(1000):
        # off the core in the first, or in the middle of the fourth evaluation
        late = {0: [0, LATE], 150: [0] * (2 + 3 * DEPTH) + [LATE]}.get(i % 300)
        session._set_clock(late or steady(8, 100))
        assert act(s)[1].way.steps.count == 8, i
    # nor does one call in two hundred of a loop that woke too late; more of them do
    for every, steps in ((200, 8), (8, 1)):
        for i in range(400):
            session._set_clock(steady(8, 100))
            found = act(s, 99 if i % every == 0 else 1000)[1].way.steps.count
            assert found == (1 if i % every == 0 else steps) or (steps == 1 and i < 100), (every, i)


def test_the_usual_ways():
    """More steps, then more candidates; where the policy has a choice of its own, from that on."""
    s = Sampler(make_policy(O=3, A=2, H=8, depth=1, m_disc=4), "native")
    found = [(p.way.steps.count, p.way.candidates) for p in s.prepare_deadline()]
    assert found == [(m, n) for m in (4, 2, 1) for n in (4, 2, 1)]
    own = PolicyChoice(steps="1/2,1/4,1/4", candidates=6, rule="medoid")
    s = Sampler(dataclasses.replace(s.policy, choice=own), "native")
    planned = s.prepare_deadline()
    assert planned[0].way == own
    found = [(str(p.way.steps), p.way.candidates) for p in planned]
    assert found == [(m, n) for m in ("1/2,1/4,1/4", "2", "1") for n in (6, 3, 1)]
    assert all(p.way.rule == own.rule for p in planned)
    for p in planned:
        assert 0 < p.step_us <= p.call_us and (p.score_us > 0) == (p.way.candidates > 1)
        # else a call that was chosen because it fits would be cut because its parts do not
        parts = p.way.steps.count * p.step_us + (p.way.candidates > 1) * p.score_us + p.rest_us
        assert parts <= p.call_us + 0.01
    s = Sampler(form_policy(FORMS["euler"], E=0), "native")
    assert [(p.way.steps.count, p.way.candidates) for p in s.prepare_deadline()] == [
        (10, 1),
        (3, 1),
    ]


def test_another_form(monkeypatch):
    """A flow of another form reads no step size; a one-step actor has nothing to cut but itself."""
    policy = form_policy(FORMS["euler"], O=7)
    s, session = ready(monkeypatch, (3, 2, "centre"), policy=policy)
    for evaluations in (1, 2):
        session._set_clock([0] * (1 + 2 * evaluations) + [LATE])
        action, info = act(s)
        z = expected(policy, 3, 2, evaluations, False)[info.candidate]
        np.testing.assert_allclose(action, np.clip(z, -1, 1), atol=2e-5)
    s, session = ready(monkeypatch, (1, 1, "argmax"), policy=form_policy(FORMS["tanh noisy"], O=7))
    np.testing.assert_array_equal(act(s, 1e9)[0], s.act(OBS, seed=5))
    session._set_clock([0, LATE])
    assert act(s)[1].status == Status.CUT_SHORT | Status.HELD
    s = Sampler(form_policy(FORMS["diffusion"], O=7), "native")
    with pytest.raises(BadInput, match="diffusion's steps cannot be cut short"):
        s.prepare_deadline()


def test_what_is_held_and_what_is_bad(monkeypatch):
    units = ActionMap(np.array([2.0, -3, 0]), np.array([5.0, 1, 9]))
    bounds = {"action_low": np.full(3, -1.0), "action_high": np.full(3, 0.5)}
    policy = dataclasses.replace(POLICY, action_map=units, **bounds)
    s, session = ready(monkeypatch, (4, 1, "argmax"), policy=policy)
    session._set_clock([0, LATE])
    low, high = policy.bounds
    assert (act(s)[0] == np.clip(np.zeros(3), low, high)).all()  # measuring has left nothing behind
    for layers in range(3 * DEPTH):
        session._set_clock([0] * layers + [LATE])
        action = act(s)[0]
        assert (low <= action).all() and (action <= high).all()
    session._set_clock([0])
    good = act(s)[0]
    session._set_clock([0, LATE])
    held, info = act(s, call=7)
    np.testing.assert_array_equal(held, good)
    assert info.status == Status.CUT_SHORT | Status.HELD
    session._set_clock([0])
    bad = OBS.copy()
    bad[2] = np.nan
    held, info = s.act(bad, deadline_us=1e3, return_info=True)
    np.testing.assert_array_equal(held, good)
    assert info.status == Status.NONFINITE_OBS | Status.HELD


def test_a_larger_call_keeps_the_plan(monkeypatch):
    s, _ = ready(monkeypatch, (4, 4, "argmax"))
    expected_action = act(s)[0]
    s.act(np.zeros((3, 7), "f4"), 8, 40)
    np.testing.assert_array_equal(act(s)[0], expected_action)


def test_into_the_callers_memory(monkeypatch):
    s, _ = ready(monkeypatch, (4, 4, "argmax"))
    out = np.empty(3, np.float32)
    info = s.act_into(OBS, out, deadline_us=1e6, seed=5)
    np.testing.assert_array_equal(out, act(s, 1e6)[0])
    assert info.evaluations == 4
    assert not np.array_equal(s.act(OBS, deadline_us=1e6), s.act(OBS, deadline_us=1e6))  # own seed


def test_refusals(monkeypatch):
    fresh = Sampler(POLICY, "native")
    with pytest.raises(BadInput, match="no deadline was prepared"):
        fresh.act(OBS, deadline_us=100)
    with pytest.raises(BadInput, match="a deadline needs the native backend"):
        Sampler(POLICY, "numpy").prepare_deadline()
    with pytest.raises(BadInput, match="a deadline needs the native backend"):
        Sampler(POLICY, "numpy").act(OBS, deadline_us=100)
    with pytest.raises(BadInput, match=r"candidates is 4096, but must be 1 to \d+ with a deadline"):
        fresh.prepare_deadline(ways((1, 4096, "argmax")))
    with pytest.raises(BadInput, match="ways has a int, but must be PolicyChoices"):
        fresh.prepare_deadline([3])
    s, _ = ready(monkeypatch, (4, 4, "argmax"))
    for name, value in (("steps", 4), ("candidates", 1), ("rule", "centre"), ("temperature", 1.0)):
        with pytest.raises(BadInput, match=f"{name} is given together with deadline_us"):
            s.act(OBS, deadline_us=100, **{name: value})
    for wrong in (-1, float("nan"), float("inf"), "soon", True):
        with pytest.raises(BadInput, match="deadline_us is"):
            s.act(OBS, deadline_us=wrong)
    with pytest.raises(BadInput, match=r"obs has the shape \[2, 7\], but must be \[7\]"):
        s.act(np.zeros((2, 7)), deadline_us=100)
