#!/usr/bin/env bash
# Expected: on a machine with AVX-512, where torch.backends.cpu.get_cpu_capability() says AVX512, a sum or mean of
#   float32 numbers is added 16 lanes at a time, and so has other last bits than on a machine with AVX2.
# Happens: it is added 8 lanes at a time on both, and has the same bits, also without vectors (DEFAULT).
# Versions: torch 2.13.0 (CPU), numpy 2.4.6
# Date: 2026-11-30
# Matters: what makes such sums again, bit for bit, as a replayed training step does, must not take the number of
#   lanes from the capability; and sums on an AVX-512 machine can be held against an AVX2 one's to the last bit.
set -euo pipefail
grep -q avx512f /proc/cpuinfo || { echo "this machine has no AVX-512: nothing to show"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/sums.py" <<'PY'
import hashlib
import sys

import numpy as np
import torch

random, sums, lanes = np.random.default_rng(0), hashlib.sha256(), {8: 0, 16: 0}
for n in (64, 128, 256) * 50:
    x = np.exp(random.standard_normal(n, np.float32))
    found = torch.from_numpy(x).sum().numpy()
    sums.update(found.tobytes())
    for wide in lanes:  # four vectors beside each other, then these, then the lanes
        four = np.zeros((4, wide), np.float32)
        for part in x.reshape(-1, 4, wide) if n % (4 * wide) == 0 else []:
            four += part
        total = np.float32(0)
        for lane in ((four[0] + four[1]) + four[2]) + four[3]:
            total += lane
        lanes[wide] += int(total == found)
print(torch.__version__, torch.backends.cpu.get_cpu_capability(), f"as 8 lanes: {lanes[8]}, as 16: {lanes[16]} of 150")
print(sums.hexdigest()[:16], file=sys.stderr)
raise SystemExit(0 if lanes[8] == 150 and lanes[16] < 150 else 1)
PY
cd "$work"
for capability in avx512 avx2 default; do
    ATEN_CPU_CAPABILITY=$capability venv/bin/python sums.py 2> $capability
done
cmp avx512 avx2 && cmp avx512 default && echo "the same bits in all"
