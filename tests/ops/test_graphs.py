"""Recording: what is run and what is only recorded, and the streams around it, with a CUDA made up."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from sorl_fast.ops import graphs
from sorl_fast.ops.graphs import Captured, CudaRecorder


class Recorder:
    """Replays by running again."""

    def __init__(self):
        self.log = []

    def run(self, function):
        self.log.append("run")
        return function()

    def record(self, function):
        self.log.append("record")

        def replay():
            self.log.append("replay")
            return function()

        return replay


def test_captured_runs_once_and_then_replays_on_its_own_copies_of_the_inputs():
    seen = []

    def double(x, y):
        seen.append((x, y))
        return x * 2 + y

    recorder = Recorder()
    x, y = torch.ones(3, requires_grad=True), torch.zeros(3)
    captured = Captured(double, [x, y], recorder)
    assert recorder.log == ["run", "record"]
    assert captured.first.tolist() == [2.0] * 3
    assert captured(torch.full((3,), 5.0), torch.ones(3)).tolist() == [11.0] * 3
    assert recorder.log == ["run", "record", "replay"]
    assert all(a is b for a, b in zip(seen[0], seen[1], strict=True))  # the same memory
    assert seen[0][0] is not x
    assert not seen[0][0].requires_grad
    with pytest.raises(ValueError, match="argument"):
        captured(x)


class FakeCuda:
    """As much of torch.cuda as recording touches; writes down what happens."""

    def __init__(self, fails=False):
        self.log, self.fails, self.current = [], fails, "main"
        self.capturing = False

    def stream_object(self, name):
        return SimpleNamespace(
            name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}")
        )

    def Stream(self):  # noqa: N802
        return self.stream_object("side")

    def current_stream(self, device=None):
        return self.stream_object(self.current)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    def device(self, device):
        self.log.append(f"device {device}")
        return contextlib.nullcontext()

    def graph_pool_handle(self):
        return "pool"

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.log.append(f"record on {stream.name} from {pool}, {capture_error_mode}")
        self.current, self.capturing = stream.name, True
        yield
        self.capturing = False
        if self.fails:  # as torch: the stream is not put back
            raise RuntimeError("operation not permitted when stream is capturing")
        self.current = "main"


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(graphs.torch, "cuda", fake)
    return fake


def test_a_run_is_ordered_after_and_before_what_the_stream_does(cuda):
    recorder = CudaRecorder("cuda:1")
    assert recorder.run(lambda: cuda.log.append(f"work on {cuda.current}") or 7) == 7
    assert cuda.log == [
        *("device cuda:1", "side waits for main", "work on side", "main waits for side"),
    ]


def test_recordings_share_a_pool_and_are_numbered(cuda):
    recorder = CudaRecorder("cuda")
    numbers = []

    def work():
        numbers.append(graphs.recording())
        return cuda.capturing

    assert recorder.run(work) is False
    replays = [recorder.record(work) for _ in range(2)]
    assert graphs.recording() is None
    assert numbers[0] is None
    assert numbers[1] is not None
    assert numbers[2] > numbers[1]
    assert cuda.log.count("record on side from pool, thread_local") == 2
    before = graphs.replays()
    assert [replay() for replay in replays] == [True, True]  # what was recorded, not run again
    assert graphs.replays() == before + 2
    assert cuda.log[-2:] == ["replay", "replay"]
    assert len(numbers) == 3


def test_a_recording_that_fails_leaves_things_as_they_were(cuda):
    recorder = CudaRecorder("cuda")
    recorder.run(lambda: None)
    cuda.fails = True
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(lambda: None)
    assert cuda.current == "main"
    assert graphs.recording() is None
