"""How networks become an action: the forms of a policy, beside the shortcut actor's own Euler steps.

A policy without a form acts by M Euler steps of a shortcut actor, M a power of two up to m_disc. Each
class here is another way; `kind` is its name in a policy file, its fields are what the file says of it.
What they compute is defined in `reference`.

Shape letters: O observation, A action, H hidden, E critics, D hidden layers, F Fourier frequencies.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..layout import Layout
from .refusal import Words, is_ints, is_number, refuse

MAX_STEPS = 1 << 10  # of one action: acting folds a bias for each step, memory that a file asks for
MAX_COUNTS = 11  # as many as there are powers of two
MAX_NOISY = 255  # steps of a diffusion: a step's number is a byte of the noise's counter
MAX_BLOCKS = 64
MAX_DIM = 1 << 31
RESIDUAL = "residual diffusion"  # the name of a diffusion by a residual network
WIDER = 4  # inner width of a residual score network's block over H


@dataclass(frozen=True, kw_only=True)
class Form:
    """What every form has. Numbers are rounded to float32, as acting reads them.

    Raises
    ------
    BadInput
        A field is out of its bounds; the message names field, value and bound.
    """

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """What a backend says that it runs."""
        return self.kind

    @property
    def steps(self) -> tuple[int, ...]:
        """Step counts M that the policy acts with."""
        return (1,)

    @property
    def draws(self) -> int:
        """S, how many normal numbers a candidate takes for each component of its action."""
        return 1

    @property
    def own_temperature(self) -> float | None:
        """What multiplies added noise unless a call says otherwise; None: there is no such noise."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return kind and fields as plain JSON values."""
        fields = dataclasses.asdict(self)
        plain = {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}
        return {"kind": self.kind} | plain

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _number(self, name: str, low: float, bound: str) -> None:
        """Check a field that is a number of at least `low`."""
        self._set(name, _float32(f"form {name}", getattr(self, name), low, bound))

    def _clip(self, name: str) -> None:
        """Check a field that is a bound of magnitudes: a number above 0, or None."""
        value = getattr(self, name)
        if value is not None:
            clip = _float32(f"form {name}", value, 0.0, _ABOVE_0)
            if clip == 0:
                refuse(f"form {name}", value, _ABOVE_0)
            self._set(name, clip)


_FINITE = "a finite float32 number"
_NOT_NEGATIVE = "a finite float32 number of at least 0"
_ABOVE_0 = "null, or a finite float32 number above 0"


