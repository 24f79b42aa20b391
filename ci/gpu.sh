#!/usr/bin/env bash
# All that is to be known of this package on a machine with a GPU, in one command of at most nine minutes,
# without a network. docs/gpu.md says what it writes.
#
#   ci/gpu.sh [--out FOLDER] [--parts NAME...] [--dry-run]
#
#   PYTHON   the interpreter that has torch, triton and numpy (python3)
#   OUT      the folder for gpu.json and gpu.log, where --out is not given (build/gpu)
set -euo pipefail
unset PYTHONSAFEPATH # gpu.py imports what lies beside it
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
