"""The torch backend: the definition in plain PyTorch, on the device of the observations.

Shape letters: B observations (rows), N candidates, O observation, A action.
"""

import functools
from fractions import Fraction
from typing import Any

from ..form import NAMES, Diffusion, Direct, Tanh, is_residual
from ..philox import uniforms
from ..policy_file import Policy
from ..reference import plan_for
from ..rules import ARGMAX, Rule, scale_of
from ..schedule import Plan, Schedule
from ..session import (
    Backend,
    Info,
    NoiseKey,
    Session,
    Status,
    as_floats,
    held_after,
    noise_of,
    refuse_dtype,
    rest,
)


def why_not(name: str) -> str:
    """Return why the torch or triton backend cannot serve for lack of a package, or ""."""
    try:
        import torch  # noqa: F401

        from ...ops import reference  # noqa: F401
    except ModuleNotFoundError as err:
        return (
            f"backend is {name!r}, but {err.name} is not installed: run "
            "`pip install sorl-fast[train]`, or choose backend numpy"
        )
    return ""


class TorchSession:
    """The policy in plain PyTorch, on the device of the observations, never waiting for it.

    Not for two threads at once.

    Parameters
    ----------
    policy
        Its weights are copied, once for all samplers, to every device that observations come from.
    """

    def __init__(self, policy: Policy) -> None:
        import torch

        from ...ops import forms, reference  # PyTorch's own arithmetic, on any device
        from ...ops.rules import pick
        from ...ops.schedule import euler

        self._torch = torch
        self._euler: Any = euler
        self._pick: Any = pick
        self._forms: Any = forms
        self._reference: Any = reference
        self._policy = policy
        self._weights: dict[Any, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the last good action."""
        self._last = self._torch.from_numpy(rest(self._policy))

    def array(self, name: str, value: Any) -> Any:
        """Return the caller's numbers as a float32 tensor, where they are; see `Session.array`."""
        torch = self._torch
        if not isinstance(value, torch.Tensor):
            # a copy: from_numpy warns of arrays that may not be written to
            return torch.from_numpy(as_floats(name, value).copy())
        if value.dtype.is_complex or value.dtype == torch.bool:
            refuse_dtype(name, str(value.dtype))
        return value.to(torch.float32)

    def act(
        self,
        obs: Any,
        noise: Any | NoiseKey,
        candidates: int,
        steps: int | Schedule,
        want_q: bool,
        temperature: float = 0.0,
        rule: Rule = ARGMAX,
        draw: NoiseKey | None = None,
    ) -> tuple[Any, Info]:
        """Act on obs [B, O] with noise [B, N, A] or that of the key; see `Session.act`."""
        torch, policy = self._torch, self._policy
        if isinstance(noise, NoiseKey):
            drawn = noise_of(noise, len(obs), candidates, policy.act_dim, policy.draws)
            noise = torch.from_numpy(drawn)
        with torch.no_grad():
            actor, critic, low, high, *_ = self._on(obs.device)
            plan = plan_for(policy, steps)
            best = self._reference.best_of_parts(
                *self._parts(actor, critic, temperature, plan),
                self._normalised(obs),
                noise.to(obs.device),
                plan.k,
                policy.q_agg,
                low,
                high,
                want_q=want_q,
                pick=self._rule(rule, obs, draw),
                reads_q=rule.reads_q,
            )
            action, info, self._last = self._settle(obs, best, self._last.to(obs.device))
            return action, info

    def _rule(self, rule: Rule, obs: Any, draw: NoiseKey | None) -> Any:
        """Return what chooses, of actions [B, N, A], Q [B, N] and which are good [B, N]."""
        torch, policy = self._torch, self._policy
        u: Any = None
        if draw is not None:
            drawn = uniforms(draw.seed, len(obs), draw.call, draw.row_offset)
            u = torch.from_numpy(drawn).to(obs.device, torch.float32)
        w = torch.from_numpy(scale_of(policy.action_low, policy.action_high)).to(obs.device)
        p = rule.parameter or Fraction(1)
        parameter = p.numerator, p.denominator
        return lambda actions, q, good: self._pick(rule.name, parameter, actions, q, good, w, u)

    def _parts(self, actor: Any, critic: Any, temperature: float, plan: Plan) -> tuple[Any, Any]:
        """Return what makes candidates and what scores them; without critics None scores."""
        form, forms, reference = self._policy.form, self._forms, self._reference
        score: Any = None
        if critic and is_residual(form):

            def score(obs: Any, actions: Any, steps: int) -> Any:
                return forms.relu_critics(critic, obs, actions)

        elif critic:
            score = functools.partial(reference.critic_ensemble, critic)
        if isinstance(form, Direct):
            options: dict[str, Any] = {
                "reads_noise": form.reads_noise,
                "tanh": isinstance(form, Tanh),
            }
            options |= {"scale": form.noise_scale * temperature, "noise_clip": form.noise_clip}
            return lambda obs, noise, steps: forms.one_step(actor, obs, noise, **options), score
        if isinstance(form, Diffusion):
            scales = [s * temperature for s in form.noise_scales]
            coefficients = [*zip(form.times, form.z_scales, form.v_scales, scales, strict=True)]

            def network(obs: Any, z: Any, t: Any) -> Any:
                if is_residual(form):
                    return forms.score(actor, obs, z, t)
                return reference.velocity(actor, obs, z, t, self._torch.zeros_like(t))

            def diffuse(obs: Any, noise: Any, steps: int) -> Any:
                noise = noise.reshape(len(obs), form.draws, self._policy.act_dim)
                return forms.diffuse(network, obs, noise, coefficients, form.clip)

            return diffuse, score
        velocity = functools.partial(reference.velocity, actor)
        return reference.steps_of(velocity, self._euler(*plan), None), score

    def _normalised(self, obs: Any) -> Any:
        *_, mean, std = self._on(obs.device)
        return obs if mean is None else (obs - mean) / std

    def _settle(self, obs: Any, best: Any, last: Any) -> tuple[Any, Info, Any]:
        """Hold `last` where no candidate is left; return the actions, their Info and the next last.

        An observation that only normalising made infinite is a matter of the result.
        """
        torch = self._torch
        seen = obs.isfinite().all(1)
        none_good = Status.NONFINITE_OBS | Status.NONFINITE_RESULT
        left = seen & (best.status & none_good == 0)
        action = torch.where(left[:, None], self._in_units(best.action, obs.device), last)
        why = torch.where(seen, Status.NONFINITE_RESULT, Status.NONFINITE_OBS)
        status = torch.where(left, best.status, why | Status.HELD)
        if self._policy.ood is not None:
            far = self._beyond(obs) & seen
            status = status | torch.where(far, Status.OUT_OF_DISTRIBUTION, 0)
        if len(obs):
            numbers = torch.arange(len(obs), device=obs.device)
            highest = torch.where(left, numbers, -1).amax(0, keepdim=True)
            latest = held_after(self._policy, action.index_select(0, highest.clamp(min=0))[0])
            last = torch.where(highest >= 0, latest, last)
        info = Info(
            torch.where(left, best.candidate, -1),
            torch.where(left, best.q, torch.nan),
            status.to(torch.int32),
        )
        return action, info, last

    def _beyond(self, obs: Any) -> Any:
        """Return which [B] of finite observations are out of distribution: `ood.OodTest.beyond`.

        In double, which no setting of products makes coarser, and a GPU's TF32 would.
        """
        *_, (mean, whiten, threshold), _, _, _ = self._on(obs.device)
        y = (obs.double() - mean) @ whiten
        return ~(y.square().sum(1) <= threshold)

    def _in_units(self, actions: Any, device: Any) -> Any:
        """Return what was chosen [B, A] in the units of the policy's `action_map`, by its operations."""
        *_, units, _, _ = self._on(device)
        if units is None:
            return actions
        low, half, high = units
        return self._torch.minimum(low + (actions + 1) * half, high)

    def _on(self, device: Any) -> Any:
        """Return the policy's arrays as tensors on `device`, copied there once."""
        if device not in self._weights:
            self._weights[device] = self._policy.once(("torch", device), lambda: self._copy(device))
        return self._weights[device]

    def _copy(self, device: Any) -> Any:
        p, torch = self._policy, self._torch
        units, ood = p.action_map, p.ood

        def move(array: Any) -> Any:
            return None if array is None else torch.tensor(array, device=device)

        with torch.inference_mode(False):  # other samplers read them outside of it
            return (
                [tuple(map(move, layer)) for layer in p.actor],
                [tuple(map(move, layer)) for layer in p.critic],
                *map(move, (p.action_low, p.action_high)),
                None
                if ood is None
                else [
                    m.double() for m in (move(ood.mean), move(ood.whiten).T, move(ood.threshold))
                ],
                None if units is None else [*map(move, (units.low, units.half, units.high))],
                *map(move, (p.obs_mean, p.obs_std)),
            )


def _make(policy: Policy, precision: str, threads: int) -> Session:
    return TorchSession(policy)


BACKEND = Backend(
    name="torch",
    precisions=("fp32",),
    forms=NAMES,
    why_not=lambda precision: why_not("torch"),
    make=_make,
)
