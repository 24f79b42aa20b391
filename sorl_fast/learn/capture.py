"""Updates that stay on the device: drawn from a key there, recorded once, replayed with one launch."""

import sys
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.dataset import TransitionData
from ..ops.graphs import Recorder
from .learner import Learner
from .noise import KeyedNoise


class CapturedUpdates:
    """Makes updates, one CUDA graph for each choice of operations that the method makes.

    The first update of a choice runs as it is written and so warms everything up; it is then recorded,
    and later updates of that choice are replays. Minibatch and noise are functions of (seed, number of the
    update) alone, the number read on the device. Nothing here waits for the device but `look`.

    Parameters
    ----------
    learner
        What is trained; it counts its steps on the device from now on.
    data
        The training data, on the learner's device.
    seed
        In [0, 2^63). Samplers' seeds are below 2^63 as well unless somebody asks for more: the noise
        here is that of seed + 2^63.
    host
        Draws the choices.
    window
        At most so many updates are made between two looks.
    recorder
        `CudaRecorder(device)`, or a stand-in.
    """

    def __init__(
        self,
        learner: Learner,
        data: TransitionData,
        seed: int,
        host: torch.Generator,
        window: int,
        recorder: Recorder,
    ):
        device = data.transitions.rewards.device
        learner.count_on_device()
        self._learner = learner
        self._data = data
        self._host = host
        self._key = torch.tensor([seed - 2**63, 0, 0], device=device)
        self._number = self._key[1]  # of the update going on, from 1
        method = learner.method
        plan, B = method.plan(data.act_dim), method.config.batch_size
        self._noise = KeyedNoise(plan, B, data.act_dim, len(data), self._key)
        self._metrics = torch.zeros(window, len(method.metrics), device=device)
        self._state = list(learner.state().values())
        self._recorder: Recorder | None = recorder
        self._replays: dict[Hashable, Callable[[], None]] = {}
        self._made = 0
        self.pending = 0  # updates since the last look

    def make(self) -> None:
        """Make one update."""
        choice = self._learner.method.choose(self._host, self._made + 1)
        if choice in self._replays:
            self._replays[choice]()
            # written behind torch's back: whoever holds an older version must notice
            torch.autograd.graph.increment_version(self._state)
        elif self._recorder is not None:
            self._first(choice, self._recorder)
        else:
            self._update(choice)
        self._made += 1
        self.pending += 1

    def _first(self, choice: Hashable, recorder: Recorder) -> None:
        update = partial(self._update, choice)
        recorder.run(update)
        try:
            self._replays[choice] = recorder.record(update)
        except Exception as err:  # any of a driver's or library's: the update itself has been made
            self._recorder = None
            first: BaseException = err  # what ends a recording that failed fails as well
            while first.__context__ is not None:
                first = first.__context__
            reason = (str(first).splitlines() or [type(first).__name__])[0]
            tqdm.write(
                f"an update cannot be recorded as a CUDA graph: {reason}. Training goes on without, "
                "with the same results but more slowly",
                file=sys.stderr,
            )

    def _update(self, choice: Hashable) -> None:
        """Do all of one update; its results are where they were: it can be recorded."""
        self._number.add_(1)
        index, noise = self._noise.draw()
        metrics = self._learner.update(self._data.take(index), noise, choice)
        row = (self._number - 1).remainder_(len(self._metrics)).view(1)
        self._metrics.index_copy_(0, row, metrics.unsqueeze(0))

    def look(self) -> np.ndarray:
        """Wait for the device; return the metrics of every update since the last look, [n, metrics]."""
        numbers = np.arange(self._made - self.pending, self._made)
        self.pending = 0
        return self._metrics.cpu().numpy()[numbers % len(self._metrics)]

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside the learner and the host's generator: nothing."""
        return {}

    def restore(self, tensors: dict[str, Tensor], made: int) -> None:
        """Go on after `made` updates."""
        self._number.fill_(made)
        self._made = made
