"""From files to minibatches: load, check, relabel, sample.

Two kinds of source: a folder of OGBench files, relabelled for one task by ogbench, and one npz of a
user's own transitions, which needs no simulator. Shape letters: T transitions, B batch, O
observation, A action.
"""

import hashlib
import os
import sys
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..action_map import OF_DATA, ActionMap
from ..batch import Batch
from ..envs import RECIPES, dataset_name, how_to_collect, refuse_images, similar_task
from ..errors import BadInput
from .actions import action_map_of, unit_actions
from .chunks import ENDS, chunk_transitions

ACTION_LIMIT = 1 - 1e-5  # actions are clipped to +-(1 - 1e-5), as the authors do
STD_FLOOR = 1e-3  # an observation that varies less is taken to be constant
ROUNDING = 8 * float(
    np.finfo(np.float32).eps
)  # so is one whose variation may be float32's rounding
MOSTLY_DONE = 0.9  # a part of rows with mask 0 from which on they are probably the wrong way round

_OGBENCH_FIELDS = ("observations", "actions", "terminals", "qpos", "qvel")
FIELDS = Batch._fields[:5]  # what every data set has
_OWN_FIELDS = ("observations", "actions", "rewards", "masks")
# of OGBench, D4RL and Minari
_END_FIELDS = ("terminals", "terminations", "timeouts", "truncations")
_OWN_REMEDY = (
    "A file of your own has observations [T, O], actions [T, A] (in [-1, 1] without --action-range), "
    "rewards [T], "
    "masks [T] (0 where the task is done, else 1; a time limit is not its end), and next_observations "
    "[T, O] or terminals [T] (1 in the last row of every trajectory, also where time cut it off, unless "
    "timeouts or truncations [T] mark those)"
)


class TransitionData:
    """Transitions as contiguous float32 tensors on one device.

    Parameters
    ----------
    arrays
        observations [T, O], actions [T, A], rewards [T], next_observations [T, O], masks [T], and
        perhaps next_actions [T, A].
    source
        What the errors call it: a file name.
    device
        Where the tensors are kept; minibatches are drawn there.

    Raises
    ------
    BadInput
        A shape does not fit, a value is not finite, or there is no transition.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], source: str, device: torch.device | str = "cpu"
    ):
        _check_arrays(arrays, source)
        self.source = source
        found = {name: arrays[name] for name in Batch._fields if name in arrays}
        for name in found.keys() & {"actions", "next_actions"}:
            found[name] = np.clip(found[name], -ACTION_LIMIT, ACTION_LIMIT)
        self._batch = Batch(
            **{
                name: torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device)
                for name, x in found.items()
            }
        )

    def __len__(self) -> int:
        return len(self._batch.rewards)

    @property
    def obs_dim(self) -> int:
        """O."""
        return int(self._batch.observations.shape[1])

    @property
    def act_dim(self) -> int:
        """A: the numbers of an action, or of a chunk of actions."""
        return int(self._batch.actions.shape[1])

    @property
    def transitions(self) -> Batch:
        """All T transitions; not a copy."""
        return self._batch

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw B transitions uniformly with replacement; `generator` lives on the data's device."""
        shape = (batch_size,)
        device = generator.device
        return self.take(torch.randint(len(self), shape, generator=generator, device=device))

    def take(self, index: Tensor) -> Batch:
        """Return the transitions at `index` int64 [B], which lives on the data's device."""
        fields = {n: x for n, x in self._batch._asdict().items() if x is not None}
        return Batch(**{name: x.index_select(0, index) for name, x in fields.items()})

    def normalise(self, mean: Tensor, std: Tensor) -> None:
        """Replace every observation x by (x - mean) / std, in place; mean and std are [O]."""
        for x in (self._batch.observations, self._batch.next_observations):
            x.sub_(mean).div_(std)

    def moments(self) -> tuple[Tensor, Tensor, list[int]]:
        """Return mean and scale of the observations, float32 [O], and which of them are constant.

        The scale is the standard deviation, but 1 where the observation is constant: where that is below
        1e-3, or no more than float32's rounding of such values. Divided by it, the least change that the
        data lack would drown everything else.
        """
        x = self._batch.observations.double()
        std = x.std(0, correction=0)
        constant = (std < STD_FLOOR) | (std <= ROUNDING * x.abs().amax(0))
        columns = torch.nonzero(constant).flatten().tolist()
        return x.mean(0).float(), std.masked_fill(constant, 1).float(), columns

    def digest(self) -> str:
        """Return the SHA-256 of the fields that every data set has, in hex: equal data, equal digests."""
        sha = hashlib.sha256()
        for name in FIELDS:
            x = getattr(self._batch, name)
            sha.update(f"{name}{tuple(x.shape)}".encode())
            sha.update(np.ascontiguousarray(x.cpu().numpy()).data)
        return sha.hexdigest()


