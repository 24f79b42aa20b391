"""Write the fuzz target's seeds: a few sound policy files, tiny and odd, and some broken ones.

Usage: make_corpus.py FOLDER. Needs the standard library only, so that any machine can fuzz.
"""

import hashlib
import json
import random
import struct
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any


def policy(
    *,
    O: int = 1,
    A: int = 1,
    H: int = 1,
    D: int = 1,
    E: int = 1,
    form: dict[str, Any] | None = None,
    choice: Any = None,
    action_map: Any = None,
    chunk: Any = None,
    ood: Any = None,
    config_text: bytes = b"{}",
    ends_there: bool = False,
    **changes: Any,
) -> bytes:
    """Return a policy file of random weights, in the lowest format that has the later fields given.

    E = 0: without critics.

    `changes` replace metadata fields; `config_text` stands where the configuration would, JSON or not,
    and the metadata may end there.
    """
    shapes: dict[str, list[int]] = {}
    networks = [("actor", O + A + 2, A), ("critic", O + A + 1, 1)]
    for network, inputs, outputs in networks if E else networks[:1]:
        axis = [E] if network == "critic" else []
        widths = [inputs, *[H] * D, outputs]
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            shapes[f"{network}/{i}/w"] = [*axis, fan_in, fan_out]
            for part in "b" if network == "actor" or i == D else "bgc":
                shapes[f"{network}/{i}/{part}"] = [*axis, fan_out]
    if ood is not None:
        shapes |= {"ood/mean": [O], "ood/whiten": [O, O]}
    draw = random.Random(0)
    entries: dict[str, Any] = {}
    data = b""
    for name, shape in shapes.items():
        count = 1
        for n in shape:
            count *= n
        begin = len(data)
        data += struct.pack(f"<{count}f", *(draw.uniform(-1, 1) for _ in range(count)))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    later = {"form": form, "choice": choice, "action_map": action_map, "chunk": chunk, "ood": ood}
    if ood is not None and chunk is None:
        later["chunk"] = 1  # which is no null
    number = max([1, *(i for i, value in enumerate(later.values(), 2) if value is not None)])
    meta = {
        "format": number,
        "obs_dim": O,
        "act_dim": A,
        "hidden": H,
        "depth": D,
        "ensemble": E,
        "m_disc": 2 if form is None else 1,
        "m_btt": 1,
        "q_agg": "mean",
        "env": "e",
        "action_low": [-1.0] * A,
        "action_high": [1.0] * A,
        "obs_mean": None,
        "obs_std": None,
        **dict([*later.items()][: number - 1]),
        "config": "CONFIG",
        "sha256": "0" * 64,
    }
    text = json.dumps(meta | changes, separators=(",", ":"), ensure_ascii=False)
    if ends_there:
        text = text[: text.index('"CONFIG"')] + '"CONFIG"'
    head = json.dumps(
        {"__metadata__": {"sorl_fast": text}, **entries}, separators=(",", ":")
    ).encode()
    # a text inside a text
    escaped = config_text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    escaped = b"".join(b"\\u%04x" % c if c < 0x20 else bytes([c]) for c in escaped)
    head = head.replace(b'\\"CONFIG\\"', escaped)
    file = struct.pack("<Q", len(head)) + head + data
    if ends_there:
        return file
    digest = hashlib.sha256(file).hexdigest().encode()
    at = file.rindex(b"0" * 64, 0, 8 + len(head))
    return file[:at] + digest + file[at + 64 :]


# What only some line of the JSON reader takes or refuses, in place of a configuration.
JSON = (
    rb'{"a":[1,-2.5e-3,0.5E+7,true,false,null,{"b":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"}]}',
    b' {\t"a" :\r[ ] }',
    rb'{"\u00e9\u20AC\ud83d\ude00":1}',
    b'{"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80":1}',
    b"[" * 70,
    b'{"a":' * 70,
    b'{"a":tru}',
    b'{"a":nul}',
    b'{"a":?}',
    b'{"a" 1}',
    b'{"a":1 "b":2}',
    b'{"a":1,"a":2}',
    b"{" + b",".join(b'"%d":0' % i for i in range(257)) + b"}",
    b'{"' + b"k" * 300 + b'":0}',
    rb'{"a":"\x"}',
    rb'{"a":"\u00g0"}',
    rb'{"a":"\udc00"}',
    rb'{"a":"\ud800"}',
    rb'{"a":"\ud800\n"}',
    rb'{"a":"\ud800\u0041"}',
    rb'{"a":"\ud800\u00"}',
    b'{"a":"\x01"}',
    b'{"a":"\xff"}',
    b'{"a":"\xc3("}',
    b'{"a":"\xe0\x80\x80"}',
    b'{"a":01}',
    b'{"a":-}',
    b'{"a":1.}',
    b'{"a":1e}',
    b'{"a":1e999}',
    b'{"a":' + b"9" * 40 + b"}",
    b"{} x",
)
# The same where the text ends behind it.
JSON_ENDS = (b"", b"{", b'{"a":"b', b'{"a":"\\', b'{"a":"\\u00')


