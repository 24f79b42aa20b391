"""One file for a policy: the only contract between learning and acting.

A safetensors file with the online actor and critic (actor/{i}/{w,b}, critic/{i}/{w,b,g,c}) and one
metadata key, `sorl_fast`: a JSON object whose last field is the sha256 of the whole file, taken with
the digest's own 64 digits set to 0. Format 1 has what every policy has; a policy with a `form` is of
format 2, one with a `choice` of its own of format 3, one with an `action_map` of format 4, one of action
chunks of format 5, one with an `ood` test of format 6 (and its arrays ood/mean, ood/whiten), and each
format has the fields of those before (`policy_format`). Nothing in it depends on time, host or path: equal
policies give equal bytes.

Shape letters: O observation, A numbers of a call's actions, H hidden, E critics, D hidden layers.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ..action_map import ActionMap, map_from_json
from ..atomic import write_bytes
from ..config import euler_steps
from ..errors import BadInput
from ..layout import named
from .choice import PolicyChoice, choice_from_json
from .form import FORMS, Form, count_tensors, from_json, tensor_shapes
from .ood import OodTest, ood_from_json
from .ood import tensor_shapes as ood_shapes
from .plain import is_text, plain
from .policy_format import (
    LATER,
    MAX_HEADER,
    METADATA_KEY,
    fields_of,
    format_of,
    header_of,
    metadata_of,
    needs,
)
from .refusal import Words, array_of, is_ints, is_number, refuse
from .schedule import schedule_of

_MAX_STEPS = 1 << 10  # acting folds a bias for each step of each count: memory that a file asks for
_MAX_DIM = 1 << 31
_MAX_NOISY_ACT = 1 << 26  # a step's number stands above 24 bits of a quad's in the noise's counter
# What follows bounds the memory of the native runtime's reader.
_MAX_ENV = 4096
_REMEDY = "Copy the file again from where it was trained, or write it again with sorl_fast"

Layers = tuple[tuple[NDArray[np.float32], ...], ...]
T = TypeVar("T")


class _Kept:
    """What was made of a policy: each thing once, by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            made: T = self._made[key]
            return made


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """A trained policy: immutable, and safe to share between threads and samplers.

    Every array is copied to float32 and made read-only. Two policies are the same if their `dumps` are.

    Parameters
    ----------
    obs_dim, act_dim
        O, and A, how many numbers a call returns: those of `chunk` actions one after another. At least 1.
    hidden, depth, ensemble
        Width H and number D of the hidden layers of either network, and number E of critics: at least
        1, with a form at least 0.
    m_disc, m_btt
        Powers of two, m_btt <= m_disc: the finest Euler grid trained for, and the most steps of the
        Q loss. With a form, both 1.
    q_agg
        How the ensemble is aggregated: mean or min.
    actor
        D + 1 layers (w [in, out], b [out]); the first reads [x, z, t, log2(1/h)].
    critic
        D layers (w [E, in, out], b, g, c [E, out]) and a last (w [E, H, 1], b [E, 1]); the first
        reads [x, a, k]. Without critics no layers.
    action_low, action_high
        Bounds [A], finite, low < high: of what the networks' actions are clipped to, which with an
        `action_map` is within [-1, 1]. See `bounds` for what a call returns.
    env
        Name of the environment that it was trained for.
    obs_mean, obs_std
        The observation's normaliser [O], (x - mean) / std, std > 0; both or neither.
    config
        The training's settings, plain JSON values, for the record.
    form
        How the networks become an action where that is not by a shortcut actor's Euler steps: see
        `form`, also for the layers of a residual score network and its critics.
    choice
        The rule, steps and candidates of a call that names none: see `own`. A policy with another
        choice is made by `dataclasses.replace(policy, choice=...)`.
    action_map
        What -1 and 1 stand for in the units of the actions that a call returns; None: themselves.
    chunk
        h, how many actions a call returns, which divides act_dim: those of h ticks one after another.
    ood
        How an observation is told that is out of distribution; None: none is.

    Raises
    ------
    BadInput
        A field is out of its bounds; the message names field, value and bound.
    """

    obs_dim: int
    act_dim: int
    hidden: int
    depth: int
    ensemble: int
    m_disc: int
    m_btt: int
    q_agg: str
    actor: Layers = field(repr=False)
    critic: Layers = field(repr=False)
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]
    env: str = ""
    obs_mean: NDArray[np.float32] | None = None
    obs_std: NDArray[np.float32] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    form: Form | None = None
    choice: PolicyChoice | None = None
    action_map: ActionMap | None = None
    chunk: int = 1
    ood: OodTest | None = None

    def __post_init__(self) -> None:
        _check_scalars(vars(self))
        dims = {name: getattr(self, name) for name in _DIMS}
        shapes = tensor_shapes(**dims, depth=self.depth, form=self.form)
        _check_layers(self.actor, self.critic, shapes, self.depth)
        arrays = _tensors(self.actor, self.critic)
        for name, shape in shapes.items():
            arrays[name] = array_of(name, arrays[name], shape)
        vectors = {"action_low": self.act_dim, "action_high": self.act_dim}
        if (self.obs_mean is None) != (self.obs_std is None):
            one = "obs_mean" if self.obs_mean is None else "obs_std"
            refuse(one, None, "given together with the other of obs_mean and obs_std")
        if self.obs_mean is not None:
            vectors |= {"obs_mean": self.obs_dim, "obs_std": self.obs_dim}
        for name, n in vectors.items():
            arrays[name] = array_of(name, getattr(self, name), (n,))
        for a, (low, high) in enumerate(
            zip(arrays["action_low"], arrays["action_high"], strict=True)
        ):
            if not low < high:
                refuse(f"action_low[{a}]", float(low), f"below action_high[{a}] = {high}")
        ends = {name: arrays[name] for name in ("action_low", "action_high")}
        if self.action_map is not None:
            _check_map(self.action_map, *ends.values())
            low, high = np.asarray(self.action_map.low), np.asarray(self.action_map.high)
            ends |= {"action_map low": low, "action_map high": high}
        for name, values in ends.items():
            _check_parts(name, values, self.act_dim // self.chunk)
        if "obs_std" in arrays and not (arrays["obs_std"] > 0).all():
            worst = int(np.argmin(arrays["obs_std"]))
            refuse(f"obs_std[{worst}]", float(arrays["obs_std"][worst]), "above 0")
        config = plain(self.config)
        if self.choice is not None:
            if not isinstance(self.choice, PolicyChoice):
                refuse("choice", self.choice, "None, or a PolicyChoice")
            self.choice.check(self.finest, self.train_steps, self.ensemble > 0)
        if self.ood is not None:
            if not isinstance(self.ood, OodTest):
                refuse("ood", self.ood, "None, or an OodTest")
            if self.ood.dim != self.obs_dim:
                bound = f"of obs_dim = {self.obs_dim}"
                refuse("ood", Words(f"of {self.ood.dim} observations"), bound)

        actor, critic = _layers(arrays, shapes)
        for name, value in {**{v: arrays[v] for v in vectors}, "config": config}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "actor", actor)
        object.__setattr__(self, "critic", critic)
        object.__setattr__(self, "_kept", _Kept())  # no field: what a policy is does not include it

    def __reduce__(self) -> tuple[Any, ...]:
        return loads, (self.file_bytes,)  # a copy in another process is as immutable as this one

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` makes of this policy: called once a key, and kept as long as the policy.

        Samplers of one policy share their packed weights by it. For any thread.

        Parameters
        ----------
        key
            Names the thing and all that it depends on beside the policy.
        make
            Makes it. What it returns must not change afterwards; where it raises, nothing is kept.
        """
        kept: _Kept = vars(self)["_kept"]
        return kept.once(key, make)

    @property
    def file_bytes(self) -> bytes:
        """The bytes of its file, as `dumps` gives them; made once and kept, to be sent to many."""
        return self.once("file", lambda: dumps(self))

    @property
    def digest(self) -> str:
        """The sha256 that its file states of itself, 64 digits; equal for equal policies. Made once."""
        return self.once("digest", lambda: _digest(self.file_bytes))

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of what a call returns for one observation: [A], or [h, A / h] with h = `chunk` above 1."""
        return (self.act_dim,) if self.chunk == 1 else (self.chunk, self.act_dim // self.chunk)

    @property
    def train_steps(self) -> tuple[int, ...]:
        """Step counts M that it acts with: the form's, or {1, 2, 4, ..., m_disc} without one."""
        return euler_steps(self.m_disc) if self.form is None else self.form.steps

    @property
    def finest(self) -> int | None:
        """The finest grid that a shortcut actor was trained for, m_disc; None with a form."""
        return self.m_disc if self.form is None else None

    @property
    def own(self) -> PolicyChoice:
        """How a call acts that does not say: the `choice`, or argmax, N = 1 and the smallest M."""
        return self.choice or PolicyChoice(steps=schedule_of(self.train_steps[0]))

    @property
    def bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least and the greatest action [A] that a call returns, in its units."""
        low, high, units = self.action_low, self.action_high, self.action_map
        return (low, high) if units is None else (units.to_units(low), units.to_units(high))

    @property
    def temperature(self) -> float:
        """What multiplies the noise that its form adds, unless a call says otherwise; 0: none."""
        return 0.0 if self.form is None else self.form.own_temperature or 0.0

    @property
    def draws(self) -> int:
        """S, how many normal numbers a candidate takes for each component of its action."""
        return 1 if self.form is None else self.form.draws


def dumps(policy: Policy) -> bytes:
    """Return the bytes of the policy's file; equal policies give equal bytes."""
    _check_is_policy("dumps(policy)", policy)
    blank = "0" * 64
    text = json.dumps(_fields(policy) | {"sha256": blank}, separators=(",", ":"), allow_nan=False)
    tensors = _tensors(policy.actor, policy.critic)
    if policy.ood is not None:
        tensors |= policy.ood.tensors()
    data = safetensors.numpy.save(tensors, {METADATA_KEY: text})
    header = 8 + int.from_bytes(data[:8], "little")
    if header > MAX_HEADER:
        refuse("header", Words(f"{header} bytes"), f"at most {MAX_HEADER} bytes: shorten config")
    # the digest is the last field, so it is the last run of 64 zeros before the tensors' entries
    at = data.rindex(blank.encode(), 0, header)
    digest = hashlib.sha256(data).hexdigest().encode()
    return b"".join((data[:at], digest, data[at + 64 :]))


def save(path: str | os.PathLike[str], policy: Policy) -> None:
    """Write the policy's file, whole or not at all.

    Raises
    ------
    BadInput
        The folder is read-only, the disk is full, and the like, or the arguments are in the wrong
        order; nothing was changed.
    """
    _check_is_policy("save(path, policy): first the path, then the policy", policy)
    write_bytes(path, dumps(policy))


def load(path: str | os.PathLike[str]) -> Policy:
    """Read a policy's file, and check all of it.

    Raises
    ------
    BadInput
        The file is not there or cannot be read, or anything in it is damaged, missing, unknown or out
        of bounds; the message names the file, the field, its value, the bound and the remedy.
    """
    if not isinstance(path, str | os.PathLike):
        raise BadInput(
            f"path is a {type(path).__name__}, but must be the path of a policy file: load(path)"
        )
    path = Path(path)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not a file that exists"
            raise BadInput(
                f"policy file {path} {what}. Give the policy.safetensors of a run, which "
                "`sorl-fast train` writes into its --out folder"
            )
        data = path.read_bytes()
    except OSError as err:
        raise BadInput(
            f"policy file {path} cannot be read: {err.strerror or err}. Check its path and permissions"
        ) from err
    return loads(data, str(path))


def loads(data: bytes, source: str = "policy bytes") -> Policy:
    """Make a policy from the bytes of its file; errors as `load`, naming `source` as the file.

    At most about twice the size of `data` is held at any time, `data` included.
    """
    if not isinstance(data, bytes | bytearray):
        raise BadInput(
            f"data is a {type(data).__name__}, but must be the bytes of a policy file: loads(data); "
            "load(path) reads a file"
        )
    try:
        return _parse(data)
    except BadInput as err:
        raise BadInput(f"policy file {source}: {err}. {_REMEDY}") from err


def digest(policy: Policy) -> str:
    """Return the policy's `digest`."""
    _check_is_policy("digest(policy)", policy)
    return policy.digest


def _check_is_policy(call: str, policy: object) -> None:
    if not isinstance(policy, Policy):
        raise BadInput(f"policy is a {type(policy).__name__}, but must be a Policy: {call}")


def _digest(data: bytes) -> str:
    return str(metadata_of(header_of(data)[0])["sha256"])


def describe(policy: Policy) -> dict[str, Any]:
    """Return what `sorl-fast inspect` prints: the fields as plain values, and the sizes."""
    _check_is_policy("describe(policy)", policy)
    return _fields(policy) | {
        "steps": list(policy.train_steps),
        "acts_with": _acts_with(policy),
        "actor_parameters": sum(a.size for layer in policy.actor for a in layer),
        "critic_parameters": sum(a.size for layer in policy.critic for a in layer),
        "bytes": len(policy.file_bytes),
        "sha256": policy.digest,
    }


def _acts_with(policy: Policy) -> str:
    """Return the steps that a call may ask for, in words: "steps" are those of the training only."""
    trained = ", ".join(map(str, policy.train_steps))
    if policy.finest is None:
        return f"M = {trained}, no other"
    most = 2 * policy.finest
    return f"any M from 1 to {most}, or a schedule of at most {most} step sizes (trained for {trained})"


def _fields(policy: Policy) -> dict[str, Any]:
    """Return the metadata's fields but for the digest, as plain values in the order of the file."""
    values: dict[str, Any] = {"format": format_of({name: getattr(policy, name) for name in LATER})}
    for name in fields_of(values["format"])[1:-1]:
        value = getattr(policy, name)
        if isinstance(value, Form | PolicyChoice | ActionMap | OodTest):
            value = value.to_json()
        values[name] = value.tolist() if isinstance(value, np.ndarray) else value
    return values


def _parse(data: bytes) -> Policy:
    header, start = header_of(data)
    meta = metadata_of(header)
    at = data.rfind(meta["sha256"].encode(), 8, start)
    if at < 0:
        refuse("sha256", meta["sha256"], "written in the header in plain digits")
    view = memoryview(data)
    actual = hashlib.sha256(view[:at])
    actual.update(b"0" * 64)
    actual.update(view[at + 64 :])
    if actual.hexdigest() != meta["sha256"]:
        refuse("sha256", meta["sha256"], f"{actual.hexdigest()}, the digest of what the file holds")

    values = {k: v for k, v in meta.items() if k not in ("format", "sha256")}
    given = {name: values.get(name) is not None or needs(name, meta["format"]) for name in LATER}
    values = {name: none for name, (_, none) in LATER.items()} | values
    if given["form"]:
        values["form"] = from_json(values["form"])
    form = values["form"]
    if given["choice"]:
        values["choice"] = choice_from_json(values["choice"])
    _check_scalars(values, least_chunk=1 + needs("chunk", meta["format"]))
    if given["action_map"]:
        values["action_map"] = map_from_json(values["action_map"], values["act_dim"])
    for name in ("action_low", "action_high", "obs_mean", "obs_std"):
        values[name] = _numbers(name, values[name], null=name.startswith("obs"))
    if not isinstance(values["config"], dict):
        refuse("config", values["config"], "an object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    count = count_tensors(values["depth"], values["ensemble"], form) + 2 * given["ood"]
    if len(tensors) != count:  # before `depth` is trusted to make a list
        refuse("tensors", len(tensors), f"{count}, as many as with depth = {values['depth']}")
    shapes = tensor_shapes(**{k: values[k] for k in (*_DIMS, "depth")}, form=form)
    more = ood_shapes(values["obs_dim"]) if given["ood"] else {}
    arrays = _read(data, start, tensors, shapes | more)
    if given["ood"]:
        values["ood"] = ood_from_json(values["ood"], arrays)
    actor, critic = _layers(arrays, shapes)
    return Policy(**values, actor=actor, critic=critic)


def _read(
    data: bytes,
    start: int,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, NDArray[np.float32]]:
    """Return views of the tensors' bytes: entries checked, lying end to end, covering the file.

    Not `safetensors.deserialize`: it copies every tensor beside the file's bytes, and Policy copies
    once more.
    """
    names = set(shapes)
    for name in sorted(names - set(tensors)):
        refuse(name, Words("missing"), "there")
    for name in sorted(set(tensors) - names):
        refuse(name, Words("a tensor"), "absent: a policy of these dimensions has no such tensor")
    spans = []
    for name, shape in shapes.items():
        entry = tensors[name]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            refuse(name, entry, "an object with dtype, shape and data_offsets")
        if entry["dtype"] != "F32":
            refuse(f"{name} dtype", entry["dtype"], "F32")
        if not is_ints(entry["shape"]) or tuple(entry["shape"]) != shape:
            refuse(f"{name} shape", entry["shape"], f"{list(shape)}")
        span = entry["data_offsets"]
        if not is_ints(span) or len(span) != 2:
            refuse(f"{name} data_offsets", span, "two integers")
        spans.append((span[0], span[1], name))
    spans.sort()
    end = 0
    for first, last, name in spans:
        expected = (end, end + 4 * math.prod(shapes[name]))
        if (first, last) != expected:
            bound = f"{list(expected)}: tensors lie end to end"
            refuse(f"{name} data_offsets", [first, last], bound)
        end = last
    if start + end != len(data):
        refuse("length", Words(f"{len(data)} bytes"), f"{start + end} bytes, as its header says")
    return {
        name: np.frombuffer(data, "<f4", (last - first) // 4, start + first).reshape(shapes[name])
        for first, last, name in spans
    }


_DIMS = ("obs_dim", "act_dim", "hidden", "ensemble")


def _check_parts(name: str, values: NDArray[Any], each: int) -> None:
    """Refuse actions of a chunk with bounds of their own: one that is held takes another's place."""
    for a in range(each, len(values)):
        if values[a] != values[a - each]:
            bound = f"{name}[{a - each}] = {float(values[a - each])}: the actions of a chunk have one range"
            refuse(f"{name}[{a}]", float(values[a]), bound)


def _check_scalars(values: Mapping[str, Any], least_chunk: int = 1) -> None:
    form = values["form"]
    if form is not None and type(form) not in FORMS.values():
        refuse("form", form, "None, or a Form")
    for name in (*_DIMS, "depth"):
        # without a form there is always a critic
        least = int(name != "ensemble" or form is None)
        if not is_ints([values[name]]) or not least <= values[name] < _MAX_DIM:
            refuse(name, values[name], f"an integer from {least} to 2^31 - 1")
    chunk, act_dim = values["chunk"], values["act_dim"]
    if not is_ints([chunk]) or chunk < least_chunk or act_dim % chunk:
        refuse("chunk", chunk, f"an integer from {least_chunk} that divides act_dim = {act_dim}")
    if form is not None and form.draws > 1 and values["act_dim"] >= _MAX_NOISY_ACT:
        bound = f"below {_MAX_NOISY_ACT} where later steps add noise"
        refuse("act_dim", values["act_dim"], bound)
    for name in ("m_disc", "m_btt"):
        m = values[name]
        if not is_ints([m]) or not 1 <= m <= _MAX_STEPS or m & (m - 1):
            refuse(name, m, f"a power of two from 1 to {_MAX_STEPS}")
        if form is not None and m != 1:
            refuse(name, m, "1 where there is a form, which has its own step counts")
    if values["m_btt"] > values["m_disc"]:
        refuse("m_btt", values["m_btt"], f"at most m_disc = {values['m_disc']}")
    if values["q_agg"] not in ("mean", "min"):
        refuse("q_agg", values["q_agg"], "mean or min")
    env = values["env"]
    if not isinstance(env, str) or not is_text(env, _MAX_ENV):
        refuse("env", env, f"text of at most {_MAX_ENV} bytes of UTF-8")


def _numbers(name: str, value: Any, null: bool) -> list[float] | None:
    """Return a list of numbers from JSON, or None for null where that is allowed."""
    if value is None and null:
        return None
    if not isinstance(value, list):
        refuse(name, value, "a list of numbers" + " or null" * null)
    for i, x in enumerate(value):
        if not is_number(x):
            refuse(f"{name}[{i}]", x, "a finite float32 number")
    return [float(x) for x in value]


def _check_map(value: object, low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
    if not isinstance(value, ActionMap):
        refuse("action_map", value, "None, or an ActionMap")
    if len(value.low) != len(low):
        refuse("action_map", Words(f"of {len(value.low)} components"), f"of act_dim = {len(low)}")
    for name, bad, x in (("action_low", low < -1, low), ("action_high", high > 1, high)):
        if bad.any():
            a = int(np.argmax(bad))
            refuse(f"{name}[{a}]", float(x[a]), "in [-1, 1] where there is an action_map")


def _check_layers(
    actor: Sequence[Any], critic: Sequence[Any], shapes: Iterable[str], depth: int
) -> None:
    """Check that the layers have the arrays that `shapes` names, so that each can be looked at."""
    for name, layers in (("actor", actor), ("critic", critic)):
        letters = _letters(name, shapes)
        if len(layers) != len(letters):
            why = "depth + 1 = " * (len(letters) == depth + 1)
            refuse(name, Words(f"{len(layers)} layers"), f"{why}{len(letters)} layers")
        for i, (layer, expected) in enumerate(zip(layers, letters, strict=True)):
            if len(layer) != len(expected):
                bound = f"{len(expected)} arrays ({', '.join(expected)})"
                refuse(f"{name}/{i}", Words(f"{len(layer)} arrays"), bound)


def _letters(network: str, shapes: Iterable[str]) -> list[str]:
    """Return the letters of each of a network's layers, such as wb, by its tensors' names."""
    found: dict[str, str] = {}
    for name in shapes:
        start, i, letter = name.split("/")
        if start == network:
            found[i] = found.get(i, "") + letter
    return list(found.values())


def _tensors(actor: Layers, critic: Layers) -> dict[str, Any]:
    """Return the layers' arrays by their names in the file."""
    return {
        f"{network}/{name}": array
        for network, layers in (("actor", actor), ("critic", critic))
        for name, array in named(layers).items()
    }


def _layers(arrays: Mapping[str, NDArray[np.float32]], shapes: Iterable[str]) -> list[Layers]:
    """Undo `_tensors`: return the layers of actor and critic."""
    return [
        tuple(
            tuple(arrays[f"{network}/{i}/{part}"] for part in letters)
            for i, letters in enumerate(_letters(network, shapes))
        )
        for network in ("actor", "critic")
    ]
