#!/usr/bin/env bash
# Expected: importing a library leaves alone which cores the process may run on.
# Happens: with OMP_PROC_BIND=true `import torch` pins the importing thread, and with it every thread and
#   process that it starts later, to one core: its OpenMP runtime binds the initial thread as it loads.
# Versions: torch 2.13.0 (CPU build, libgomp), numpy 2.4.6
# Date: 2026-11-29
# Matters: clusters set OMP_PROC_BIND for everyone. len(os.sched_getaffinity(0)) is 1 from then on, and own
#   threads and worker processes share that core. What is there must be asked before torch is imported.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/cores.py" <<'PY'
import os
import subprocess
import sys

before = len(os.sched_getaffinity(0))
import torch

after = len(os.sched_getaffinity(0))
ask = "import os; print(len(os.sched_getaffinity(0)))"
child = int(subprocess.check_output([sys.executable, "-c", ask]))
print(f"torch {torch.__version__}, OMP_PROC_BIND={os.environ.get('OMP_PROC_BIND')}: "
      f"{before} cores before the import, {after} after it, {child} in a child")
if before == 1:
    print("SKIPPED: this takes a machine with two cores")
elif os.environ.get("OMP_PROC_BIND"):
    assert after == child == 1
else:
    assert after == child == before
PY
cd "$work"
env -u OMP_PROC_BIND venv/bin/python cores.py
OMP_PROC_BIND=true venv/bin/python cores.py
