"""Run folders and evaluations, made up, and a reader of their report."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from sorl_fast.config import TrainConfig
from sorl_fast.learn.algorithms.sorl import SorlConfig
from sorl_fast.report.runs import Run, Setting, cells_of
from sorl_fast.simulate.evaluate import wilson

CUBE = "cube-single-play-singletask-task2-v0"


def row(
    M: int | str,
    N: int,
    successes: int,
    episodes: int = 50,
    rate: float | None = None,
    rule: str | None = None,
) -> dict:
    """Return a row of an evaluation: M or a schedule's name, N and, if it is named, a rule."""
    count = M if isinstance(M, int) else len(M.split(","))
    low, high = wilson(successes, episodes)
    return {
        "steps": M,
        "candidates": N,
        "episodes": episodes,
        "successes": successes,
        "success": successes / episodes,
        "ci_low": low,
        "ci_high": high,
        "episode_length": 200 - 120 * successes / episodes,
        "actions_per_second": rate or 9000 / (count * (1 + 0.25 * N)),
        "returns": -200.0 + 100 * successes / episodes,
        **({} if rule is None else {"rule": rule}),
    }


def evaluation(rows: list[dict], **extra) -> dict:
    return {
        "env": CUBE,
        "success_timing": "post",
        "versions": {"sorl_fast": "0.1.0", "ogbench": "1.2.1", "mujoco": "3.3.0"},
        "seed": 0,
        "backend": "numpy",
        "rows": rows,
    } | extra


def skill(M: int, N: int, progress: float) -> float:
    """A plausible success: more with training, with steps and, less, with candidates."""
    return 0.9 * progress * (1 - 0.75 / M) * (1 - 0.35 / N) + 0.02


def make_run(
    folder: Path,
    seed: int = 0,
    steps: int = 60_000,
    env: str = CUBE,
    grid: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 2, 4, 8), (1, 4, 8)),
    episodes: int = 50,
    log: bool = True,
    periodic: bool = True,
    final: bool = True,
    level: float = 1.0,
    precision: str = "fp32",
    **agent,
) -> Path:
    """Write a run folder with made-up but plausible figures."""
    rng = np.random.default_rng([seed, int(10 * level)])
    folder.mkdir(parents=True)
    config = {
        "sorl_fast": "0.1.0",
        "agent": SorlConfig(**({"q_coef": 10.0, "hidden": 256, "depth": 3} | agent)).to_dict(),
        "train": TrainConfig(
            env=env, data="data", out=str(folder), steps=steps, seed=seed, precision=precision
        ).to_dict(),
        "versions": {"python": "3.11.2", "torch": "2.9.0", "numpy": "2.2.0", "ogbench": "1.2.1"},
        "commands": [
            f"sorl-fast train --env {env} --data data --steps {steps} --seed {seed} --out run",
            f"sorl-fast train --env {env} --out run --resume",
        ],
        "command": f"sorl-fast train --env {env} --out run --resume",
        "data": {"path": "data", "sha256": "ab" * 32, "transitions": 250_000, "episodes": 250},
    }
    (folder / "config.json").write_text(json.dumps(config))

    def write_lines(name: str, lines: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    lines = []
    for step in range(500, steps + 1, 500):
        fade = 0.12 * (2 - level) + math.exp(-step / 6000)
        noise = rng.normal(1, 0.05, 4)
        lines.append(
            {
                "step": step,
                "seconds": step * 0.038,
                "updates_per_second": 26.3 * noise[0],
                "critic_loss": 0.9 * (0.25 + step / steps) * noise[1],
                "actor_loss": 3 * fade,
                "fm_loss": fade * noise[2],
                "sc_loss": 0.2 * fade * noise[3],
                "q_loss": -0.97 * noise[0] if step > 3000 else 0.5 * noise[1],
                "q_mean": -60 * step / steps,
            }
        )
        if step % 5000 == 0:
            losses = {"fm_loss": 1.25 * fade, "sc_loss": 0.22 * fade, "critic_loss": 0.8}
            lines.append({"step": step} | {f"val_{k}": v for k, v in losses.items()})
    if log:
        write_lines("log.jsonl", lines)

    def rows_at(progress: float, all_steps: tuple[int, ...], all_candidates: tuple[int, ...]):
        return [
            row(M, N, int(rng.binomial(episodes, level * skill(M, N, progress))), episodes)
            for M in all_steps
            for N in all_candidates
        ]

    if periodic:
        evals = [
            {"step": step} | evaluation(rows_at(step / steps, grid[0], (1,)), env=env)
            for step in range(steps // 6, steps + 1, steps // 6)
        ]
        write_lines("eval.jsonl", evals)
    if final:
        result = evaluation(
            rows_at(1.0, *grid), env=env, command="sorl-fast eval run --episodes 50"
        )
        (folder / "evaluation.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """What a browser would fetch, and the text that it would show."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == [], "unclosed elements"

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


UNEVEN = "1/2,1/4,1/4"
RULED = [  # of two rules beside argmax, and of unequal steps; in no order
    *(row(4, 8, 30, rule="soft:1"), row(4, 8, 40, rule="medoid:1/2"), row(4, 8, 35)),
    *(row(4, 1, 10), row(1, 1, 5), row(1, 8, 8, rule="medoid:1/2"), row(2, 8, 9, rule="argmax")),
    *(row(UNEVEN, 1, 20), row(UNEVEN, 8, 45, rule="medoid:1/2")),
]


def ruled_settings() -> list[Setting]:
    """Return a setting of the cells of RULED."""
    runs = (Run(Path("run"), {"train": {"env": CUBE}}, [], [], None, True),)
    return [Setting(CUBE, runs, cells_of([evaluation(RULED)]))]
