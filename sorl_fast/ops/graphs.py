"""CUDA graphs: work recorded once and replayed with one launch.

A recorder takes a function and returns the one that replays it. `CudaRecorder` is the real one; a
test may give any other, such as `lambda function, warm_up: function`, which runs it afresh each time.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Recorder(Protocol):
    """Turns a function of fixed tensors into one that does the same work again."""

    def __call__(self, function: Callable[[], T], warm_up: Callable[[], Any]) -> Callable[[], T]:
        """Run `warm_up` once; return what replays `function` and returns its result.

        The result is the same tensors at every replay. Recording itself does not count as a run.
        """


_recording = 0  # recordings begun, negative between them


def recording() -> int | None:
    """Return the number of the recording that is going on, or None."""
    return _recording if _recording > 0 else None


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

    def __call__(self, function: Callable[[], T], warm_up: Callable[[], Any]) -> Callable[[], T]:
        """See `Recorder`. The warm-up, on a side stream, is when libraries choose their kernels."""
        global _recording
        cuda: Any = torch.cuda
        with cuda.device(self._device):
            if self._stream is None:
                self._stream, self._pool = cuda.Stream(), cuda.graph_pool_handle()
            self._stream.wait_stream(cuda.current_stream())
            with cuda.stream(self._stream):
                warm_up()
            graph = cuda.CUDAGraph()
            _recording = abs(_recording) + 1
            try:
                # thread_local: other threads may go on allocating
                with cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    result = function()
            finally:
                _recording = -_recording
                cuda.current_stream().wait_stream(self._stream)

        def replay() -> T:
            graph.replay()
            return result

        return replay


class Captured(Generic[T]):
    """A function of tensors, recorded once for the shapes of `examples` and replayed at each call.

    Parameters
    ----------
    function
        Takes as many tensors as there are `examples`, and may read and write any others that stay
        where they are. Nothing in it may wait for the device.
    examples
        The first call's arguments; values are copied, so that a warm-up has something to work on.
    record
        A recorder such as `CudaRecorder(device)`.
    warm_up
        Run once, without arguments, instead of `function` before that is recorded; where running it
        would change what must not be changed, or where the first run is to count.
    """

    def __init__(
        self,
        function: Callable[..., T],
        examples: Sequence[Tensor] = (),
        *,
        record: Recorder,
        warm_up: Callable[[], Any] | None = None,
    ) -> None:
        self._inputs = [x.detach().clone() for x in examples]

        def fixed() -> T:
            return function(*self._inputs)

        self._replay = record(fixed, warm_up or fixed)

    def __call__(self, *inputs: Tensor) -> T:
        """Copy the inputs in and replay; the result lies in the graph's memory till the next call."""
        for own, x in zip(self._inputs, inputs, strict=True):
            own.copy_(x)
        return self._replay()
