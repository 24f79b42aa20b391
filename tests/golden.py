"""Check this implementation against golden figures: `python tests/golden.py FILE.npz ...`.

`--precision bf16` checks the native bf16 path, with its own tolerance; SORL_OPS=native or torch
chooses the backend of fp32.

The file holds inputs, noise, losses, gradients and actions that the authors' code computed. Every
quantity is judged by max|x - ref| / max|ref| (a Q loss by |x - ref| / max(1, |ref|), since a mean Q
may cancel). Prints the worst error of each quantity; exits 1 if one is above the tolerance. Works for
any method, O, A, width, depth, ensemble and options that the file's keys say.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import torch
from golden_methods import CHECKS, Arrays

from sorl_fast import ops
from sorl_fast.batch import Batch
from sorl_fast.layout import LETTERS
from sorl_fast.learn.algorithms import sorl
from sorl_fast.learn.networks import CriticEnsemble, ShortcutActor

TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
DISCOUNT = 0.99
M_DISC = 8


class Golden:
    """The arrays of one file, as tensors and networks."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {k: torch.from_numpy(file[k]).to(dtype) for k in file.files}
        q_agg = "min" if float(self.arrays.get("meta/q_agg_min", torch.zeros(()))) else "mean"
        weights = [k for k in self.arrays if re.fullmatch(r"actor/\d+/w", k)]
        first = self.arrays["actor/0/w"]
        self.config = sorl.SorlConfig(
            q_coef=1.0,
            q_agg=q_agg,
            gamma=DISCOUNT,
            m_disc=M_DISC,
            m_btt=M_DISC,
            hidden=first.shape[1],
            depth=len(weights) - 1,
            ensemble=self.arrays["critic/0/w"].shape[0],
        )
        self.actor = ShortcutActor(self._layers("actor"))
        self.target_actor = ShortcutActor(self._layers("target_actor"))
        self.critic = CriticEnsemble(self._layers("critic"))
        self.target_critic = CriticEnsemble(self._layers("target_critic"))
        self.batch = Batch(*(self.arrays[f"batch/{name}"] for name in Batch._fields[:5]))

    def _layers(self, network: str) -> list[dict[str, torch.Tensor]]:
        layers = []
        while f"{network}/{len(layers)}/w" in self.arrays:
            prefix = f"{network}/{len(layers)}/"
            names = [n for n in LETTERS if prefix + n in self.arrays]
            layers.append({n: self.arrays[prefix + n].clone() for n in names})
        return layers

    def step_counts(self, kind: str) -> list[int]:
        """Return the k of the file's `q{k}` or `td{k}` blocks."""
        pattern = re.compile(rf"{kind}(\d+)/loss")
        return sorted(int(m[1]) for k in self.arrays if (m := pattern.fullmatch(k)))


def relative(x: torch.Tensor, ref: torch.Tensor, floor: float = 0.0) -> float:
    """Return max|x - ref| / max(floor, max|ref|)."""
    if x.shape != ref.shape:
        raise ValueError(f"shape {tuple(x.shape)} instead of {tuple(ref.shape)}")
    scale = max(floor, float(ref.abs().max()))
    error = float((x - ref).detach().abs().max().nan_to_num(torch.inf))
    return error if scale == 0 else error / scale


def regression(g: Golden, term: sorl.Regression) -> torch.Tensor:
    """Return the loss of one regression of the actor."""
    return sorl.regression_losses(g.actor, g.batch.observations, [term])[0]


