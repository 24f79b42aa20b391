"""Does it pay to vary the steps of a policy from action to action? The study of docs/varied.md.

    python docs/studies/varied.py RUN [--episodes 100] [--workers 2] [--seed 0] [--json FILE]

RUN is a run folder of `sorl-fast train` or a policy file. Every way to act plays the same seeded episodes
with the same noise; below the table each way is compared, by a paired exact test, with the best fixed one
that takes as many evaluations of the actor or more. A way is a function of (seed, call, episode,
observations): the coin is the Philox stream of the rules of choosing (`sorl_fast.act.philox.uniforms`), so
that a seed and a call give the same.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sorl_fast.act.philox import uniforms
from sorl_fast.act.policy_file import load, loads
from sorl_fast.act.sampler import Sampler
from sorl_fast.act.schedule import schedule_of
from sorl_fast.envs import open_simulator
from sorl_fast.progress import Shown
from sorl_fast.simulate.evaluate import wilson
from sorl_fast.simulate.paired import sign_test
from sorl_fast.simulate.workers import Pool

SHORT = "1/2,1/4,1/4"
STILL = 0.05  # of the mean way between two observations of the episode so far


class Way(NamedTuple):
    """How to act: by turns, by a coin, or otherwise in a standstill; at each action N by a rule."""

    steps: tuple[str, ...]
    how: str = "fixed"  # or turns, coin, still
    candidates: int = 1
    rule: str = "argmax"
    single: int = 0  # every so many actions one candidate is drawn and no rule asked; 0: never

    @property
    def name(self) -> str:
        """What the table calls it."""
        n = f", N = {self.candidates} {self.rule}" if self.candidates > 1 else ""
        n += f", every {self.single}. action N = 1" if self.single else ""
        how = {
            "fixed": "",
            "turns": " in turn",
            "coin": " by a coin",
            "still": " (the last in a standstill)",
        }
        return " | ".join(self.steps) + how[self.how] + n

    @property
    def fixed(self) -> bool:
        """Whether every action is made alike and the best of its candidates is taken."""
        return self.how == "fixed" and self.rule != "better" and not self.single


FIXED = [
    *(Way((s,)) for s in ("1", "2", SHORT, "4", "5", "8")),
    *(Way((s,), candidates=4, rule="medoid") for s in ("2", SHORT)),
]
VARIED = [
    Way(("2", "4"), "turns"),
    Way(("2", "4"), "coin"),
    Way(("2", SHORT), "turns"),
    Way(("2", SHORT), "coin"),
    Way(("1", "2", "4"), "coin"),
    Way((SHORT, "5"), "turns"),
    Way((SHORT, "4"), "coin"),
    Way(("2", "8"), "coin"),
    Way((SHORT, "2"), "still"),
    Way(("4", "2"), "still"),
    Way((SHORT,), candidates=4, rule="better"),
    Way(("2",), candidates=4, rule="better"),
    *(
        Way((s,), candidates=4, rule=rule, single=n)
        for s in ("2", SHORT)
        for rule in ("medoid", "better")
        for n in (2, 4)
    ),
]


class Result(NamedTuple):
    """What an episode of a way was."""

    success: bool
    length: int
    evaluations: int


class Player:
    """A simulator and the policy that acts in it, in a worker process."""

    def __init__(self, env: str) -> None:
        self._simulator = open_simulator(env, "post")

    def prepare(self, shared: bytes) -> None:
        """Act with the policy of a file's bytes."""
        self._sampler = Sampler(loads(shared))

    def do(self, task: tuple[Way, int, int]) -> Result:
        """Run one episode."""
        way, seed, episode = task
        self._sampler.reset()
        observation = self._simulator.reset(seed, episode)
        before, mean, call, evaluations, success, ended = observation, 0.0, 0, 0, False, False
        while not ended:
            moved = float(np.linalg.norm(observation - before))
            i = 0
            if way.how == "turns":
                i = call % len(way.steps)
            elif way.how == "coin":
                i = int(uniforms(seed, 1, call, episode)[0] * len(way.steps))
            elif way.how == "still" and call > 1:
                i = int(moved < STILL * mean)
            mean += (moved - mean) / (call + 1)
            steps = schedule_of(way.steps[i])
            candidates = 1 if way.single and call % way.single == 0 else way.candidates
            action = self._sampler.act(
                observation,
                steps,
                candidates,
                rule=way.rule,
                seed=seed,
                call=call,
                row_offset=episode,
            )
            evaluations += candidates * steps.count
            before = observation
            observation, _, succeeded, ended = self._simulator.step(action)
            success |= succeeded
            call += 1
        return Result(success, call, evaluations)


def compare(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each varied way: against the best fixed way of as many evaluations or more."""
    said = []
    fixed = [row for row in rows if row["fixed"]]
    for row in rows:
        if row["fixed"]:
            continue
        rivals = [r for r in fixed if r["evaluations"] >= row["evaluations"] - 1e-9]
        if not rivals:
            continue
        best = max(rivals, key=lambda r: r["success"])
        p = sign_test([c == "1" for c in row["outcomes"]], [c == "1" for c in best["outcomes"]])
        said.append(
            f"{row['name']}: {row['success']:.0%} at {row['evaluations']:.2f} evaluations; "
            f"M = {best['name']}: {best['success']:.0%} at {best['evaluations']:.2f}, p = {p:.2g}"
        )
    return said


def main() -> None:
    """Run the study; print a table and the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    policy = load(args.run / "policy.safetensors" if args.run.is_dir() else args.run)
    ways = [w for w in [*FIXED, *VARIED] if all(_fits(policy, s) for s in w.steps)]
    tasks = [(way, args.seed, e) for way in ways for e in range(args.episodes)]
    done: dict[tuple[Way, int, int], Result] = {}
    shown = Shown()
    with Pool(Player, policy.env, workers=args.workers) as pool:
        for finished in pool.run(tasks, policy.file_bytes):
            if finished is not None:
                done[finished[0]] = finished[1]
            shown(len(done), len(tasks))
    rows = []
    print(
        f"\n{policy.env}, policy {policy.digest[:12]}, {args.episodes} episodes a way, seed {args.seed}"
    )
    for way in ways:
        results = [done[way, args.seed, e] for e in range(args.episodes)]
        n = sum(r.success for r in results)
        low, high = wilson(n, len(results))
        evaluations = sum(r.evaluations for r in results) / sum(r.length for r in results)
        rows.append(
            {
                "name": way.name,
                "fixed": way.fixed,
                "evaluations": evaluations,
                "success": n / len(results),
                "outcomes": "".join(str(int(r.success)) for r in results),
            }
        )
        print(
            f"{way.name:52} {evaluations:6.2f} evaluations  {n / len(results):4.0%} [{low:.0%}, {high:.0%}]"
        )
    print(
        "\nAgainst the best fixed way of as many evaluations or more:", *compare(rows), sep="\n  "
    )
    if args.json:
        args.json.write_text(json.dumps({"policy": policy.digest, "env": policy.env, "rows": rows}))


def _fits(policy: Any, steps: str) -> bool:
    return schedule_of(steps).count <= 2 * policy.finest


if __name__ == "__main__":
    main()
