"""Which perturbed observations does the status bit OUT_OF_DISTRIBUTION see? The table of docs/robot.md.

    python docs/studies/ood.py RUN [--data DIR] [--rate 0.01] [--seed 0] [--episodes 0]

RUN is a run folder of `sorl-fast train`, whose data must still be there, or with --data somewhere else. The
test is the policy file's own; where it has none (an earlier version wrote it, or --rate is given) it is
made as `train` makes it. What is perturbed is the second half of the validation data, which had no part in
the threshold. Deviations are those of the training data, a component's own. With
--episodes the policy also plays so many, and the observations that it meets are judged.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sorl_fast.act.policy_file import Policy, load
from sorl_fast.act.sampler import Sampler, Status
from sorl_fast.data.dataset import load_data
from sorl_fast.envs import open_simulator
from sorl_fast.learn.ood import halves, ood_test
from sorl_fast.learn.run_folder import RunFolder

Rows = NDArray[np.float32]


def perturbations(
    mean: Rows, std: Rows, rng: np.random.Generator
) -> dict[str, Callable[[Rows], Rows]]:
    """Return what is done to observations [B, O], by name."""

    def noise(size: float) -> Callable[[Rows], Rows]:
        return lambda x: x + size * std * rng.standard_normal(x.shape)

    def one(change: Callable[[Rows, NDArray[np.intp]], Rows]) -> Callable[[Rows], Rows]:
        def perturbed(x: Rows) -> Rows:
            rows, i = np.arange(len(x)), rng.integers(0, x.shape[1], len(x))
            x = x.copy()
            x[rows, i] = change(x[rows, i], i)
            return x

        return perturbed

    return {
        "nothing": lambda x: x,
        **{f"noise of {size:g} deviations": noise(size) for size in (0.01, 0.03, 0.1, 0.3, 1)},
        "one component moved by 1 deviation": one(lambda v, i: v + std[i]),
        "one component moved by 5 deviations": one(lambda v, i: v + 5 * std[i]),
        "one component moved by 10 deviations": one(lambda v, i: v + 10 * std[i]),
        "one component stuck at 0": one(lambda v, i: 0 * v),
        "one component stuck at its mean": one(lambda v, i: mean[i]),
        "one component's sign turned": one(lambda v, i: -v),
        "each component of one of two observations": lambda x: np.where(
            rng.random(x.shape) < 0.5, x, x[rng.permutation(len(x))]
        ),
        "two components exchanged": lambda x: _exchanged(x, rng),
    }


def _exchanged(x: Rows, rng: np.random.Generator) -> Rows:
    x, rows = x.copy(), np.arange(len(x))
    i = rng.integers(0, x.shape[1], len(x))
    j = (i + rng.integers(1, x.shape[1], len(x))) % x.shape[1]
    x[rows, i], x[rows, j] = x[rows, j], x[rows, i]
    return x


def played(policy: Policy, episodes: int, seed: int) -> list[tuple[bool, float]]:
    """Return of each episode whether it succeeded, and the part of its observations that were marked."""
    simulator, sampler, found = open_simulator(policy.env), Sampler(policy), []
    for episode in range(episodes):
        sampler.reset()
        x, success, ended, marks = simulator.reset(seed, episode), False, False, []
        while not ended:
            action, info = sampler.act(
                x, seed=seed, call=len(marks), row_offset=episode, return_info=True
            )
            marks.append(bool(info.status & Status.OUT_OF_DISTRIBUTION))
            x, _, succeeded, ended = simulator.step(action)
            success |= succeeded
        found.append((success, float(np.mean(marks))))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--data", help="where the run's data are now")
    parser.add_argument("--rate", type=float, help="make another test, of this rate")
    parser.add_argument("--seed", type=int, default=0, help="of the perturbations (0)")
    parser.add_argument("--episodes", type=int, default=0, help="of the policy, to judge (0)")
    args = parser.parse_args()
    _, config, _ = RunFolder(args.run, ()).read_config()
    how = {"action_range": config.action_range, "chunk": config.chunk}
    data = load_data(config.env, args.data or config.data, **how)
    policy = load(args.run / "policy.safetensors")
    test = policy.ood
    if test is None or args.rate is not None:
        test = ood_test(data, 0.01 if args.rate is None else args.rate, config.chunk)
    if test is None or data.val is None:
        raise SystemExit("there are no validation data, or too few of them for this rate")
    seen = data.train.transitions.observations.cpu().numpy()
    clean = data.val.transitions.observations[halves(data.val, config.chunk) :].cpu().numpy()
    print(
        f"{config.env}: {len(clean)} observations, O = {test.dim}, d^2 up to {test.threshold:.1f}\n"
    )
    print("| what is done to an observation | marked |\n|---|---|")
    rng = np.random.default_rng(args.seed)
    for name, perturb in perturbations(seen.mean(0), seen.std(0), rng).items():
        marked = test.beyond(perturb(clean).astype(np.float32)).mean()
        print(f"| {name} | {marked:.1%} |")
    if args.episodes == 0:
        return
    found = played(replace(policy, ood=test), args.episodes, args.seed)
    for name, wanted in (("succeeded", True), ("failed", False)):
        marks = [marked for success, marked in found if success == wanted]
        text = (
            f"{np.mean(marks):.1%} of the observations of a mean one, {max(marks):.1%} at most"
            if marks
            else ""
        )
        print(f"\nepisodes that {name}: {len(marks)}. {text}")


if __name__ == "__main__":
    main()