@dataclass(frozen=True)
class DataPair:
    """Training data, validation data if there are any, and the normaliser if one was asked for."""

    train: TransitionData
    val: TransitionData | None
    obs_mean: Tensor | None = None  # [O]
    obs_std: Tensor | None = None  # [O]
    action_map: ActionMap | None = (
        None  # from the file's units to these data's; None: they are the same
    )


def load_data(
    env: str,
    data: str | Path,
    *,
    download: bool = False,
    normalize_obs: bool = False,
    normaliser: tuple[Tensor, Tensor] | None = None,
    next_actions: bool = False,
    action_range: str | None = None,
    chunk: int = 1,
    discount: float = 1.0,
    device: torch.device | str = "cpu",
) -> DataPair:
    """Load the data of one training.

    Parameters
    ----------
    env
        OGBench single-task name, e.g. cube-single-play-singletask-task2-v0. With a file of your own
        it is only a label.
    data
        A folder that holds {dataset}.npz and {dataset}-val.npz, or one .npz of your own; beside
        NAME.npz an optional NAME-val.npz is the validation data. Without next_observations x' is the
        following row, unless `terminals` (or `terminations`, `timeouts`, `truncations`) is 1: the row is
        the last of its trajectory, whatever ended it. Whether the task was done there is said by `masks`
        alone: 0 where it was, 1 where time ran out. A last row with mask 1 has no x' and is left out.
    download
        Let ogbench fetch missing files into the folder. Nothing touches the network otherwise.
    normalize_obs
        Standardise observations by the training data's `moments`; which are taken to be constant is said
        on standard error.
    normaliser
        Mean and scale [O] to standardise by instead: those that a run has begun with. The scale of what
        never varies is 1 also there.
    next_actions
        Load the data's action at each next observation too. Data of your own must then say where
        trajectories end, for their rows must be in order.
    action_range
        Of the actions of your own file: "data", from the least to the greatest of the training data, or
        "LOW,HIGH", for all components or with ":" between one pair for each. They are mapped to [-1, 1].
        None: they are in [-1, 1].
    chunk
        h, how many actions in a row are one action of the data (`chunks.chunk_transitions`). Above 1 data
        of your own must say where trajectories end, for their rows must be in order.
    discount
        Of the rewards in a chunk, a step.
    device
        Where the tensors are kept.

    Raises
    ------
    BadInput
        A file or field is missing, has a wrong shape, holds NaN or nothing, or cannot be read: the
        message names the file, the field and the command or step that mends it.
    """
    path = Path(data).expanduser()
    units: ActionMap | None = None
    if path.suffix == ".npz":
        train, val = _load_own(path, next_actions, chunk > 1)
        _check_arrays(train, str(path))
        units = action_map_of(action_range, train["actions"], str(path))
        train = unit_actions(train, units, str(path))
        if val is not None:
            name = f"{path} (validation)"
            _check_arrays(val, name)
            _check_alike(path, train, val)
            val = unit_actions(val, units, name, clip=action_range == OF_DATA)
    elif action_range is not None:
        raise BadInput(
            f"action_range is {action_range!r}, but OGBench's actions are in [-1, 1]: leave "
            "--action-range out, or give --data a .npz of your own"
        )
    else:
        train, val = _load_ogbench(env, path, download)
        if next_actions:
            name = dataset_name(env)
            for arrays, file in ((train, f"{name}.npz"), (val, f"{name}-val.npz")):
                arrays["next_actions"] = _following_actions(path / file)
        if chunk > 1:
            train, val = (x | {ENDS: x["terminals"] != 0} for x in (train, val))
    if chunk > 1:
        train = chunk_transitions(train, chunk, discount, str(path))
        if val is not None:
            val = chunk_transitions(val, chunk, discount, f"{path} (validation)")
    pair = DataPair(
        TransitionData(train, str(path), device),
        None if val is None else TransitionData(val, f"{path} (validation)", device),
        action_map=units,
    )
    if not normalize_obs:
        return pair
    if normaliser is None or normaliser[0].shape != (pair.train.obs_dim,):
        mean, std, constant = pair.train.moments()
    else:
        mean, std = (x.to(device, copy=True) for x in normaliser)
        x = pair.train.transitions.observations
        # of an older run; its weights have seen 0 there, whatever the scale was
        grown = (x.amin(0) == x.amax(0)) & (std != 1)
        constant = torch.nonzero(grown).flatten().tolist()
        std[grown] = 1
    if constant:
        _say_what_is_constant(pair.train.source, constant)
    for part in (pair.train, pair.val):
        if part is not None:
            part.normalise(mean, std)
    return DataPair(pair.train, pair.val, mean.cpu(), std.cpu(), units)


