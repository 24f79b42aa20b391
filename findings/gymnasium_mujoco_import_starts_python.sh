#!/usr/bin/env bash
# Expected: importing Gymnasium's MuJoCo environments with MUJOCO_GL=disable, to render nothing, runs in the
#   process that imports them.
# Happens: gymnasium.envs.mujoco imports glfw whatever MUJOCO_GL says, and glfw starts another Python for every
#   library that it finds, to ask it for its version. With PYGLFW_LIBRARY naming the library it starts none.
# Versions: gymnasium 1.4.0, glfw 2.11.0, mujoco 4.0.0, imageio 2.38.1, packaging 26.4, numpy 2.4.6
# Date: 2026-11-30
# Matters: a simulation's worker that is killed while it starts leaves that Python behind, which ends with a
#   traceback of its own (BrokenPipeError) on the user's terminal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet gymnasium==1.4.0 glfw==2.11.0 mujoco==4.0.0 imageio==2.38.1 packaging==26.4 \
    numpy==2.4.6
cat > "$work/imports.py" <<'PY'
import sys
from importlib.metadata import version

started = []
sys.addaudithook(lambda event, args: started.append(args[1]) if event == "subprocess.Popen" else None)
import gymnasium.envs.mujoco.mujoco_rendering  # noqa: E402, F401

print(*(f"{name} {version(name)}" for name in ("gymnasium", "glfw", "mujoco")))
print("Pythons started by the import:", sum(words[0] == sys.executable for words in started))
raise SystemExit(len(started) != int(sys.argv[1]))
PY
library=$(echo "$work"/venv/lib/python3*/site-packages/glfw/x11/libglfw.so)
export MUJOCO_GL=disable
"$work/venv/bin/python" "$work/imports.py" 1
echo "with PYGLFW_LIBRARY:"
PYGLFW_LIBRARY=$library "$work/venv/bin/python" "$work/imports.py" 0
