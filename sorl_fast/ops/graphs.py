"""CUDA graphs: work recorded once and replayed with one launch.

`CudaRecorder` is the real recorder; whoever uses one takes any, so that the logic around it can be
tested without a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Recorder(Protocol):
    """Turns a function without arguments, of tensors that stay where they are, into a recording."""

    def run(self, function: Callable[[], T]) -> T:
        """Run the function once, where recordings are made: libraries choose their kernels then."""

    def record(self, function: Callable[[], T]) -> Callable[[], T]:
        """Record the function, which counts as no run, and return what replays it.

        A replay returns the recorded result: the same tensors every time, with new numbers in them.
        """


_recording = 0  # recordings begun; negative while none is going on


def recording() -> int | None:
    """Return the number of the recording that is going on in this process, or None."""
    return _recording if _recording > 0 else None


_replays = 0


def replays() -> int:
    """Return how many replays there were in this process: each may have written to any tensor.

    A tensor's own count of its versions knows nothing of them.
    """
    return _replays


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, so that only one may be replayed at a time.

    What a replay returned is overwritten by the next replay of any graph of this recorder.

    Parameters
    ----------
    device
        A CUDA device.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream: Any = None
        self._pool: Any = None

    def run(self, function: Callable[[], T]) -> T:
        """Run the function on the side stream, between what the current stream does before and after."""
        cuda: Any = torch.cuda
        with cuda.device(self._device):
            if self._stream is None:
                self._stream, self._pool = cuda.Stream(), cuda.graph_pool_handle()
            self._stream.wait_stream(cuda.current_stream())
            with cuda.stream(self._stream):
                result = function()
            cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], T]) -> Callable[[], T]:
        """See `Recorder`. The function has been run before; it waits for nothing on the device."""
        global _recording
        cuda: Any = torch.cuda
        # the stream is put back by hand: torch does not where a recording fails
        with cuda.device(self._device), cuda.stream(cuda.current_stream(self._device)):
            graph = cuda.CUDAGraph()
            _recording = abs(_recording) + 1
            try:
                # thread_local: other threads may go on allocating
                with cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    result = function()
            finally:
                _recording = -_recording

        def replay() -> T:
            global _replays
            _replays += 1
            graph.replay()
            return result

        return replay


class Captured(Generic[T]):
    """A function of tensors, run once when this is made and replayed from a recording afterwards.

    Parameters
    ----------
    function
        Takes as many tensors as there are `examples`, and may read and write others that stay where
        they are. Nothing in it may wait for the device.
    examples
        The arguments of the first run; those of the calls have their shapes.
    recorder
        `CudaRecorder(device)`, or a stand-in.

    Attributes
    ----------
    first
        What the first run returned.
    """

    def __init__(
        self, function: Callable[..., T], examples: Sequence[Tensor], recorder: Recorder
    ) -> None:
        self._inputs = [x.detach().clone() for x in examples]

        def fixed() -> T:
            return function(*self._inputs)

        self.first = recorder.run(fixed)
        self._replay = recorder.record(fixed)

    def __call__(self, *inputs: Tensor) -> T:
        """Copy the inputs in and replay; the result is overwritten by the recorder's next replay."""
        for own, x in zip(self._inputs, inputs, strict=True):
            own.copy_(x)
        return self._replay()
