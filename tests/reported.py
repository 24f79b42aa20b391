"""Evaluations as run folders hold them, made up."""

from sorl_fast.simulate.evaluate import wilson

CUBE = "cube-single-play-singletask-task2-v0"


def row(M: int, N: int, successes: int, episodes: int = 50, rate: float | None = None) -> dict:
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
        "actions_per_second": rate or 9000 / (M * (1 + 0.25 * N)),
        "returns": -200.0 + 100 * successes / episodes,
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