def _check_alike(path: Path, train: Mapping[str, Any], val: Mapping[str, Any]) -> None:
    sizes = [[x[name].shape[1] for name in ("observations", "actions")] for x in (train, val)]
    (O, A), (val_O, val_A) = sizes
    if sizes[0] != sizes[1]:
        raise BadInput(
            f"{path}: the validation data have O = {val_O}, A = {val_A}, the training data O = {O}, "
            f"A = {A}; make both alike"
        )


def check_files(env: str, data: str | Path, *, next_actions: bool = False, chunk: int = 1) -> None:
    """Raise BadInput unless the files that `load_data` reads are there and whole.

    No simulator is started, so that many trainings may be checked before the first begins; what only
    OGBench's relabelling shows is not seen.
    """
    path = Path(data).expanduser()
    if path.suffix == ".npz":
        for arrays in _load_own(path, next_actions, chunk > 1):
            if arrays is not None:
                _check_arrays(arrays, str(path))
                if chunk > 1:
                    chunk_transitions(arrays, chunk, 1.0, str(path))
    else:
        _ogbench_files(env, path, False)


def _say_what_is_constant(source: str, columns: list[int]) -> None:
    shown = ", ".join(map(str, columns[:20])) + (", ..." if len(columns) > 20 else "")
    print(
        f"{source}: --normalize-obs keeps the scale of observations {shown} (counted from 0): they are "
        f"constant, or all but (a deviation below {STD_FLOOR:g}, or float32's rounding). Where that is a "
        "signal, multiply it in the data",
        file=sys.stderr,
    )


def _ogbench_files(env: str, folder: Path, download: bool) -> str:
    """Check the two files of a single task's data set, those that are there; return its name."""
    name = dataset_name(env)
    if name == env:
        similar = similar_task(env)
        hint = (
            "`sorl-fast envs --tasks` lists them."
            if similar is None
            else f"did you mean {similar}?"
        )
        raise BadInput(
            f"env {env!r} is not an OGBench single-task name: {hint} Or give --data a .npz of your own"
        )
    refuse_images(env)
    for path in (folder / f"{name}.npz", folder / f"{name}-val.npz"):
        if path.is_file():
            _check_ogbench_file(path)
        elif not download:
            make = "Let ogbench download it with --download"
            if name in RECIPES:
                commands = how_to_collect(name, str(folder))
                make = f"Make it with `{commands}`, or l{make[1:]}"
            elif (similar := similar_task(env)) is not None:
                make = f"Did you mean {similar}? Or l{make[1:]}"
            raise BadInput(f"no data file {path}. {make}")
    return name


