"""JSON of a policy file: one object, and the training's settings in it as plain values, bounded."""

import json
from typing import Any

from .refusal import Words, refuse

# What bounds the memory of the native runtime's reader.
_MAX_LEVELS = 60
_MAX_KEYS = 256


def is_text(value: str, most: int) -> bool:
    """Whether `value` has at most `most` bytes of UTF-8, and no half of a surrogate pair."""
    try:
        return len(value.encode()) <= most
    except UnicodeEncodeError:
        return False


def plain(config: Any) -> dict[str, Any]:
    """Return a copy of `config` as JSON would give it back, keys in order."""
    try:
        text = json.dumps(config, sort_keys=True, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as err:
        refuse("config", type(config).__name__, f"a dict of plain finite JSON values ({err})")
    copy = json.loads(text)
    if not isinstance(copy, dict):
        refuse("config", copy, "a dict")
    layer: list[Any] = [copy]  # the lists and dicts of one level
    for level in range(_MAX_LEVELS + 1):
        if level == _MAX_LEVELS and layer:
            refuse("config", Words("nested deeper"), f"at most {_MAX_LEVELS} levels deep")
        dicts = [value for value in layer if isinstance(value, dict)]
        for keys in dicts:
            if len(keys) > _MAX_KEYS or not all(is_text(key, _MAX_KEYS) for key in keys):
                bound = f"at most {_MAX_KEYS} keys in each dict, each of at most {_MAX_KEYS} bytes"
                refuse("config", keys, bound)
        lists = [value for value in layer if isinstance(value, list)]
        values = [v for inner in (*lists, *(d.values() for d in dicts)) for v in inner]
        layer = [v for v in values if isinstance(v, dict | list)]
    return copy


def one_object(name: str, text: bytes) -> dict[str, Any]:
    """Parse one JSON object without repeated keys; the check of its field refuses Python's NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a key appears twice")
        return values

    try:
        values = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as err:
        refuse(name, Words(f"{len(text)} bytes"), f"one JSON object ({err})")
    if not isinstance(values, dict):
        refuse(name, values, "one JSON object")
    return values
