"""Which fields a policy file's metadata has, and its format's number: what is read before any value.

A field that a policy need not have came with a format, and all later formats have it too. A policy is
written in the first format that has all that it needs: what needs nothing new keeps its bytes.
"""

import re
from collections.abc import Mapping
from typing import Any

from .plain import one_object
from .refusal import Words, refuse

METADATA_KEY = "sorl_fast"

# A header is parsed into many small objects, so it is bounded apart from the file: a network of a
# thousand layers stays below.
MAX_HEADER = 1 << 20

# The fields that not every format has: the first format with each, and what says nothing there.
LATER: dict[str, tuple[int, Any]] = {
    "form": (2, None),
    "choice": (3, None),
    "action_map": (4, None),
    "chunk": (5, 1),
    "ood": (6, None),
}
FORMATS = (1, *(first for first, _ in LATER.values()))

_FIRST = (
    *("format", "obs_dim", "act_dim", "hidden", "depth", "ensemble", "m_disc", "m_btt", "q_agg"),
    *("env", "action_low", "action_high", "obs_mean", "obs_std"),
)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def fields_of(number: int) -> tuple[str, ...]:
    """Return the fields of a format, in the order in which they are written."""
    later = (name for name, (first, _) in LATER.items() if first <= number)
    return (*_FIRST, *later, "config", "sha256")


def format_of(values: Mapping[str, Any]) -> int:
    """Return the number of the first format that has all that these values of `LATER` say."""
    return max([1, *(first for name, (first, none) in LATER.items() if values[name] != none)])


def needs(name: str, number: int) -> bool:
    """Whether a file of this format must say something in a field of `LATER`: it has come with it."""
    return LATER[name][0] == number


def header_of(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the safetensors header and where the tensors' bytes start."""
    if len(data) < 8:
        refuse("length", Words(f"{len(data)} bytes"), "at least 8 bytes")
    n = int.from_bytes(data[:8], "little")
    if n > min(len(data) - 8, MAX_HEADER):
        bound = f"at most {min(len(data) - 8, MAX_HEADER)} bytes in a file of {len(data)} bytes"
        refuse("header length", Words(f"{n} bytes"), bound)
    return one_object("header", data[8 : 8 + n]), 8 + n


def metadata_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `sorl_fast` object: every field there, none unknown, format and digest well formed."""
    meta = header.get("__metadata__")
    if not isinstance(meta, dict) or list(meta) != [METADATA_KEY]:
        keys = sorted(meta) if isinstance(meta, dict) else meta
        refuse("__metadata__", keys, f"an object with the one key {METADATA_KEY!r}")
    if not isinstance(meta[METADATA_KEY], str):
        refuse(METADATA_KEY, meta[METADATA_KEY], "a JSON object in a string")
    values = one_object(METADATA_KEY, meta[METADATA_KEY].encode("utf-8", "surrogatepass"))
    # an unknown format may have other fields, so it is looked at first
    if type(values.get("format")) is not int or values["format"] not in FORMATS:
        known = ", ".join(map(str, FORMATS))
        refuse("format", values.get("format"), f"{known}, those that this version reads")
    fields = fields_of(values["format"])
    for name in fields:
        if name not in values:
            refuse(name, Words("missing"), "there")
    for name in values:
        if name not in fields:
            refuse(name, values[name], f"absent: the fields are {', '.join(fields)}")
    digest = values["sha256"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        refuse("sha256", digest, "64 digits of 0-9a-f")
    return values
