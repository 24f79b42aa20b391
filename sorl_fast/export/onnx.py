"""The whole sampler as one ONNX graph: normaliser, unrolled steps, bounds, critics, choice, units.

Shape letters: B observations, N candidates, R = B N rows, O observation, A action, S normal numbers that
a candidate takes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..act.choice import PolicyChoice
from ..act.form import Diffusion, is_residual
from ..act.policy_file import Policy
from ..act.session import rest
from ..version import __version__
from .choose import choose
from .graph import Graph
from .networks import Layers, network
from .noise import draw_noise
from .program import Program, program_of


def onnx_model(
    policy: Policy, way: PolicyChoice, noise: str = "input", precision: str = "fp32"
) -> bytes:
    """Return the graph of `Sampler.act`, as it is after `reset`.

    Inputs, float32, B any number of at least 1: obs [B, O]; noise [B, N, A], or [B, N, S, A] where the
    policy draws S > 1 numbers, unless it reads none; u [B] in [0, 1) where the rule draws. Or, by
    philox, instead of both and where the graph would have one of them: seed [2], its low 32 bits first,
    and call [1], uint32. Outputs: actions float32 [B, A], always finite and within `policy.bounds`; good
    bool [B], false where an observation or every candidate is not finite, and the action is what a fresh
    Sampler holds, 0 within the bounds.

    Parameters
    ----------
    policy
        Weights, normaliser, bounds, form and units.
    way
        Steps, candidates and rule, such as the policy takes (`PolicyChoice.check`).
    noise
        One of `arguments.SOURCES`: the caller's, or drawn in the graph as by `act.philox`.
    precision
        One of `arguments.PRECISIONS`; fp32 for the residual diffusion.
    """
    return _Sampler(policy, way, None, noise, precision).model()


def plain_model(policy: Policy, way: PolicyChoice, batch: int) -> bytes:
    """Return the graph that one would export from a plain model, for B = `batch`: to be raced.

    Inputs obs [B, O] and draw0, draw1, ... [B, N, A], those of `program.draws_read`; output actions
    [B, A]; all float32 with static shapes. By argmax; nothing is rejected, and there are no units. The
    time and k are inputs of the networks, not folded into their biases.
    """
    return _Sampler(policy, way, batch).model()


class _Sampler:
    """One graph in the making; `batch` None: any, guarded."""

    def __init__(
        self,
        policy: Policy,
        way: PolicyChoice,
        batch: int | None,
        noise: str = "input",
        precision: str = "fp32",
    ) -> None:
        self.policy, self.way, self.batch = policy, way, batch
        self.draws_itself, self.precision = noise == "philox", precision
        self.program: Program = program_of(policy, way.steps)
        self.N = way.candidates
        self.g = Graph()
        self.checked: list[str] = []  # [R, A] each: where one is not finite the candidate is bad

    def model(self) -> bytes:
        g, policy, N = self.g, self.policy, self.N
        B: int | str = "B" if self.batch is None else self.batch
        O, A = policy.obs_dim, policy.act_dim
        self.inputs: list[tuple[str, str, list[int | str]]] = [("obs", "FLOAT", [B, O])]
        draws, u = self._drawn() if self.draws_itself else self._given(B)
        obs = "obs"
        if policy.obs_mean is not None and policy.obs_std is not None:
            centred = g.node("Sub", obs, g.constant("obs_mean", policy.obs_mean))
            obs = g.node("Div", centred, g.constant("obs_std", policy.obs_std))
        rows = self._by_candidate(obs, O)
        z = self._candidates(obs, rows, draws)
        low, high = g.constant("low", policy.action_low), g.constant("high", policy.action_high)
        within = g.node("Max", z, low)
        if self.batch is not None:
            return self._plain(rows, within, high)
        self.checked += [z] if self.draws_itself else [z, *draws]
        actions = g.node("Min", within, high)
        good = self._good()
        if N > 1:
            rule = self.way.rule
            by_row = g.node("Reshape", actions, g.integers(-1, N, A))
            q = ""
            if rule.reads_q:
                q, fine = self._q(rows, actions)
                good = g.node("And", good, fine)
            won = choose(g, rule, policy, N, by_row, q, good, u)
            actions = g.node("GatherND", by_row, won, batch_dims=1)
        left = g.reduce("ReduceMax", g.floats(good), 1)
        left = g.node("Greater", left, g.number(0.5))
        if (units := policy.action_map) is not None:
            scaled = g.node("Mul", g.node("Add", actions, g.number(1.0)), self._vector(units.half))
            moved = g.node("Add", self._vector(units.low), scaled)
            actions = g.node("Min", moved, self._vector(units.high))
        g.node("Where", left, actions, g.constant("rest", rest(policy)[None]), output="actions")
        g.node("Reshape", left, g.integers(-1), output="good")
        notes = {"policy sha256": policy.digest, "acts": str(self.way), "env": policy.env}
        notes |= {"precision": self.precision, "sorl-fast": __version__}
        return g.model(self.inputs, [("actions", "FLOAT", [B, A]), ("good", "BOOL", [B])], notes)

    def _given(self, B: int | str) -> tuple[list[str], str]:
        """Return the draws that are read, [R, A] each, and the rule's numbers [B, 1], of inputs."""
        g, N, S, A = self.g, self.N, self.policy.draws, self.policy.act_dim
        read = self.program.draws
        if self.batch is not None:
            ports = [f"draw{i}" for i in range(len(read))]
            self.inputs += [(port, "FLOAT", [B, N, A]) for port in ports]
        elif read:
            ports = ["noise"] if S == 1 else [self._draw(i) for i in read]
            self.inputs.append(("noise", "FLOAT", [B, N, A] if S == 1 else [B, N, S, A]))
        else:
            ports = []
        draws = [g.node("Reshape", x, g.integers(-1, A)) for x in ports]
        if self.batch is not None or not self._rule_draws:
            return draws, ""
        self.inputs.append(("u", "FLOAT", [B]))
        return draws, g.node("Unsqueeze", "u", g.integers(1))

    def _drawn(self) -> tuple[list[str], str]:
        """Return what `_given` does, of a seed and the number of the call."""
        read = self.program.draws
        if not read and not self._rule_draws:
            return [], ""
        self.inputs += [("seed", "UINT32", [2]), ("call", "UINT32", [1])]
        return draw_noise(self.g, "obs", self.N, self.policy.act_dim, read, self._rule_draws)

    @property
    def _rule_draws(self) -> bool:
        return self.N > 1 and self.way.rule.draws

    def _plain(self, rows: str, within: str, high: str) -> bytes:
        """Return the plain graph from its candidates on, clipped from below: see `plain_model`."""
        g, N, A = self.g, self.N, self.policy.act_dim
        if N == 1:
            g.node("Min", within, high, output="actions")
        else:
            z = g.node("Min", within, high)
            best = g.node("ArgMax", self._q(rows, z)[0], axis=1, keepdims=1)
            by_row = g.node("Reshape", z, g.integers(-1, N, A))
            g.node("GatherND", by_row, best, output="actions", batch_dims=1)
        return g.model(self.inputs, [("actions", "FLOAT", [self.batch or 1, A])], {})

    def _vector(self, value: Any) -> str:
        return self.g.constant(f"units/{np.asarray(value).tobytes().hex()}", value)

    def _draw(self, i: int) -> str:
        """Return number i [B, N, A] of each candidate's noise [B, N, S, A]."""
        return self.g.node("Gather", "noise", self.g.constant(f"draw{i}", np.int64(i)), axis=2)

    def _by_candidate(self, x: str, width: int) -> str:
        """Return x [B, width] once a candidate, [R, width]."""
        g = self.g
        if self.N == 1:
            return x
        wide = g.node("Expand", g.node("Unsqueeze", x, g.integers(1)), g.integers(1, self.N, 1))
        return g.node("Reshape", wide, g.integers(-1, width))

    def _candidates(self, obs: str, rows: str, draws: Sequence[str]) -> str:
        """Return the candidates [R, A] before the clip to the bounds."""
        g, program, unread = self.g, self.program, list(draws)
        z = unread.pop(0) if program.reads_z else ""
        for i, step in enumerate(program.steps):
            v = self._velocity(i, rows if z else obs, z)
            if program.squashes:
                self.checked.append(v if z else self._by_candidate(v, self.policy.act_dim))
                v = g.node("Tanh", v)
            if not z:
                v = self._by_candidate(v, self.policy.act_dim)
            v = g.times(v, step.gain)
            z = v if step.keep == 0 else g.node("Add", g.times(z, step.keep), v)
            if step.noise:
                added = g.times(unread.pop(0), step.noise)
                z = g.node("Add", z, g.clip(added, program.noise_clip))
            if program.clip is not None:
                self.checked.append(z)
                z = g.clip(z, program.clip)
        return z

    def _velocity(self, i: int, obs: str, z: str) -> str:
        """Return v [rows, A] of step i; z "": it is 0."""
        policy, step = self.policy, self.program.steps[i]
        if is_residual(policy.form):
            return self._score(i, obs, z)
        (w, b), *others = policy.actor
        inputs = [obs, z] if z else [obs]
        if not self.program.reads_time:
            first: list[Any] = [w[: policy.obs_dim + (policy.act_dim if z else 0)], b]
            return self._network("actor", [first, *others], inputs, ())
        fed = (step.time, step.log2_steps)
        return self._network("actor", policy.actor, inputs, fed, f"@{i}")

    def _network(
        self,
        prefix: str,
        layers: Layers,
        inputs: Sequence[str],
        fed: Sequence[float],
        suffix: str = "",
        relu: bool = False,
    ) -> str:
        """Return what a network makes of inputs [rows, ...] and the same numbers `fed` beside each."""
        g, parts = self.g, list(inputs)
        if fed and self.batch is not None:
            column = np.tile(np.array(fed, np.float32), (self.batch * self.N, 1))
            parts.append(g.constant(f"{prefix}/fed{suffix}", column))
        elif fed:
            (w, b, *norm), *others = layers
            layers = [(w[: -len(fed)], _folded(w, b, fed), *norm), *others]
        x = g.node("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        named = suffix if self.batch is None else ""
        return network(g, prefix, layers, x, relu, named, self.precision)

    def _score(self, i: int, rows: str, z: str) -> str:
        """Return `reference.score` at the time of step i."""
        g, form = self.g, self.policy.form
        assert isinstance(form, Diffusion)
        (frequencies,), first, second, (w, b), *blocks, last = self.policy.actor
        f = 2 * math.pi * self.program.steps[i].time * frequencies.astype(np.float64)
        time = np.concatenate([np.cos(f), np.sin(f)], 1) @ first[0] + first[1]
        time = time / (1 + np.exp(-time)) @ second[0] + second[1]
        entry = [(w[: -time.shape[1]], _folded(w, b, time[0]))]
        x = g.node("Concat", z, rows, axis=1)
        h = network(g, "score/entry", entry, x, suffix=f"@{i}")
        for j, ((wide, bias, *norm), narrow) in enumerate(
            zip(blocks[0::2], blocks[1::2], strict=True)
        ):
            gain, shift = (g.constant(f"score/{j}/norm{n}", a) for n, a in enumerate(norm))
            x = g.node("LayerNormalization", h, gain, shift, axis=-1, epsilon=1e-6)
            x = self._swish(network(g, f"score/{j}/wide", [(wide, bias)], x))
            h = g.node("Add", h, network(g, f"score/{j}/narrow", [narrow], x))
        return network(g, "score/last", [last], self._swish(h))

    def _swish(self, x: str) -> str:
        return self.g.node("Mul", x, self.g.node("Sigmoid", x))

    def _q(self, rows: str, actions: str) -> tuple[str, str]:
        """Return the aggregated Q [B, N], and the mask of where it is finite ("" in a plain graph)."""
        g, policy = self.g, self.policy
        relu = is_residual(policy.form)
        fed = () if relu else (float(self.program.k),)
        q = [
            self._network(
                f"critic{e}",
                [[a[e] for a in layer] for layer in policy.critic],
                [rows, actions],
                fed,
                relu=relu,
            )
            for e in range(policy.ensemble)
        ]
        if self.batch is not None:  # a mean's factor ranks nothing
            best = g.node("Sum" if policy.q_agg == "mean" else "Min", *q)
            return g.node("Reshape", best, g.integers(-1, self.N)), ""
        best = g.node("Mean" if policy.q_agg == "mean" else "Min", *q)
        fine = g.finite(best)
        if policy.q_agg == "min":  # of a NaN and a number some take the number
            fine = g.node("And", fine, g.finite(g.node("Concat", *q, axis=1), math.inf))
        shape = g.integers(-1, self.N)
        return g.node("Reshape", best, shape), g.node("Reshape", fine, shape)

    def _good(self) -> str:
        """Return the mask [B, N] of candidates that are finite, of observations that are."""
        g = self.g
        values = list(dict.fromkeys(self.checked))
        x = g.node("Concat", *values, axis=1) if len(values) > 1 else values[0]
        fine = g.node("Reshape", g.finite(x), g.integers(-1, self.N))
        # whatever a runtime's products and GELU make of an infinity
        return g.node("And", fine, g.finite("obs"))


def _folded(w: Any, b: Any, fed: Any) -> Any:
    """Return the bias that a layer has beside inputs whose last are the same numbers in every row."""
    numbers = np.asarray(fed, np.float64)
    return (b + numbers @ w[-len(numbers) :].astype(np.float64)).astype(np.float32)
