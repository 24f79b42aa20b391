#!/usr/bin/env bash
# Tests the plugin with the newest LeRobot that installs here, in a virtual environment of its own, for
# LeRobot pins other versions than sorl-fast's tests:
#
#   integrations/lerobot/test.sh [ARGUMENTS OF PYTEST...]
#
# It is kept in VENV (build/lerobot): a second run is quick. Several gigabytes are downloaded, for LeRobot
# asks for PyTorch with CUDA.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${VENV:-build/lerobot}
if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check lerobot pytest pyarrow
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check . integrations/lerobot
"$venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -iE "^(lerobot|sorl|torch) "
cd integrations/lerobot
HF_HUB_OFFLINE=1 "../../$venv/bin/python" -m pytest -q tests "$@"
