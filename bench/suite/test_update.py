"""One training update at the paper's batch, minibatch and noise included, as in `sorl-bench train`."""

from collections.abc import Callable
from typing import Any

import pytest
from sorl_fast.bench import train

BATCH = 256


@pytest.fixture(scope="module")
def setting() -> train.Setting:
    """Data and networks."""
    return train.make_setting(BATCH)


@pytest.mark.parametrize("k", train.STEPS)
@pytest.mark.parametrize("precision", train.BOUND)
def test_update(
    in_lane: Callable[..., Any],
    native_training: Callable[[str], int],
    setting: train.Setting,
    precision: str,
    k: int,
) -> None:
    """Both losses with k steps."""
    threads = native_training(precision)
    eager = train.Runner(train.EAGER, setting, threads)
    with eager.settled():
        expected = eager.update(str(k))
    ours = train.Contender("sorl-fast", precision, "native")
    runner = train.Runner(ours, setting, threads)
    with runner.settled():
        train.check(runner.update(str(k)), expected, ours)
        in_lane(f"update, B={BATCH} k={k}", precision, threads)(runner.update, str(k))
