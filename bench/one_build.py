"""One build of sorl-fast at work, for `--against`: run by path, with that build's own interpreter.

The build may be much older or newer than this file. So this file imports nothing of ours but what the
build offers its users, and knows more than one interface to do the same: who asks takes the first that both
builds have. A request is a line of JSON on standard input, its answer one on what was standard output;
the process ends when its input does.

- `{"do": "hello"}`: which build this is.
- `{"do": "prepare", "interface": ..., ...}`: make ready and compute once, `{"answer": ...}`; or, where the
  build cannot, `{"unavailable": why}`.
- `{"do": "time", "warm_up": n, "calls": m}`: the nanoseconds of m calls of what was prepared last.
"""

import gc
import importlib.metadata
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Request = Mapping[str, Any]


class Work(NamedTuple):
    """What is prepared: its answer, and how to time it."""

    answer: Any  # JSON values
    time: Callable[[int, int], list[float]]  # warm-up calls, calls -> nanoseconds


def timed(call: Callable[[], Any], per: int = 1) -> Callable[[int, int], list[float]]:
    """Return what times a call, call by call, without Python's garbage collector; `per` is its units."""

    def block(warm_up: int, calls: int) -> list[float]:
        clock = time.perf_counter_ns
        times = []
        gc.disable()
        try:
            for _ in range(warm_up):
                call()
            for _ in range(calls):
                before = clock()
                call()
                times.append((clock() - before) / per)
        finally:
            gc.enable()
        return times

    return block


# ---- acting


def _sampler(request: Request) -> tuple[Any, Any, Any]:
    """Return a native sampler, the observations [B, O], and its actions with the noise given [B, N, A]."""
    import sorl_fast

    # Which physical pages weights lie on decides a call of one row by tens of percent, and memory that
    # is given back comes back the same: this moves them elsewhere each time.
    moved = np.ones(random.randrange(1, 64) << 18)
    sampler = sorl_fast.Sampler.load(
        request["policy"],
        backend="native",
        precision=request["precision"],
        threads=request["threads"],
    )
    del moved
    obs, noise = (np.load(request[name], allow_pickle=False) for name in ("obs", "noise"))
    actions = sampler.act(obs, request["steps"], request["candidates"], noise=noise)
    return sampler, obs, np.asarray(actions)


def act_into(request: Request) -> Work:
    """Act into the caller's memory, as a control loop does; the noise is drawn inside."""
    sampler, obs, actions = _sampler(request)
    out, M, N = np.empty_like(actions), request["steps"], request["candidates"]
    sampler.act_into(obs, out, M, N)
    return Work(actions.tolist(), timed(lambda: sampler.act_into(obs, out, M, N)))


def act(request: Request) -> Work:
    """Act and return a new array; the noise is drawn inside."""
    sampler, obs, actions = _sampler(request)
    M, N = request["steps"], request["candidates"]
    return Work(actions.tolist(), timed(lambda: sampler.act(obs, M, N)))


# ---- training


def learner_update(request: Request) -> Work:
    """Update a learner from given weights with given minibatch and noise, both losses with k steps.

    The answer is the metrics of the first update by k; a time is that of an update, the mean over k.
    """
    import torch

    import sorl_fast
    from sorl_fast import ops
    from sorl_fast.batch import Batch

    torch.set_num_threads(1)  # what is left to torch is too small to share out
    ops.configure(precision=request["precision"], threads=request["threads"])
    given = {}
    for name in ("state", "batch", "noise"):
        with np.load(request[name], allow_pickle=False) as file:
            given[name] = {key: torch.from_numpy(file[key]) for key in file.files}
    batch = Batch(**given["batch"])
    dims = batch.observations.shape[-1], batch.actions.shape[-1]
    config = sorl_fast.AgentConfig(**request["agent"])
    random = torch.Generator().manual_seed(0)
    update: Callable[[int], Any]
    try:
        from sorl_fast.learn.algorithms.sorl import Sorl, Steps
        from sorl_fast.learn.learner import Learner
    except ImportError:  # before methods were files
        from sorl_fast.learn.update import METRICS, Learner

        from sorl_fast.learn.noise import UpdateNoise

        learner, names = Learner(*dims, config, random), METRICS
        noise = {name: x for name, x in given["noise"].items() if name in UpdateNoise._fields}
        noises = {k: UpdateNoise(td_steps=k, q_steps=k, **noise) for k in request["steps"]}
        update = lambda k: learner.update(batch, noises[k])  # noqa: E731
    else:
        learner, names = Learner(Sorl(config), *dims, random), tuple(Sorl.metrics)
        update = lambda k: learner.update(batch, given["noise"], Steps(k, k))  # noqa: E731
    answer = {}
    for k in request["steps"]:
        learner.load_state(given["state"], 0)
        answer[str(k)] = dict(zip(names, update(k).tolist(), strict=True))

    def cycle() -> None:
        for k in request["steps"]:
            update(k)

    return Work(answer, timed(cycle, per=len(request["steps"])))


def whole_training(request: Request) -> Work:
    """Train from a file as `sorl-fast train` does: sampling, noise and log included.

    The answer is what the log says of some first updates; a time is that of an update, the mean over
    as many as a block has calls. Start and end of a training are not in it.
    """
    import sorl_fast
    from sorl_fast.learn.train import train

    agent = sorl_fast.AgentConfig(**request["agent"])

    def lines(every: int, updates: int) -> list[dict[str, float]]:
        with tempfile.TemporaryDirectory(prefix="sorl-bench-") as folder:
            out = Path(folder) / "run"
            config = sorl_fast.TrainConfig(
                env="benchmark",
                data=request["data"],
                out=str(out),
                steps=updates,
                log_every=every,
                val_every=0,
                eval_every=0,
                checkpoint_every=0,
                precision=request["precision"],
                threads=request["threads"],
            )
            train(agent, config, progress=False)
            return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]

    def block(warm_up: int, calls: int) -> list[float]:
        """Return one time; as many updates as are timed come before."""
        first, last = lines(calls, 2 * calls)
        return [1e9 * (last["seconds"] - first["seconds"]) / calls]

    (line,) = lines(request["updates"], request["updates"])
    return Work({name: x for name, x in line.items() if name.endswith("_loss")}, block)


INTERFACES: dict[str, Callable[[Request], Work]] = {
    "act_into": act_into,
    "act": act,
    "Learner.update": learner_update,
    "train": whole_training,
}


# ---- serving


def hello() -> dict[str, Any]:
    """Return which build this is, and on what it stands."""
    import sorl_fast

    versions: dict[str, str | None] = {}
    for name in ("numpy", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "file": sorl_fast.__file__,
        "sorl_fast": sorl_fast.__version__,
        "python": platform.python_version(),
        **versions,
    }


def serve() -> None:
    """Answer requests until there are no more."""
    # answers have a descriptor of their own, so that nothing that prints can disturb them
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work: Work | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if request["do"] == "hello":
            answer = hello()
        elif request["do"] == "prepare":
            work = None  # its memory first
            try:
                work = INTERFACES[request["interface"]](request)
                answer = {"answer": work.answer}
            except (
                Exception
            ) as err:  # whatever it is: this build does not have this interface, or this lane
                text = " ".join(str(err).split())
                answer = {"unavailable": f"{type(err).__name__}: {text[:300]}"}
        else:
            assert work is not None
            answer = {"ns": work.time(request["warm_up"], request["calls"])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
