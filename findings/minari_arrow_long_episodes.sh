#!/usr/bin/env bash
# Expected: an episode read from a Minari data set is the one that was written, in every storage format.
# Happens: with data_format="arrow" an episode of 40,000 steps reads as its first 32,767, and the episodes behind it
#   as further parts of it, without a word: the reader pairs episodes with record batches, which end at 32,768 rows.
# Versions: minari 0.5.4, pyarrow 26.0.1, h5py 3.16.0, pillow 13.0.0, gymnasium 1.4.0, numpy 2.4.6
# Date: 2026-11-29
# Matters: what trains on such data learns from other states, actions and rewards than those recorded. An importer
#   must compare every episode's length with that in its metadata, as ours does, and refuse.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet minari==0.5.4 pyarrow==26.0.1 h5py==3.16.0 pillow==13.0.0 gymnasium==1.4.0 numpy==2.4.6
cat > "$work/long.py" <<'PY'
import warnings
from importlib.metadata import version

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

LENGTHS = [40_000, 5, 3]
box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


def episode(i, T):
    return EpisodeBuffer(
        id=i, observations=np.full((T + 1, 1), i, np.float32), actions=np.zeros((T, 1), np.float32),
        rewards=[0.0] * T, terminations=[False] * T, truncations=[False] * (T - 1) + [True],
    )


print(*(f"{name} {version(name)}" for name in ("minari", "pyarrow", "gymnasium", "numpy")), sep=", ")
found = {}
for kind in ("hdf5", "arrow"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            f"long/{kind}-v0", [episode(i, T) for i, T in enumerate(LENGTHS)],
            observation_space=box, action_space=box, data_format=kind,
        )
    episodes = minari.load_dataset(f"long/{kind}-v0").iterate_episodes()
    found[kind] = [(len(e.rewards), float(np.ravel(e.observations)[0])) for e in episodes]
    print(f"{kind}: (steps, what every observation is) {found[kind]}; written {list(zip(LENGTHS, [0.0, 1.0, 2.0]))}")
assert found["hdf5"] == list(zip(LENGTHS, [0.0, 1.0, 2.0]))
assert found["arrow"] == [(32767, 0.0), (7232, 0.0), (5, 1.0)], found["arrow"]
PY
MINARI_DATASETS_PATH="$work/datasets" "$work/venv/bin/python" "$work/long.py"