def _load_ogbench(env: str, folder: Path, download: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    name = _ogbench_files(env, folder, download)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        import ogbench
        from gymnasium.error import Error as GymnasiumError

    try:
        with warnings.catch_warnings():
            # of gymnasium about its own spaces, and of mujoco's window about a missing display
            warnings.simplefilter("ignore", UserWarning)
            simulator, train, val = ogbench.make_env_and_datasets(env, dataset_dir=str(folder))
    except OSError as err:
        raise BadInput(
            f"ogbench could not get {name} into {folder}: {err}. Check the network and the folder, "
            f"or make it with `sorl-fast collect --env {name} --out {folder}`"
        ) from err
    except (AttributeError, ImportError, RuntimeError) as err:
        if "MUJOCO_GL" not in os.environ:
            raise
        raise BadInput(
            f"ogbench's simulator does not start with MUJOCO_GL={os.environ['MUJOCO_GL']}: {err}. "
            "Nothing is rendered here: set MUJOCO_GL=disable before mujoco is imported"
        ) from err
    except (GymnasiumError, AssertionError, ValueError) as err:
        raise BadInput(
            f"ogbench does not load {env!r}: {err}. `sorl-fast envs` lists the names that have presets"
        ) from err
    simulator.close()
    return train, val


def _following_actions(path: Path) -> np.ndarray:
    """Return the action of the row behind each of ogbench's transitions in a file of OGBench.

    A trajectory's last row is no transition, but has an action: that of the last next observation. (The
    authors of ReBRAC's baseline take the row behind among the transitions, which there is the first of
    the next trajectory: corrected here.)
    """
    arrays = _open_npz(path, ("actions", "terminals"))
    transitions = np.flatnonzero(arrays["terminals"] == 0)
    actions: np.ndarray = arrays["actions"]
    return actions[np.minimum(transitions + 1, len(actions) - 1)]


def _open_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read those arrays of a file that are named and there; None: all."""
    if not path.is_file():
        raise BadInput(f"no data file {path}. Check --data")
    try:
        # opened here: numpy leaves a file that it opened itself and cannot read to the collector
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise BadInput(f"{path} holds one array, not an npz archive. {_OWN_REMEDY}")
            wanted = file.files if names is None else [n for n in file.files if n in names]
            return {name: file[name] for name in wanted}
    except BadInput:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise BadInput(
            f"{path} cannot be read: {err}. It is damaged, or holds Python objects, which are never "
            "loaded; write it again with numpy.savez from numeric arrays"
        ) from err


def _check_ogbench_file(path: Path) -> None:
    arrays = _open_npz(path)
    remedy = f"Make it again with `sorl-fast collect --force`, or download it again: {path}"
    for name in _OGBENCH_FIELDS:
        if name not in arrays:
            raise BadInput(f"{path} has no field {name!r}, which OGBench files have. {remedy}")
    rows = len(arrays["observations"])
    if rows < 2:
        raise BadInput(f"{path} is empty: {rows} rows. {remedy}")
    for name, x in arrays.items():
        if x.shape[:1] != (rows,):
            raise BadInput(
                f"{path}: {name} has shape {x.shape}, but observations have {rows} rows. {remedy}"
            )
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            row = int(np.argmin(np.isfinite(x).reshape(rows, -1).all(1)))
            raise BadInput(f"{path}: {name} is not finite in row {row}. {remedy}")
    if not arrays["terminals"].any():
        raise BadInput(f"{path}: terminals mark no episode's end. {remedy}")


def _load_own(
    path: Path, next_actions: bool, chunks: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    val = path.with_name(f"{path.stem}-val.npz")
    train = _own_transitions(path, next_actions, chunks)
    masks = train["masks"]
    done = float((masks == 0).mean()) if masks.size else 0.0
    if done >= MOSTLY_DONE:
        print(
            f"{path}: masks are 0, the task is done, in {done:.0%} of the rows: nothing after these is "
            "learned. If that is not meant, they may be the wrong way round: masks = 1 - done, and 1 where "
            "only time ran out",
            file=sys.stderr,
        )
    return train, _own_transitions(val, next_actions, chunks) if val.is_file() else None


def _own_transitions(path: Path, next_actions: bool, chunks: bool) -> dict[str, np.ndarray]:
    # what else the file holds is the user's business
    arrays = _open_npz(path, (*_OWN_FIELDS, "next_observations", *_END_FIELDS))
    for name in _OWN_FIELDS:
        if name not in arrays:
            # not guessed from terminals: these may be the task's end (D4RL) or any trajectory's (OGBench)
            hint = " D4RL's are 1 - terminals." if name == "masks" else ""
            raise BadInput(f"{path} has no field {name!r}.{hint} {_OWN_REMEDY}")
    for name, x in arrays.items():
        if x.ndim == 0:
            raise BadInput(f"{path}: {name} is a single value, but must have a row a transition")
        _check_dtype(str(path), name, x)
    if next_actions:
        why = "which action follows which, and this method reads the next one"
        _check_order(arrays, path, why, "another --method")
        arrays = _with_next_actions(arrays, path)
    if chunks:
        why = "which actions follow each other, and --chunk learns these"
        _check_order(arrays, path, why, "--chunk 1")
        ends = _trajectory_ends(arrays, path)
        ends[-1:] = True
        arrays = arrays | {ENDS: ends}
    if "next_observations" not in arrays:
        arrays = _with_next_observations(arrays, path)
    if not np.isin(arrays["masks"], (0, 1)).all():
        raise BadInput(f"{path}: masks must be 0 (task done) or 1 (go on). {_OWN_REMEDY}")
    return arrays


def _trajectory_ends(arrays: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    """Return which rows [T] any of _END_FIELDS ends a trajectory with."""
    rows = len(arrays["observations"])
    ends = np.zeros(rows, bool)
    for name in (*(name for name in _END_FIELDS if name in arrays), "masks"):
        x = arrays[name]
        if x.shape != (rows,):
            raise BadInput(f"{path}: {name} {x.shape} must have shape ({rows},). {_OWN_REMEDY}")
        if name in _END_FIELDS:
            if not np.isin(x, (0, 1)).all():
                raise BadInput(f"{path}: {name} must be 0 or 1. {_OWN_REMEDY}")
            ends |= x.astype(bool)
    for name in ("actions", "rewards"):
        if len(arrays[name]) != rows:
            raise BadInput(f"{path}: {name} has {len(arrays[name])} rows, observations have {rows}")
    return ends


def _check_order(arrays: Mapping[str, np.ndarray], path: Path, what: str, other: str) -> None:
    if not any(name in arrays for name in _END_FIELDS):
        raise BadInput(
            f"{path} has no terminals, so nobody knows {what}. Add terminals [T] (1 at a trajectory's last "
            f"row) if the rows are in order, or choose {other}"
        )


def _with_next_actions(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Take a' from the following row of the same trajectory; a trajectory's last row has its own action.

    That stands in for one that the file does not have. It is read only where the row has a
    next_observation of its own and is no end of the task.
    """
    ends, actions = _trajectory_ends(arrays, path), arrays["actions"]
    following = np.concatenate([actions[1:], actions[-1:]])
    following[ends] = actions[ends]
    return arrays | {"next_actions": following}


def _with_next_observations(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Take x' from the following row of the same trajectory, which any of _END_FIELDS may end.

    A trajectory's last row has none: it is kept if its mask is 0 (x' is then never used), else dropped.
    """
    given = [name for name in _END_FIELDS if name in arrays]
    if not given:
        raise BadInput(f"{path} has neither next_observations nor terminals. {_OWN_REMEDY}")
    obs, rows = arrays["observations"], len(arrays["observations"])
    ends = _trajectory_ends(arrays, path)
    if rows > 1 and not ends[:-1].any():
        print(
            f"{path}: {' and '.join(given)} end no trajectory before the last row: it is taken as a single "
            f"one of {rows} rows. If it holds several, set terminals to 1 in the last row of each",
            file=sys.stderr,
        )
    if rows:
        ends[-1] = True
    following = np.concatenate([obs[1:], obs[-1:]])
    following[ends] = obs[ends]
    keep = ~ends | (arrays["masks"] == 0)
    arrays = arrays | {"next_observations": following}
    if ENDS in arrays:  # a trajectory whose last row is dropped ends with the one before
        arrays[ENDS] = ends | np.append(~keep[1:], True)[:rows]
    return {name: arrays[name][keep] for name in (*Batch._fields, ENDS) if name in arrays}


def _check_arrays(arrays: Mapping[str, np.ndarray], source: str) -> None:
    obs, actions = arrays["observations"], arrays["actions"]
    if obs.ndim != 2 or actions.ndim != 2 or 0 in (obs.shape[1], actions.shape[1]):
        raise BadInput(
            f"{source}: observations have shape {obs.shape} and actions {actions.shape}, but must be "
            "[T, O] and [T, A], O and A at least 1"
        )
    rows = len(obs)
    if rows == 0:
        raise BadInput(f"{source} is empty: it has no transition. Collect at least one episode")
    shapes = {
        "observations": obs.shape,
        "actions": (rows, actions.shape[1]),
        "rewards": (rows,),
        "next_observations": obs.shape,
        "masks": (rows,),
    }
    if "next_actions" in arrays:
        shapes["next_actions"] = (rows, actions.shape[1])
    for name, shape in shapes.items():
        x = arrays[name]
        if x.shape != shape:
            raise BadInput(f"{source}: {name} has shape {x.shape}, but must have {shape}")
        _check_dtype(source, name, x)
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
            finite = np.isfinite(x.astype(np.float32)).reshape(rows, -1).all(1)
        if not finite.all():
            raise BadInput(
                f"{source}: {name} is not finite as float32 in row {int(np.argmin(finite))}; remove "
                "that row or repair it"
            )


def _check_dtype(source: str, name: str, x: np.ndarray) -> None:
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.iscomplexobj(x):
        raise BadInput(f"{source}: {name} has dtype {x.dtype}, but must be real numbers")
