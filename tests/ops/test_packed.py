"""What the kernels read of a network: packed once for each of its versions, and by whom it may be used."""

import contextlib
import functools

import torch
from networks import agree, flat, normal
from networks import layers as make_layers
from tolerances import FLOAT32

from sorl_fast.ops import Parameters, graphs, packed, triton

layers = functools.partial(make_layers, last=0.2)


def counted(monkeypatch):
    packs = []
    pack = packed.pack
    monkeypatch.setattr(packed, "pack", lambda *a: packs.append(a) or pack(*a))
    return packs


def test_weights_are_packed_once_for_each_of_their_versions(monkeypatch):
    packs = counted(monkeypatch)
    net, x, z = Parameters(layers()), normal(3, 5), normal(3, 3, scale=0.1)
    frozen = net.detach()
    first = triton.rollout(net, x, z, 1, "fp32")
    torch.autograd.grad(first.sum(), flat(net))
    assert torch.equal(triton.rollout(frozen, x, z, 1, "fp32"), first)
    triton.velocity(net, x, z, z[:, 0], z[:, 0], "fp32")
    assert len(packs) == 1
    triton.rollout(net, x, z, 1, "fp16")
    assert len(packs) == 2
    with torch.no_grad():
        net[-1][1].add_(0.25)
    changed = triton.rollout(net, x, z, 1, "fp32")
    assert len(packs) == 3
    agree([changed], [first.double() + 0.25], FLOAT32)


def test_weights_are_packed_again_after_a_replay_which_changes_no_version(monkeypatch):
    net, x, z = Parameters(layers()), normal(3, 5), normal(3, 3, scale=0.1)
    first = triton.rollout(net, x, z, 1, "fp32").detach()
    net[-1][1].data.add_(0.25)  # as a graph writes: behind torch's back
    monkeypatch.setattr(graphs, "_replays", graphs.replays() + 1)
    agree([triton.rollout(net, x, z, 1, "fp32")], [first.double() + 0.25], FLOAT32)


def test_few_packed_copies_of_a_network_are_kept(monkeypatch):
    net, x, z = Parameters(layers()), normal(3, 5), normal(3, 3)
    for stream in range(packed._KEPT + 3):
        monkeypatch.setattr(packed, "_place", lambda _, stream=stream: ("cuda", stream, None))
        triton.rollout(net, x, z, 1, "fp32")
    assert [key[3][1] for key in net.packings.copies] == list(range(3, packed._KEPT + 3))


class FakeCuda:
    """Stands in for torch.cuda where copies are told apart."""

    def __init__(self):
        self.capturing, self.stream = False, 1

    def device(self, _):
        return contextlib.nullcontext()

    def is_current_stream_capturing(self):
        return self.capturing

    def current_stream(self):
        return type("Stream", (), {"cuda_stream": self.stream})


def test_a_recording_packs_for_itself_alone(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(packed.torch, "cuda", cuda)
    device = torch.device("cuda", 0)
    places = []

    def place():
        param = type("P", (), {"device": device})
        with monkeypatch.context() as patch:
            patch.setattr(packed, "Parameter", param)
            places.append(packed._place([param()]))
        return places[-1]

    outside = place()
    assert place() == outside
    cuda.stream = 2
    assert place() != outside  # the copy may not be finished on another stream
    cuda.stream, cuda.capturing = 1, True
    assert place() is None  # a recording that is not ours
    monkeypatch.setattr(graphs, "_recording", 1)
    inside = place()
    assert inside is not None
    assert inside != outside
    assert place() == inside
    monkeypatch.setattr(graphs, "_recording", 2)
    assert place() not in (outside, inside)


def test_copies_of_a_recording_that_is_over_go(monkeypatch):
    own, of_recording = (("triton", "p", None, ("cuda", 1, recording)) for recording in (None, 4))
    other = ("native", "p", "isa", None)
    copies = dict.fromkeys((own, of_recording, other))
    monkeypatch.setattr(graphs, "_recording", 4)
    packed._make_room(copies)
    assert set(copies) == {own, of_recording, other}
    monkeypatch.setattr(graphs, "_recording", -4)
    packed._make_room(copies)
    assert set(copies) == {own, other}
