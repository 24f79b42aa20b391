"""How far a cell of a sweep is, by what its run's folder holds: nothing else is written down."""

import json
from pathlib import Path

from ..act.policy_file import load
from ..errors import BadInput
from ..learn.checkpoint import checkpoint_folders
from ..learn.run_folder import RunFolder
from ..simulate.episodes import cell_of, evaluation_path
from ..simulate.evaluate import asked_cells
from .plan import Job


def updates_made(job: Job) -> int:
    """Return how many updates are saved."""
    saved = checkpoint_folders(Path(job.folder) / "checkpoints")
    return int(saved[-1].name) if saved else 0


def is_trained(job: Job) -> bool:
    """Whether the training has nothing left to do, the evaluation at its end included."""
    config, folder = job.config, RunFolder(job.folder, ())
    if not folder.policy.is_file() or updates_made(job) < config.steps:
        return False
    return not 0 < config.eval_every <= config.steps or folder.evaluation(config.steps) is not None


def is_evaluated(job: Job, number: int) -> bool:
    """Whether evaluation `number` of the job is there: of this policy, all cells, enough episodes."""
    config = job.evaluation(number)
    try:
        policy = load(Path(job.folder) / "policy.safetensors")
        kept = json.loads(evaluation_path(Path(job.folder), config.precision).read_bytes())
        same = kept["policy"], kept["seed"], kept["success_timing"]
        if same != (policy.digest, config.seed, config.success_timing):
            return False
        episodes = {cell_of(row): row["episodes"] for row in kept["rows"]}
        return all(episodes.get(cell, 0) >= config.episodes for cell in asked_cells(policy, config))
    except (OSError, ValueError, KeyError, TypeError, BadInput):
        return False  # missing or damaged: the evaluation itself says what is wrong


def steps_left(job: Job) -> list[int]:
    """Return the numbers of the job's commands that have something to do, of `Job.commands`."""
    left = [] if is_trained(job) else [0]
    numbers = range(len(job.evaluations))
    return left + [1 + i for i in numbers if left or not is_evaluated(job, i)]