# A form of each kind, and some that stand at a bound.
ONE_STEP = {"reads_noise": False, "temperature": 0.5, "noise_scale": 0.2, "noise_clip": 0.5}
DIFFUSION = {
    "kind": "diffusion",
    "times": [0.9, 0.4, 0],
    "z_scales": [1.5, 1.25, 1.0],
    "v_scales": [-0.5, -0.25, -1e-3],
    "noise_scales": [0.5, 0.0, 0.0],
    "clip": 1.0,
    "temperature": 1.0,
    "blocks": 0,
    "frequencies": 0,
}
FORMS: dict[str, dict[str, Any]] = {
    "euler": {"kind": "euler", "counts": [3, 10]},
    "euler most": {"kind": "euler", "counts": [*range(1014, 1025)]},
    "euler too many": {"kind": "euler", "counts": [*range(1, 13)]},
    "direct": {"kind": "direct", **ONE_STEP},
    "direct reading": {
        "kind": "direct",
        "reads_noise": True,
        "temperature": 0,
        "noise_scale": 1.0,
        "noise_clip": None,
    },
    "tanh": {"kind": "tanh", **ONE_STEP},
    "diffusion": DIFFUSION,
    "diffusion free": DIFFUSION | {"clip": None},
    "diffusion uneven": DIFFUSION | {"z_scales": [1.0]},
    "residual": DIFFUSION | {"blocks": 1, "frequencies": 1},
    "half residual": DIFFUSION | {"blocks": 1},
    "kind unknown": {"kind": "sac"},
    "field missing": {"kind": "euler"},
    "field unknown": {"kind": "euler", "counts": [1], "colour": 1},
    "field of another": {"kind": "euler", "counts": [1], "clip": None},
}


# A policy's own way to act.
CHOICE = {"rule": "medoid:1/2", "steps": 2, "candidates": 8}
CHOICES: dict[str, Any] = {
    "choice": CHOICE,
    "choice of sizes": CHOICE | {"steps": [0.5, 0.25, 0.25]},
    "choice of equal sizes": CHOICE | {"steps": [0.25] * 4},
    "choice of nearly 1": CHOICE | {"steps": [0.5, 0.4999995]},
    "choice of too many": CHOICE | {"steps": 5},
    "choice of argmax": CHOICE | {"rule": "argmax", "candidates": 4096},
    "choice of a whole": CHOICE | {"rule": "soft:3"},
    "choice of no rule": CHOICE | {"rule": "medoid:2/4"},
    "choice of no sizes": CHOICE | {"steps": [0.5, 0.25]},
    "choice of no numbers": CHOICE | {"steps": [0.5, "x"]},
    "choice of one size": CHOICE | {"steps": [1.0]},
    "choice of a negative size": CHOICE | {"steps": [1.5, -0.5]},
    "choice of no steps": CHOICE | {"steps": 0},
    "choice of too many candidates": CHOICE | {"candidates": 4097},
    "choice lacks one": {"rule": "argmax", "steps": 1},
    "choice has one more": CHOICE | {"colour": 1},
    "choice is none": 3,
}


