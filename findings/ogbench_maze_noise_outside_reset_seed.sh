#!/usr/bin/env bash
# Expected: env.reset(seed=0) makes the same episode every time: Gymnasium's rule.
# Happens: OGBench's mazes draw the noise on start and goal from NumPy's global generator, which
#   reset(seed=...) does not touch: equal seeds, other starts. np.random.seed makes them equal.
# Versions: ogbench 1.2.2, mujoco 4.0.0, gymnasium 1.4.0, dm_control 1.0.50, numpy 2.4.6
# Date: 2026-11-29
# Matters: an evaluation that is to be the same however it is shared among workers must seed the global
#   generator before each reset.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ogbench==1.2.2 mujoco==4.0.0 gymnasium==1.4.0 dm_control==1.0.50 numpy==2.4.6
cat > "$work/maze.py" <<'PY'
import gymnasium
import mujoco
import numpy as np
import ogbench

print("ogbench", "1.2.2", "mujoco", mujoco.__version__, "gymnasium", gymnasium.__version__)
env = gymnasium.make("pointmaze-medium-v0")
starts = [env.reset(seed=0, options={"task_id": 1})[0] for _ in range(2)]
print("twice reset(seed=0):", *starts)
seeded = []
for _ in range(2):
    np.random.seed(0)
    seeded.append(env.reset(seed=0, options={"task_id": 1})[0])
print("after np.random.seed(0):", *seeded)
assert not np.array_equal(*starts)
assert np.array_equal(*seeded)
PY
cd "$work"
MUJOCO_GL=disable venv/bin/python maze.py
