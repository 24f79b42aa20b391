"""The parts of a diagnosis: the figures of each, from a run that has been gathered.

A part that a run cannot have raises `Absent`, which says what is missing, by its name. Shape letters: B
observations, N candidates, A action, E critics, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..act.form import Euler, name_of
from ..act.reference import Array, aggregate
from ..act.rules import scale_of
from ..act.schedule import schedule_of
from . import candidates, errors, returns, standstills, wasserstein
from .proposals import draws_nothing, integrate, noise, propose, values, velocity_of
from .subject import TRIED, Rows, Stream, Subject

Figures = dict[str, Any]

POINTS = 300  # of a scatter
NOISES = 4  # a validation observation of the errors
SETS = 64  # observations whose sets of actions are compared: an assignment each


class Absent(Exception):
    """A run has no such part. The message says why."""


class _Candidates(NamedTuple):
    """Candidates at observations, all of them finite."""

    obs: Array  # [B, O]
    actions: Array  # [B, N, A]
    q: Array  # [E, B, N]
    score: Array  # [B, N], or [B, 0] without critics
    dropped: int  # observations left out: something there was not finite


def _candidates(subject: Subject) -> _Candidates:
    """Return the candidates that several parts look at; the same for each."""
    policy, config = subject.policy, subject.config
    if draws_nothing(policy):
        raise Absent(
            "the actor draws nothing, so that all candidates are the same action; it acts with N = 1"
        )
    obs = subject.observations()
    if obs is None:
        raise Absent(f"there are no observations: {_why(subject, 'episodes', 'data')}")
    z = noise(policy, subject.rng(Stream.CANDIDATES), len(obs), config.candidates)
    actions = propose(policy, obs, z, subject.steps)
    q = values(policy, obs, actions, subject.steps)
    good = candidates.finite(actions, q)
    if not good.any():
        raise Absent(f"no action or Q at any of the {len(good)} observations was finite")
    obs, actions, q = obs[good], actions[good], q[:, good]
    score = aggregate(q, policy.q_agg) if len(q) else np.empty((len(actions), 0), np.float32)
    return _Candidates(obs, actions, q, score, int((~good).sum()))


def _why(subject: Subject, *names: str) -> str:
    return "; ".join(subject.absent[name] for name in names if name in subject.absent)


def _critic(subject: Subject) -> None:
    if not subject.policy.critic:
        raise Absent(f"the policy has no critic: {subject.method} trains none that acts")


def spread(subject: Subject) -> Figures:
    """Q's spread over the candidates against the ensemble's disagreement."""
    _critic(subject)
    found = _candidates(subject)
    return candidates.spread(found.q, found.score) | {"dropped": found.dropped}


def bias(subject: Subject) -> Figures:
    """What Q's order is a bias along."""
    _critic(subject)
    found = _candidates(subject)
    figures = candidates.bias(found.actions, found.score)
    if figures["observations"] == 0:
        raise Absent("Q is the same for all candidates of every observation: it orders nothing")
    return figures


def centre(subject: Subject) -> Figures:
    """The chosen one's distance from the centre by N, and the flow's error there."""
    found, policy = _candidates(subject), subject.policy
    w = scale_of(policy.action_low, policy.action_high)
    figures = candidates.centre(found.actions, found.score, w)
    if not _is_flow(subject):
        return figures | {"flow_matching": None}
    losses = {"at random": _loss(subject, found.obs, found.actions[:, 0])}
    for rule in candidates.rules_of(found.score):
        index = candidates.choose(rule, found.actions, found.score, w)
        chosen = np.take_along_axis(found.actions, index[:, None, None], 1)[:, 0]
        losses[str(rule)] = _loss(subject, found.obs, chosen)
    return figures | {"flow_matching": losses}


def _is_flow(subject: Subject) -> bool:
    return subject.policy.form is None or isinstance(subject.policy.form, Euler)


def _matching(subject: Subject, obs: Array, actions: Array, stream: Stream) -> list[errors.Error]:
    """Return the flow-matching errors on the finest grid at actions [B, A], of several noises each."""
    policy = subject.policy
    obs, actions = (np.repeat(x, NOISES, axis=0) for x in (obs, actions))
    x0 = subject.rng(stream).standard_normal(actions.shape, np.float32)
    M, e = policy.train_steps[-1], float(policy.config.get("flow_eps", 0.0))
    times = [i / M for i in range(M)]
    with np.errstate(all="ignore"):
        velocity = velocity_of(policy)
        return errors.flow_matching(velocity, obs, actions, x0, times, math.log2(M), e)