def check(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Return the worst error of each quantity in the file; `meta/method` says whose they are."""
    method, numbers = read(path)
    if method not in ("sorl", *CHECKS):
        raise SystemExit(
            f"{path}: meta/method is {method!r}, but must be sorl, {', '.join(CHECKS)}"
        )
    return check_sorl(path, dtype) if method == "sorl" else check_method(method, numbers)


def read(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Return whose file it is, and its numbers."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    method = str(arrays.pop("meta/method", "sorl"))
    return method, {k: torch.from_numpy(x).float() for k, x in arrays.items()}


def check_method(method: str, numbers: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the worst error of each quantity of a method that is not SORL."""
    arrays, errors = Arrays(numbers), {}

    def note(name: str, x: torch.Tensor, ref: torch.Tensor, floor: float = 0.0) -> None:
        errors[name] = max(errors.get(name, 0.0), relative(x, ref, floor))

    CHECKS[method](arrays, note)
    if arrays.unread:
        raise SystemExit(f"nothing here reads {sorted(arrays.unread)[0]!r} of a file of {method}")
    return errors


def check_sorl(path: Path, dtype: torch.dtype) -> dict[str, float]:
    """Return the worst error of each quantity in a file of SORL."""
    g = Golden(path, dtype)
    a, config, batch = g.arrays, g.config, g.batch
    errors: dict[str, float] = {}

    def note(name: str, error: float) -> None:
        errors[name] = max(errors.get(name, 0.0), error)

    def gradients(name: str, loss: torch.Tensor, network, prefix: str) -> None:
        tensors = network.tensors()
        for key, grad in zip(
            tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True
        ):
            note(name, relative(grad, a[f"{prefix}/{key}"]))

    fm = regression(g, sorl.flow_matching(batch, a["fm/t"], a["fm/noise"], config))
    note("flow matching loss", relative(fm, a["fm/loss"]))
    gradients("flow matching gradient", fm, g.actor, "fm/grad_actor")

    inputs = a["sc/log2_steps"], a["sc/t"], a["sc/noise"]
    sc = regression(g, sorl.self_consistency(g.target_actor, batch, *inputs, config))
    note("self-consistency loss", relative(sc, a["sc/loss"]))
    gradients("self-consistency gradient", sc, g.actor, "sc/grad_actor")

    for k in g.step_counts("q"):
        noise = a[f"q{k}/noise"]
        note(
            "Q actions", relative(g.actor.sample(batch.observations, noise, k), a[f"q{k}/actions"])
        )
        q, values = sorl.q_loss(g.actor, g.critic, batch, k, noise)
        note("Q values", relative(values, a[f"q{k}/q"]))
        note("Q loss", relative(q, a[f"q{k}/loss"], floor=1.0))
        gradients("Q gradient", q, g.actor, f"q{k}/grad_actor")

    for k in g.step_counts("td"):
        y = sorl.td_target(g.actor, g.target_critic, batch, k, a[f"td{k}/noise"], config)
        td = sorl.td_loss(g.critic, batch, k, y)
        note("TD loss", relative(td, a[f"td{k}/loss"]))
        gradients("TD gradient", td, g.critic, f"td{k}/grad_critic")

    for key in a:
        if m := re.fullmatch(r"sample/k(\d+)_n(\d+)/action", key):
            prefix = key.removesuffix("/action")
            with torch.no_grad():
                action, *_ = ops.best_of_n(
                    g.actor.layers(),
                    g.critic.layers(),
                    a[f"{prefix}/obs"].unsqueeze(0),
                    a[f"{prefix}/noise"].unsqueeze(0),
                    int(m[1]),
                    config.q_agg,
                )
            note("best-of-N actions", relative(action[0], a[key]))
    return errors


def main(argv: list[str]) -> int:
    """Check every file named; return 1 if any quantity is beyond the tolerance."""
    parser = argparse.ArgumentParser(prog="python tests/golden.py", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE.npz")
    parser.add_argument("--precision", choices=TOLERANCE, default="fp32")
    args = parser.parse_args(argv)
    if not args.files:
        parser.print_usage(sys.stderr)
        return 2
    tolerance = TOLERANCE[args.precision]
    ops.configure(precision=args.precision)
    try:
        print(f"{ops.backend()} backend, {args.precision}")
        worst = 0.0
        for name in args.files:
            print(name)
            for quantity, error in check(Path(name)).items():
                far = "" if error <= tolerance else "   TOO FAR"
                print(f"  {quantity:26s} {error:.2e}{far}")
                worst = max(worst, error)
    finally:
        ops.configure()
    ok = worst <= tolerance
    print(f"worst {worst:.2e}, tolerance {tolerance:.0e}: {'ok' if ok else 'FAILED'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
