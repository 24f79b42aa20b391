#!/usr/bin/env bash
# Build the wheel, install it alone into a fresh environment as a robot would (numpy and safetensors,
# nothing else), and act from another directory. Then without a compiler and so without the native module.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$root/.venv/bin/python" -m build --quiet --no-isolation --outdir "$work/dist" "$root"
PYTHONPATH="$root/tests" "$root/.venv/bin/python" -c "
from policies import make_policy
from sorl_fast.act.policy_file import save
save('$work/policy.safetensors', make_policy(O=28, A=5, H=16))"
python3 -m venv "$work/robot"
"$work/robot/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$work"/dist/*.whl
cd "$work"
"$work/robot/bin/python" - <<'PY'
import importlib.metadata as metadata
import sys

import numpy as np

import sorl_fast
from sorl_fast import Sampler

assert "site-packages" in sorl_fast.__file__, sorl_fast.__file__
installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
extra = installed - {"sorl-fast", "numpy", "safetensors", "pip", "setuptools", "wheel"}
assert not extra, f"a robot's install grew: {extra}"
sampler = Sampler.load("policy.safetensors")
action = sampler.act(np.zeros(28, np.float32), steps=8, candidates=4, seed=1)
assert sampler.backend == "native", sampler.backend
assert action.shape == (5,) and np.isfinite(action).all()
assert np.array_equal(action, sampler.act(np.zeros(28, np.float32), steps=8, candidates=4, seed=1))
from sorl_fast.envs.bodies import ANT

expert = Sampler.load(ANT.shipped)  # the wheel has the package's own
assert np.abs(expert.act(np.zeros(29, np.float32), seed=1)).max() < 1
assert not {"torch", "triton", "gymnasium", "ogbench", "mujoco"} & set(sys.modules)
print("wheel: installed alone, acted", action.round(3))
PY
"$work/robot/bin/sorl-fast" inspect policy.safetensors >/dev/null
message=$("$work/robot/bin/sorl-fast" train --env x --q-coef 1 --data x --out x 2>&1 || true)
grep -qF "pip install 'sorl-fast[train]'" <<<"$message"

no_compiler=(env CC=/nowhere/gcc CXX=/nowhere/g++)
if message=$("${no_compiler[@]}" "$work/robot/bin/python" -m pip install --disable-pip-version-check --no-deps \
  --force-reinstall "$work"/dist/*.tar.gz 2>&1); then
  echo "wheel: installed the native module without a compiler?"
  exit 1
fi
grep -qF "SORL_FAST_NO_NATIVE=1" <<<"$message"
"${no_compiler[@]}" SORL_FAST_NO_NATIVE=1 "$work/robot/bin/python" -m pip install --quiet --disable-pip-version-check \
  --no-deps --force-reinstall "$work"/dist/*.tar.gz
"$work/robot/bin/python" - <<'PY'
import numpy as np

from sorl_fast import Sampler
from sorl_fast.errors import BadInput

sampler = Sampler.load("policy.safetensors")
assert sampler.backend == "numpy", sampler.backend
action = sampler.act(np.zeros(28, np.float32), steps=8, candidates=4, seed=1)
assert action.shape == (5,) and np.isfinite(action).all()
try:
    Sampler.load("policy.safetensors", backend="native")
except BadInput as error:
    assert "no working native module" in str(error), error
else:
    raise AssertionError("a native module is there")
print("wheel: installed without the native module, acted", action.round(3))
PY
"$work/robot/bin/sorl-fast" doctor >"$work/doctor.txt" || { cat "$work/doctor.txt"; exit 1; }
echo "wheel: ok"