def _loss(subject: Subject, obs: Array, actions: Array) -> float:
    """Return the mean of `_matching` over the grid: low where the flow has met such an action."""
    return float(
        np.mean([found["error"] for found in _matching(subject, obs, actions, Stream.CHOSEN)])
    )


def window_of(subject: Subject) -> int:
    """Return how many steps a return or a standstill spans: a quarter of the longest episode, 2 to 50."""
    longest = max(trace.length for traces in subject.traces.values() for trace in traces)
    return int(min(50, max(2, longest // 4)))


def _episodes(subject: Subject) -> None:
    if not subject.traces:
        raise Absent(f"there are no episodes: {_why(subject, 'episodes')}")


def visited(subject: Subject) -> Figures:
    """Q of what was met and done against the return that came of it."""
    _critic(subject)
    _episodes(subject)
    policy, gamma, window = subject.policy, subject.gamma, window_of(subject)
    rows = []
    for way, traces in subject.traces.items():
        found_q, found_r, ends, forever = [], [], [], []
        for trace in traces:
            q = values(policy, trace.observations, trace.actions[:, None], way.steps)
            score = aggregate(q, policy.q_agg)[:, 0].astype(np.float64)
            r = returns.window_returns(trace.rewards, trace.success, gamma, window)
            found_q.append(score[: len(r)])
            found_r.append(r)
            if not trace.success and gamma < 1:
                ends.append(float(score[-window:].mean()))
                forever.append(float(trace.rewards[-window:].mean()) / (1 - gamma))
        x, y = returns.pooled(found_q), returns.pooled(found_r)
        some = subject.rng(Stream.POINTS).permutation(len(x))[:POINTS]
        rows.append(
            {
                "way": str(way),
                "steps": len(x),
                "correlation": returns.rank_correlation(x, y),
                "points": np.stack([x[some], y[some]], 1),
                "failed": len(ends),
                "q_at_failure": float(np.mean(ends)) if ends else None,
                "worth_at_failure": float(np.mean(forever)) if ends else None,
            }
        )
    return {"window": window, "gamma": gamma, "ways": rows, "tried": _tried(subject)}


def _tried(subject: Subject) -> Figures | None:
    """Return how Q orders the candidates of one state by the returns that each led to; None: none tried."""
    branches = subject.branches
    if branches is None:
        return None
    policy, gamma = subject.policy, subject.gamma
    q = values(policy, branches.observations, branches.actions, subject.steps)
    score = aggregate(q, policy.q_agg).astype(np.float64)
    came = [returns.discounted(result.rewards, gamma) for result in branches.results]
    figures = returns.among_candidates(score, np.reshape(came, (-1, TRIED)))
    return {"candidates": TRIED, "tried": len(score)} | figures


def still(subject: Subject) -> Figures:
    """Which episodes end in a standstill."""
    _episodes(subject)
    window = window_of(subject)
    everything = [t.observations for traces in subject.traces.values() for t in traces]
    scale = standstills.scale_of(everything)
    rows = []
    for way, traces in subject.traces.items():
        standing = [standstills.standing(t.observations, scale, window) for t in traces]
        failed = [i for i, t in enumerate(traces) if not t.success]
        rows.append(
            {
                "way": str(way),
                "episodes": len(traces),
                "failed": len(failed),
                "stood": sum(bool(standing[i][-1]) for i in failed),
                "part": float(np.concatenate(standing).mean()),
                "drift": [
                    float(standstills.drift(traces[i].observations, scale, window)[-1])
                    for i in failed
                    if traces[i].length >= window
                ],
            }
        )
    return {"window": window, "still": standstills.STILL, "ways": rows}


def _validation(subject: Subject, count: int, stream: Stream) -> Rows:
    if subject.val is None:
        raise Absent(f"there are no data: {_why(subject, 'data')}")
    rows = subject.val
    some = np.sort(subject.rng(stream).permutation(len(rows.observations))[:count])
    return Rows(rows.observations[some], rows.actions[some])


def flow(subject: Subject) -> Figures:
    """Flow-matching and self-consistency errors by time and step size."""
    policy, config = subject.policy, subject.config
    if not _is_flow(subject):
        raise Absent(
            f"the actor of {subject.method} is no flow: it acts by its form {name_of(policy.form)}"
        )
    rows = _validation(subject, config.observations, Stream.VALIDATION)
    M = policy.train_steps[-1]
    matching = _matching(subject, *rows, Stream.FLOW)
    consistency = _consistency(subject, *rows) if policy.form is None else []
    if not all(math.isfinite(found["error"]) for found in (*matching, *consistency)):
        raise Absent("a velocity of the actor is not finite")
    shown = {"observations": len(rows.observations), "noises": NOISES, "finest": M}
    return shown | {"flow_matching": matching, "self_consistency": consistency}


def _consistency(subject: Subject, obs: Array, actions: Array) -> list[errors.Error]:
    policy = subject.policy
    obs, actions = (np.repeat(x, NOISES, axis=0) for x in (obs, actions))
    x0 = subject.rng(Stream.CONSISTENCY).standard_normal(actions.shape, np.float32)
    e = float(policy.config.get("flow_eps", 0.0))
    with np.errstate(all="ignore"):
        return errors.self_consistency(velocity_of(policy), obs, actions, x0, policy.m_disc, e)


def distances(subject: Subject) -> Figures:
    """2-Wasserstein distances of M-step samples from the finest grid's and from the data's neighbours.

    By the triangle inequality W2(M, data) <= W2(M, finest) + W2(finest, flow) + W2(flow, data), at every
    observation: what self-consistency, the grid and flow matching are to keep small.
    """
    policy, n = subject.policy, subject.config.samples
    rows = _validation(subject, min(SETS, subject.config.observations), Stream.NEAR)
    assert subject.train is not None  # there with the validation data
    obs, data = rows.observations, subject.train
    if len(data.observations) < n:
        raise Absent(f"the data have {len(data.observations)} rows, fewer than --samples {n}")
    near, near_distance = wasserstein.neighbours(data.observations, obs, n)
    theirs = data.actions[near]  # [B, n, A]
    rng = subject.rng(Stream.SETS)
    z, other = (noise(policy, rng, len(obs), n) for _ in range(2))
    counts = policy.train_steps
    sets = {M: propose(policy, obs, z, schedule_of(M)) for M in counts}
    finest = sets[counts[-1]]
    again = propose(policy, obs, other, schedule_of(counts[-1]))
    if not all(np.isfinite(x).all() for x in (*sets.values(), again)):
        raise Absent("an action that was sampled is not finite")
    shortcut = policy.form is None
    mean = {"to_data": {M: wasserstein.wasserstein(x, theirs) for M, x in sets.items()}}
    figures: Figures = {
        "observations": len(obs),
        "samples": n,
        "steps": list(counts),
        "to_data": [float(mean["to_data"][M].mean()) for M in counts],
        "floor": float(wasserstein.wasserstein(finest, again).mean()),
        "spread": _radius(finest),
        "data_spread": _radius(theirs),
        "neighbour": float(near_distance.mean()),
        "to_finest": None,
        "discretisation": None,
        "flow_to_data": None,
    }
    if shortcut:
        count = max(64, 4 * policy.m_disc)
        limit = integrate(policy, obs, z, count)
        figures |= {
            "flow_steps": count,
            "to_finest": [float(wasserstein.wasserstein(sets[M], finest).mean()) for M in counts],
            "discretisation": float(wasserstein.wasserstein(finest, limit).mean()),
            "flow_to_data": float(wasserstein.wasserstein(limit, theirs).mean()),
        }
    return figures


def _radius(x: Array) -> float:
    """Return the mean over B of the root mean square distance of actions [B, n, A] from their mean."""
    centred = x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
    return float(np.sqrt(np.square(centred).sum(-1).mean(-1)).mean())


class Part(NamedTuple):
    """One part of a diagnosis."""

    name: str
    title: str
    figures: Callable[[Subject], Figures]


PARTS: tuple[Part, ...] = (
    Part("spread", "Q's spread and the critics' disagreement", spread),
    Part("bias", "What Q's order is a bias along", bias),
    Part("centre", "Distance of the chosen from the centre", centre),
    Part("returns", "Q against the return really had", visited),
    Part("standstills", "Standstills", still),
    Part("errors", "Flow-matching and self-consistency errors", flow),
    Part("wasserstein", "2-Wasserstein distances", distances),
)
