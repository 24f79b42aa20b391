#!/usr/bin/env bash
# Expected: gymnasium.make("online-antball-v0") makes an environment that renders nothing, as
#   make("online-ant-v0") does and as render_mode=None asks for.
# Happens: its constructor renders a picture and turns the camera, so that making it raises
#   AttributeError unless a render_mode is given, which then needs a display or EGL. With `render`
#   overridden it simulates as it should.
# Versions: ogbench 1.2.2, mujoco 4.0.0, gymnasium 1.4.0, dm_control 1.0.50, numpy 2.4.6
# Date: 2026-11-29
# Matters: an expert that dribbles is trained on machines without a display; ours overrides `render`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ogbench==1.2.2 mujoco==4.0.0 gymnasium==1.4.0 dm_control==1.0.50 numpy==2.4.6
cat > "$work/antball.py" <<'PY'
from types import SimpleNamespace

import gymnasium
import mujoco
import ogbench.online_locomotion
from ogbench.online_locomotion.ant_ball import AntBallEnv

print("ogbench", "1.2.2", "mujoco", mujoco.__version__, "gymnasium", gymnasium.__version__)
print("online-ant-v0:", gymnasium.make("online-ant-v0", disable_env_checker=True).observation_space.shape)
try:
    gymnasium.make("online-antball-v0", disable_env_checker=True)
except AttributeError as error:
    print("online-antball-v0:", type(error).__name__, error)
else:
    raise SystemExit("online-antball-v0 is made without a display now")


class Unseen(AntBallEnv):
    def render(self):
        camera = SimpleNamespace(lookat=[0, 0, 0], distance=0, elevation=0)
        self.mujoco_renderer = SimpleNamespace(viewer=SimpleNamespace(cam=camera), close=lambda: None)


env = Unseen()
env.reset(seed=0)
observation = env.step(env.action_space.sample())[0]
print("with render overridden:", observation.shape)
assert observation.shape == (42,)
PY
cd "$work"
MUJOCO_GL=disable venv/bin/python antball.py