def _sequence(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        refuse(f"form {name}", value, "a list of numbers")
    return list(value)


def _float32(name: str, value: Any, low: float, bound: str) -> float:
    if not is_number(value) or value < low:
        refuse(name, value, bound)
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    if not abs(rounded) < 2.0**128:  # a number just below 2^128 rounds up to it
        refuse(name, value, bound)
    return rounded


@dataclass(frozen=True, kw_only=True)
class Euler(Form):
    """M Euler steps z <- z + v(x, z, i/M)/M of a flow, with step counts of its own.

    Parameters
    ----------
    counts
        The step counts M, from 1 to 1024, ascending.
    """

    kind: ClassVar[str] = "euler"
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = _sequence("counts", self.counts)
        if not is_ints(counts) or not 1 <= len(counts) <= MAX_COUNTS:
            refuse("form counts", counts, f"1 to {MAX_COUNTS} integers")
        for i, m in enumerate(counts):
            if not 1 <= m <= MAX_STEPS or (i > 0 and m <= counts[i - 1]):
                refuse(f"form counts[{i}]", m, f"from 1 to {MAX_STEPS}, above the one before it")
        self._set("counts", tuple(counts))

    @property
    def steps(self) -> tuple[int, ...]:
        """The step counts."""
        return self.counts


@dataclass(frozen=True, kw_only=True)
class Direct(Form):
    """One evaluation f(x, z): the action is f + clip(temperature noise_scale noise, +-noise_clip).

    Parameters
    ----------
    reads_noise
        Whether the noise is the input z; then none is added. Otherwise z is 0.
    temperature
        What multiplies the added noise unless a call says otherwise, at least 0; 0: none is added.
    noise_scale
        Deviation of the added noise at temperature 1, at least 0.
    noise_clip
        Bound of the added noise, above 0; None: none.
    """

    kind: ClassVar[str] = "direct"
    reads_noise: bool
    temperature: float = 0.0
    noise_scale: float = 1.0
    noise_clip: float | None = None

    def __post_init__(self) -> None:
        if type(self.reads_noise) is not bool:
            refuse("form reads_noise", self.reads_noise, "true or false")
        self._number("temperature", 0.0, _NOT_NEGATIVE)
        self._number("noise_scale", 0.0, _NOT_NEGATIVE)
        self._clip("noise_clip")
        if self.reads_noise and self.temperature != 0:
            refuse("form temperature", self.temperature, "0 where reads_noise is true")

    @property
    def own_temperature(self) -> float | None:
        """The temperature; None where the noise is an input."""
        return None if self.reads_noise else self.temperature


@dataclass(frozen=True, kw_only=True)
class Tanh(Direct):
    """`Direct`, of tanh(f) instead of f."""

    kind: ClassVar[str] = "tanh"


@dataclass(frozen=True, kw_only=True)
class Diffusion(Form):
    """Steps i = 0, 1, ... of z <- clip(a_i z + b_i v(x, z, t_i) + temperature s_i noise_i, +-c).

    Parameters
    ----------
    times
        t_i, what the network reads as the time; 1 to 255 steps.
    z_scales, v_scales, noise_scales
        a_i, b_i and s_i, one a step; s_i at least 0, and 0 where a step adds no noise.
    clip
        c, above 0; None: no clip.
    temperature
        What multiplies the noise of the steps unless a call says otherwise, at least 0.
    blocks, frequencies
        Of a residual score network, whose critics then are ReLU layers; both 0: the common MLPs.
    """

    kind: ClassVar[str] = "diffusion"
    times: tuple[float, ...]
    z_scales: tuple[float, ...]
    v_scales: tuple[float, ...]
    noise_scales: tuple[float, ...]
    clip: float | None
    temperature: float = 1.0
    blocks: int = 0
    frequencies: int = 0

    def __post_init__(self) -> None:
        steps = len(_sequence("times", self.times))
        if not 1 <= steps <= MAX_NOISY:
            refuse("form times", Words(f"{steps} steps"), f"1 to {MAX_NOISY} steps")
        for name in ("times", "z_scales", "v_scales", "noise_scales"):
            values = _sequence(name, getattr(self, name))
            if len(values) != steps:
                bound = f"{steps} numbers, as many as times has"
                refuse(f"form {name}", Words(f"{len(values)} numbers"), bound)
            low, bound = (0.0, _NOT_NEGATIVE) if name == "noise_scales" else (-np.inf, _FINITE)
            numbers = [_float32(f"form {name}[{i}]", x, low, bound) for i, x in enumerate(values)]
            self._set(name, tuple(numbers))
        self._clip("clip")
        self._number("temperature", 0.0, _NOT_NEGATIVE)
        for name, most in (("blocks", MAX_BLOCKS), ("frequencies", MAX_DIM - 1)):
            value = getattr(self, name)
            if not is_ints([value]) or not 0 <= value <= most:
                refuse(f"form {name}", value, f"an integer from 0 to {most}")
        if (self.blocks == 0) != (self.frequencies == 0):
            refuse("form frequencies", self.frequencies, f"0 where blocks is 0, here {self.blocks}")

    @property
    def residual(self) -> bool:
        """Whether the networks are a residual score network and ReLU critics."""
        return self.blocks > 0

    @property
    def name(self) -> str:
        """What a backend says that it runs."""
        return RESIDUAL if self.residual else self.kind

    @property
    def steps(self) -> tuple[int, ...]:
        """The one number of steps."""
        return (len(self.times),)

    @property
    def draws(self) -> int:
        """z_0, and the noise of every step up to the last one that adds any."""
        noisy = [i for i, s in enumerate(self.noise_scales) if s > 0]
        return 2 + noisy[-1] if noisy else 1

    @property
    def own_temperature(self) -> float | None:
        """The temperature."""
        return self.temperature


FORMS: dict[str, type[Form]] = {f.kind: f for f in (Euler, Direct, Tanh, Diffusion)}
SHORTCUT = "shortcut"  # the name of no form
NAMES = (SHORTCUT, *FORMS, RESIDUAL)


def name_of(form: Form | None) -> str:
    """Return what a backend calls a policy's form."""
    return SHORTCUT if form is None else form.name


def is_residual(form: Form | None) -> bool:
    """Whether a policy's networks are a residual score network and ReLU critics."""
    return isinstance(form, Diffusion) and form.residual


def from_json(value: Any) -> Form:
    """Undo `Form.to_json`, of values that may be damaged."""
    kinds = ", ".join(FORMS)
    if not isinstance(value, Mapping):
        refuse("form", value, f"an object with a kind, one of {kinds}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in FORMS:
        refuse("form kind", kind, f"one of {kinds}")
    names = {field.name: field for field in dataclasses.fields(FORMS[kind])}
    for name in names:
        if name not in value:
            refuse(f"form {name}", Words("missing"), "there")
    fields = {k: v for k, v in value.items() if k != "kind"}
    for name, x in fields.items():
        if name not in names:
            refuse(f"form {name}", x, f"absent: the fields of {kind} are {', '.join(names)}")
    return FORMS[kind](**fields)


def count_tensors(depth: int, ensemble: int, form: Form | None) -> int:
    """Return how many tensors a policy has, without a list of them."""
    if isinstance(form, Diffusion) and form.residual:
        return 9 + 6 * form.blocks + (2 * depth + 2 if ensemble else 0)
    return 6 * depth + 4 if ensemble else 2 * depth + 2


def tensor_shapes(
    obs_dim: int, act_dim: int, hidden: int, ensemble: int, depth: int, form: Form | None
) -> dict[str, tuple[int, ...]]:
    """Return every tensor's name and shape, `actor/{i}/{w,b,g,c}` and `critic/{i}/{w,b,g,c}`."""
    O, A, H, E, D = obs_dim, act_dim, hidden, ensemble, depth
    if isinstance(form, Diffusion) and form.residual:
        actor, critic = _score_shapes(O, A, H, form), _relu_shapes(O + A, H, E, D)
    else:
        actor = Layout.actor(O, A, H, D).shapes()
        critic = Layout.critic(O, A, H, D, E).shapes()
    shapes = {f"actor/{name}": shape for name, shape in actor.items()}
    return shapes | ({f"critic/{name}": shape for name, shape in critic.items()} if E else {})


def _score_shapes(O: int, A: int, H: int, form: Diffusion) -> dict[str, tuple[int, ...]]:
    F = form.frequencies
    shapes: dict[str, tuple[int, ...]] = {"0/w": (1, F)}
    dense = [(2 * F, H), (H, H), (A + O + H, H)]
    dense += [(H, WIDER * H), (WIDER * H, H)] * form.blocks
    for i, (fan_in, fan_out) in enumerate([*dense, (H, A)], 1):
        shapes |= {f"{i}/w": (fan_in, fan_out), f"{i}/b": (fan_out,)}
        if 4 <= i < 4 + 2 * form.blocks and i % 2 == 0:  # a block begins with a LayerNorm
            shapes |= {f"{i}/g": (H,), f"{i}/c": (H,)}
    return shapes


def _relu_shapes(inputs: int, H: int, E: int, D: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(D + 1):
        fan_in, fan_out = H if i else inputs, 1 if i == D else H
        shapes |= {f"{i}/w": (E, fan_in, fan_out), f"{i}/b": (E, fan_out)}
    return shapes
