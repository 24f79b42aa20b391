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
    **changes: Any,
) -> bytes:
    """Return a policy file of random weights; `changes` replace metadata fields."""
    shapes: dict[str, list[int]] = {}
    for network, inputs, outputs in (("actor", O + A + 2, A), ("critic", O + A + 1, 1)):
        axis = [E] if network == "critic" else []
        widths = [inputs, *[H] * D, outputs]
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            shapes[f"{network}/{i}/w"] = [*axis, fan_in, fan_out]
            for part in "b" if network == "actor" or i == D else "bgc":
                shapes[f"{network}/{i}/{part}"] = [*axis, fan_out]
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
    meta = {
        "format": 1,
        "obs_dim": O,
        "act_dim": A,
        "hidden": H,
        "depth": D,
        "ensemble": E,
        "m_disc": 2,
        "m_btt": 1,
        "q_agg": "mean",
        "env": "e",
        "action_low": [-1.0] * A,
        "action_high": [1.0] * A,
        "obs_mean": None,
        "obs_std": None,
        "config": {},
        "sha256": "0" * 64,
    }
    text = json.dumps(meta | changes, separators=(",", ":"), ensure_ascii=False)
    head = json.dumps(
        {"__metadata__": {"sorl_fast": text}, **entries}, separators=(",", ":")
    ).encode()
    file = struct.pack("<Q", len(head)) + head + data
    digest = hashlib.sha256(file).hexdigest().encode()
    at = file.rindex(b"0" * 64, 0, 8 + len(head))
    return file[:at] + digest + file[at + 64 :]


def seeds() -> dict[str, bytes]:
    """Return the seeds by name."""
    good = policy()
    config = {"a": [1, -2.5e-3, True, False, None, {"b": '\u00e9\n\\"\U0001f600'}]}
    return {
        "least": good,
        "wide": policy(O=3, A=2, H=2, D=2, E=2, q_agg="min"),
        "normalised": policy(O=2, obs_mean=[0.5, -1e-3], obs_std=[1e-3, 2.0]),
        "config": policy(config=config, env="caf\u00e9"),
        "nan": good[:-4] + struct.pack("<f", float("nan")),
        "cut": good[: len(good) // 2],
        "empty": b"",
        "weights": struct.pack("<Q", 2) + b"{}",
    }


def main() -> None:
    """Write each seed as a file of its own."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
