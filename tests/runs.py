"""Small trainings, and what two of them have in common."""

import numpy as np

from sorl_fast.config import TrainConfig
from sorl_fast.learn.algorithms.sorl import SorlConfig
from sorl_fast.learn.checkpoint import load_latest


def agent(**changes):
    return SorlConfig(**({"q_coef": 1.0, "hidden": 8, "depth": 2, "batch_size": 16} | changes))


def config(own_file, out, **changes):
    base = {"steps": 40, "log_every": 10, "val_every": 20, "eval_every": 0, "checkpoint_every": 15}
    values = base | {"env": "mine", "data": str(own_file), "out": str(out), "threads": 1} | changes
    return TrainConfig(**values)


def final_state(run):
    return load_latest(run / "checkpoints")


def assert_same_run(a, b):
    x, y = final_state(a), final_state(b)
    assert x.step == y.step
    assert x.tensors.keys() == y.tensors.keys()
    for name in x.tensors:
        assert np.array_equal(x.tensors[name], y.tensors[name]), name
    assert (a / "policy.safetensors").read_bytes() == (b / "policy.safetensors").read_bytes()
