"""The torch backend: the definition in plain PyTorch, on the device of the observations.

Shape letters: B observations (rows), N candidates, O observation, A action.
"""

from typing import Any, NamedTuple

from ..policy_file import Policy
from ..session import (
    Backend,
    Info,
    NoiseKey,
    Session,
    Status,
    as_floats,
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


class Best(NamedTuple):
    """The winners of best-of-N as tensors, before any action is held; rows without one mean nothing."""

    action: Any  # [B, A]
    index: Any  # [B], int64
    q: Any  # [B]
    some_good: Any  # [B], bool: a candidate was left
    clipped: Any  # [B], bool: the bounds changed the action
    some_rejected: Any  # [B], bool: a candidate was not good


class TorchSession:
    """The policy in plain PyTorch, on the device of the observations, never waiting for it.

    Not for two threads at once.

    Parameters
    ----------
    policy
        Its weights are copied to every device that observations come from.
    """

    def __init__(self, policy: Policy) -> None:
        import torch

        from ...ops import reference as ops  # PyTorch's own arithmetic, on any device

        self._torch = torch
        self._ops = ops
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
        self, obs: Any, noise: Any | NoiseKey, candidates: int, steps: int, want_q: bool
    ) -> tuple[Any, Info]:
        """Act on obs [B, O] with noise [B, N, A] or that of the key; see `Session.act`."""
        torch = self._torch
        if isinstance(noise, NoiseKey):
            noise = torch.from_numpy(noise_of(noise, len(obs), candidates, self._policy.act_dim))
        with torch.no_grad():
            best = self._best(obs, noise.to(obs.device), steps, want_q)
            action, info, self._last = self._settle(obs, best, self._last.to(obs.device))
            return action, info

    def _best(self, obs: Any, noise: Any, steps: int, want_q: bool) -> "Best":
        """Return the best of N candidates, from noise [B, N, A]."""
        torch = self._torch
        B, N, A = noise.shape
        *_, low, high, mean, std = self._on(obs.device)
        # composed of parts, not ops.best_of_n: the status needs the actions before the clip
        x = obs if mean is None else (obs - mean) / std
        rows = x.repeat_interleave(N, 0)
        z = self._denoise(rows, noise.reshape(B * N, A), steps)
        actions = z.clamp(low, high)
        good = z.isfinite().all(1)
        q = z.new_full((B * N,), torch.nan)
        if N > 1 or want_q:
            values = self._score(rows, actions, steps)
            q = values.mean(0) if self._policy.q_agg == "mean" else values.amin(0)
        if N > 1:
            good = good & q.isfinite()

        good, q = good.view(B, N), q.view(B, N)
        ranked = torch.where(good, q, -torch.inf)
        # argmax leaves open which of equal entries it returns: the smallest index is the rule
        tied = ranked == ranked.amax(1, keepdim=True)
        index = torch.where(tied, torch.arange(N, device=z.device), N - 1).amin(1)
        won = torch.arange(B, device=z.device) * N + index
        return Best(
            actions[won],
            index,
            q.gather(1, index[:, None])[:, 0],
            good.any(1),
            (actions[won] != z[won]).any(1),
            ~good.all(1),
        )

    def _denoise(self, rows: Any, z: Any, steps: int) -> Any:
        """Return z_1 [B N, A] before the clip."""
        return self._ops.denoise(self._on(rows.device)[0], rows, z, steps)

    def _score(self, rows: Any, actions: Any, steps: int) -> Any:
        """Return Q [E, B N]."""
        return self._ops.critic_ensemble(self._on(rows.device)[1], rows, actions, steps)

    def _settle(self, obs: Any, best: "Best", last: Any) -> tuple[Any, Info, Any]:
        """Hold `last` where no candidate is left; return the actions, their Info and the next last."""
        torch = self._torch
        seen = obs.isfinite().all(1)
        left = seen & best.some_good
        action = torch.where(left[:, None], best.action, last)
        status = (
            torch.where(seen, 0, Status.NONFINITE_OBS)
            | torch.where(seen & ~left, Status.NONFINITE_RESULT, 0)
            | torch.where(left, 0, Status.HELD)
            | torch.where(left & best.clipped, Status.CLIPPED, 0)
            | torch.where(left & best.some_rejected, Status.CANDIDATE_REJECTED, 0)
        )
        if len(obs):
            numbers = torch.arange(len(obs), device=obs.device)
            highest = torch.where(left, numbers, -1).amax(0, keepdim=True)
            latest = action.index_select(0, highest.clamp(min=0))[0]
            last = torch.where(highest >= 0, latest, last)
        info = Info(
            torch.where(left, best.index, -1),
            torch.where(left, best.q, torch.nan),
            status.to(torch.int32),
        )
        return action, info, last

    def _on(self, device: Any) -> Any:
        """Return the policy's arrays as tensors on `device`, copied there once."""
        if device not in self._weights:
            p = self._policy
            move = lambda a: None if a is None else self._torch.tensor(a, device=device)  # noqa: E731
            self._weights[device] = (
                [tuple(map(move, layer)) for layer in p.actor],
                [tuple(map(move, layer)) for layer in p.critic],
                *map(move, (p.action_low, p.action_high, p.obs_mean, p.obs_std)),
            )
        return self._weights[device]


def _make(policy: Policy, precision: str, threads: int) -> Session:
    return TorchSession(policy)


BACKEND = Backend(
    name="torch", precisions=("fp32",), why_not=lambda precision: why_not("torch"), make=_make
)
