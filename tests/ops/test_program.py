"""What csrc makes again of PyTorch's own calls has the bits that PyTorch gives it."""

import math
from itertools import pairwise

import pytest
import torch

from sorl_fast import ops
from sorl_fast.ops.recorded import Call
from sorl_fast.ops.replay import Replayed, _Listening

pytestmark = pytest.mark.skipif(ops.backend() != "native", reason="no native operations")

nan, inf = math.nan, math.inf
ODD = [0.0, -0.0, 1.0, -1.0, nan, inf, -inf, 1e-40, -1e-45, 3.4e38, -2.5, 0.1]
SHAPES = [(1,), (5,), (256,), (3, 1), (1, 7), (37, 5), (1, 4, 3), ()]


def numbers(shape, seed):
    """Return numbers of a shape, all odd ones among them if there is room."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2
    flat = x.view(-1)
    flat[: len(ODD)] = torch.tensor(ODD).roll(seed)[: len(flat)]
    return x


def recorded(step, *inputs):
    """Return the calls of a step, and what tells whether csrc makes each again."""
    from sorl_fast.ops.program import is_native

    with _Listening() as listening:
        step(*inputs)
    calls = [call for call in listening.calls if not call.is_view]
    return calls, [is_native(call) for call in calls]


def same(x, y):
    return (
        x.dtype == y.dtype and torch.equal(x.isnan(), y.isnan()) and torch.equal(bits(x), bits(y))
    )


def bits(x):
    x = x.nan_to_num(7.0)
    return torch.stack([x, x.signbit().float()])


OPERATIONS = {
    "add": lambda x, y: x + y,
    "add a number": lambda x, y: x + 0.1,
    "sub": lambda x, y: x - y,
    "rsub": lambda x, y: 1 - x,
    "mul": lambda x, y: x * y,
    "mul by a number": lambda x, y: x * 0.99,
    "div": lambda x, y: x / y,
    "div by a number": lambda x, y: y / 3,
    "neg": lambda x, y: -x,
    "abs": lambda x, y: x.abs(),
    "pow 2": lambda x, y: x**2,
    "pow 1": lambda x, y: x**1.0,
    "clone": lambda x, y: x.clone(),
    "clamp": lambda x, y: x.clamp(-1, 1),
    "clamp above": lambda x, y: x.clamp(max=0.5),
    "clamp below": lambda x, y: x.clamp(min=0.0),
    "where": lambda x, y: torch.where(x >= 0, x, y),
    "where one number": lambda x, y: torch.where(x <= 1, torch.tensor(2.0), y),
    "eq": lambda x, y: torch.where(x == 0, y, x),
    "and": lambda x, y: torch.where((x >= -1).logical_and_(x <= 1), y, x),
    "a row to all": lambda x, y: x * y.reshape(-1)[:1],
    "an expanded one": lambda x, y: y.reshape(-1)[0].expand(x.shape) / 7,
    "mean of two": lambda x, y: torch.stack([x, y]).mean(0),
    "sum of two": lambda x, y: torch.stack([x, y]).sum(0),
    "stack of one shape": lambda x, y: torch.stack([x.reshape(-1), y.reshape(-1)]),
    "mean": lambda x, y: x.mean(),
    "sums of rows": lambda x, y: torch.atleast_1d(x).sum(-1),
    "cat": lambda x, y: torch.cat([torch.atleast_1d(x), torch.atleast_1d(y)]),
    "transposed": lambda x, y: x.mT * y.mT if x.ndim > 1 else x * y,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_the_bits_of_pytorch(name):
    step = OPERATIONS[name]
    for shape in SHAPES:
        replayed = Replayed()
        for seed in range(5):
            x, y = numbers(shape, seed), numbers(shape, seed + 7)
            assert same(replayed("key", [x, y], step), step(x, y)), shape
        if shape != (1, 4, 3) or not name.endswith("of two"):  # no array of more dimensions
            _, native = recorded(step, x, y)
            assert all(native), shape


def test_the_less_of_two_is_that_of_pytorch_but_for_the_sign_of_zero():
    step, replayed = (lambda x: x.amin(0)), Replayed()
    for seed in range(5):
        x = torch.stack([numbers((300,), seed), numbers((300,), seed + 7)])
        got, expected = replayed("key", [x], step), step(x)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert recorded(step, x)[1] == [True]


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.double() * 2,
        lambda x: x.bfloat16() * 2,
        lambda x: torch.add(x, x, alpha=2),
        lambda x: x.expand(3, 2, *x.shape).clone() * 2,
        lambda x: x[:0] * 2,
        lambda x: torch.stack([x, x, x]).mean(0),
        lambda x: torch.stack([x, x]).mean(0, keepdim=True),
        lambda x: x * torch.arange(4),
        lambda x: x.exp(),
        lambda x: x**3,
        lambda x: x * True,
        lambda x: torch.cat([x.view(2, 2), x.view(2, 2)], 1),
    ],
)
def test_what_is_not_known_to_have_the_same_bits_is_left_to_pytorch(step):
    x = torch.tensor([1.5, -2.0, 3.0, 0.25])
    calls, native = recorded(step, x)
    assert not native[-1], calls[-1].operation
    replayed = Replayed()
    for scale in (1, 2, 3, 4):
        got, expected = replayed("key", [x * scale], step), step(x * scale)
        assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_what_is_written_in_place_is_seen_by_those_who_hold_it():
    count, kept = torch.zeros((), dtype=torch.int64), torch.zeros(4)

    def step(x):
        count.add_(3)
        kept.copy_(x)
        return kept + count

    replayed, versions = Replayed(), []
    for n in range(1, 6):
        x = torch.full((4,), float(n))
        assert torch.equal(replayed("key", [x], step), torch.full((4,), float(n + 3 * n)))
        assert count == 3 * n and torch.equal(kept, x)
        versions.append((count._version, kept._version))
    assert len(set(versions)) == 5 and all(a < b for a, b in pairwise(versions))


def test_the_order_of_calls_on_one_memory_stays():
    """What has been read may be overwritten, what has been written read, and nothing before."""

    def step(x):
        a = x.exp()  # left to torch
        b = a + 1
        c = b.clone()
        b.copy_(x)  # after it was read
        d = (b * c).exp()
        b.copy_(d)
        return b + a

    x = torch.tensor([0.5, -0.25])
    _, native = recorded(step, x)
    assert True in native and False in native
    replayed = Replayed()
    for scale in (1.0, 0.5, 2.0, 3.0):
        assert torch.equal(replayed("key", [x * scale], step), step(x * scale))


def test_calls_come_in_as_few_phases_as_can_be():
    from sorl_fast.ops.program import is_native
    from sorl_fast.ops.recorded import in_phases

    def step(x, y):
        for _ in range(3):
            x, y = x + 1, y.exp()  # neither needs the other
        return x * y

    calls: list[Call] = recorded(step, torch.ones(2), torch.ones(2))[0]
    phases = in_phases(calls, is_native)
    assert [(native, len(phase)) for native, phase in phases] == [(False, 3), (True, 4)]


def test_a_program_refuses_what_it_does_not_know():
    from sorl_fast import _native

    x = torch.zeros(2)
    operand = (x.data_ptr(), 0, 1, 0.0)
    with pytest.raises(ValueError, match="no elementwise operation tan"):
        _native.TrainProgram().elementwise("tan", 1, 2, operand, [operand])
    with pytest.raises(ValueError, match="add takes 2 operands, not 1"):
        _native.TrainProgram().elementwise("add", 1, 2, operand, [operand])


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 15, 16, 17, 63, 100, 256, 1280, 4097, 20000, 32767])
def test_numbers_are_added_in_the_order_of_pytorch(n):
    random = torch.Generator().manual_seed(n)
    for name, step in {"mean": lambda x: x.mean(), "rows": lambda x: x.view(1, -1).sum(-1)}.items():
        replayed = Replayed()
        for _ in range(6):
            x = torch.randn(n, generator=random).exp()
            assert same(replayed("key", [x], step), step(x)), name
        assert recorded(step, x)[1] == [True], name


def test_more_numbers_than_one_thread_adds_are_left_to_pytorch():
    assert recorded(lambda x: x.mean(), torch.ones(1 << 15))[1] == [False]
    assert recorded(lambda x: x.sum(-1), torch.ones(256, 128))[1] == [False]


def test_another_order_of_adding_is_noticed(monkeypatch):
    """Were it PyTorch's that is another one, then what adds would be left to it."""
    from sorl_fast.ops import program

    program._lanes.cache_clear()
    monkeypatch.setattr(
        torch.Tensor, "mean", lambda x: x.flip(-1).cumsum(-1)[..., -1].sum() / x.numel()
    )
    assert recorded(lambda x: torch.mean(x), torch.randn(300))[1] == [False]
    program._lanes.cache_clear()


def test_a_result_with_gaps_is_never_replayed():
    replayed = Replayed()
    for n in range(5):
        x = torch.arange(6.0).view(2, 3) + n
        assert torch.equal(replayed("key", [x], lambda x: (x * 2)[:, 1]), x[:, 1] * 2)
    assert not replayed._able
