"""What a film is asked to be."""

from dataclasses import dataclass
from typing import Literal

from ..config import check, option

KINDS = (".gif", ".mp4")
MOST = 16  # episodes in a picture


@dataclass(frozen=True, kw_only=True)
class FilmConfig:
    """One film: which episodes, how the policy acts in them, and how large it becomes."""

    # fmt: off
    episodes: int = option(4, help="episodes to show, successes and failures in turn where there are both")
    among: int = option(25, help="the first so many of the seed's episodes, of which they are chosen; "
                        "those that the run's evaluation has are not run again")
    seed: int = option(0, help="start of episode e and all its noise follow from (seed, e), as in eval")
    steps: str | None = option(None, help="M, or sizes such as 1/2,1/4,1/4; left out: the policy's own")
    candidates: int | None = option(None, help="candidates N; left out: the policy's own")
    rule: str | None = option(None, help="how one is chosen, such as argmax or medoid:1/2; left out: the "
                              "policy's own")
    fps: int = option(10, help="pictures a second")
    every: int | None = option(None, help="steps from picture to picture; left out: such that the longest "
                               "episode has about 50")
    width: int = option(240, help="of an episode's picture, in pixels")
    workers: int = option(2, help="processes that simulate what the evaluation has not")
    backend: str | None = option(None, help="sampler backend, as in eval")
    precision: str = option("fp32", help="sampler precision, as in eval")
    success_timing: Literal["post", "pre"] = option("post", help="when success is judged, as in eval")
    # fmt: on

    def __post_init__(self) -> None:
        bounds = {
            "episodes": (1, MOST),
            "among": (1, 100_000),
            "seed": (0, 2**32 - 1),
            "candidates": (1, 4096),
            "fps": (1, 50),
            "every": (1, 100_000),
            "width": (96, 1024),
            "workers": (1, 1024),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            ok = type(value) is int and low <= value <= high
            left_out = value is None and name in ("candidates", "every")
            check(ok or left_out, name, value, f"an integer from {low} to {high}")
        most = f"at most among, which is {self.among}"
        check(self.episodes <= self.among, "episodes", self.episodes, most, "Set --among higher.")
        timing = self.success_timing
        check(timing in ("post", "pre"), "success_timing", timing, "post or pre")