# What -1 and 1 stand for, of A = 1.
MAP = {"low": [-2.5], "high": [0.7]}
MAPS: dict[str, Any] = {
    "map": MAP,
    "map of a constant": {"low": [0.5], "high": [0.5]},
    "map at its bounds": {"low": [-(2.0**126)], "high": [2.0**-100]},
    "map too wide": MAP | {"high": [2.0**127]},
    "map too small": MAP | {"high": [1e-40]},
    "map the wrong way round": {"low": [1.0], "high": [-1.0]},
    "map of too many": MAP | {"low": [0.0, 0.0]},
    "map of none": MAP | {"low": []},
    "map of no numbers": MAP | {"low": ["x"]},
    "map lacks one": {"low": [0.0]},
    "map has one more": MAP | {"unit": "rad"},
    "map is none": 3,
}


# How many actions a call returns, of A = 4.
CHUNKS: tuple[Any, ...] = (2, 4, 0, 1, 3, 8, -2, 2.0, True, "2", [2], 2**31, 10**30)


# What tells observations that are out of distribution.
OOD = {"threshold": 12.5, "rate": 0.01, "measured": 0.0125}
OODS: dict[str, Any] = {
    "ood": OOD,
    "ood at its bounds": {"threshold": 3e38, "rate": 1e-9, "measured": 1},
    "ood of a threshold of 0": OOD | {"threshold": 0},
    "ood of an infinite threshold": OOD | {"threshold": 3.5e38},
    "ood of a rate of 1": OOD | {"rate": 1},
    "ood of no number": OOD | {"measured": "0"},
    "ood lacks one": {"threshold": 1.0, "rate": 0.5},
    "ood has one more": OOD | {"colour": 1},
    "ood is none": 3,
}


def seeds() -> dict[str, bytes]:
    """Return the seeds by name."""
    good = policy()
    return {
        "least": good,
        "wide": policy(O=3, A=2, H=2, D=2, E=2, q_agg="min"),
        "normalised": policy(O=2, obs_mean=[0.5, -1e-3], obs_std=[1e-3, 2.0]),
        "env": policy(env="caf\u00e9 \u20ac \U0001f600"),
        "long env": policy(env="e" * 5000),
        "fraction": policy(format=1.5),
        "large number": policy(format=10**30),
        "large bound": policy(action_high=[10**400]),
        "nan": good[:-4] + struct.pack("<f", float("nan")),
        "cut": good[: len(good) // 2],
        "empty": b"",
        "weights": struct.pack("<Q", 2) + b"{}",
        **{name: policy(form=form) for name, form in FORMS.items()},
        **{name: policy(choice=choice) for name, choice in CHOICES.items()},
        **{name: policy(action_map=value) for name, value in MAPS.items()},
        **{name: policy(O=2, ood=value) for name, value in OODS.items()},
        "ood without critics": policy(O=2, E=0, form=FORMS["direct"], ood=OOD),
        "ood of a nan": policy(O=2, ood=OOD)[:-4] + struct.pack("<f", float("nan")),
        "ood null": policy(format=6, form=None, choice=None, action_map=None, chunk=1, ood=None),
        "map beyond the networks' bounds": policy(action_map=MAP, action_low=[-2.0]),
        "map and choice": policy(action_map=MAP, choice=CHOICE),
        "map, choice and form": policy(
            action_map=MAP, form=FORMS["euler"], choice=CHOICE | {"steps": 3}
        ),
        **{f"chunk {value!r}": policy(A=4, chunk=value) for value in CHUNKS},
        "chunk, map, choice and form": policy(
            A=2,
            chunk=2,
            action_map={"low": [-2.5, 0], "high": [0.7, 1]},
            form=FORMS["euler"],
            choice=CHOICE | {"steps": 3},
        ),
        "choice and form": policy(
            form=FORMS["euler"], choice=CHOICE | {"rule": "centre", "steps": 3}, E=0
        ),
        "choice without critics": policy(form=FORMS["euler"], choice=CHOICE | {"steps": 3}, E=0),
        "choice beside the form's": policy(form=FORMS["euler"], choice=CHOICE),
        "without critics": policy(A=2, E=0, form=FORMS["diffusion"]),
        "form null": policy(format=2, m_disc=1, form=None),
        "form with steps": policy(form=FORMS["direct"], m_disc=2),
        "not UTF-8": struct.pack("<Q", 4) + b'{"\xff"',
        **{f"json {i}": policy(config_text=text) for i, text in enumerate(JSON)},
        **{
            f"end {i}": policy(config_text=text, ends_there=True)
            for i, text in enumerate(JSON_ENDS)
        },
    }


def main() -> None:
    """Write each seed as a file of its own."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
