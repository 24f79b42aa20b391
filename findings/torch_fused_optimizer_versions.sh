#!/usr/bin/env bash
# Expected: an optimiser's step writes to its parameters in place, so each parameter's version counter rises, as
#   with foreach=True and foreach=False. Autograd then refuses to go backward through values that were saved
#   before the step, and who keeps something made of a parameter sees by the version that it is old.
# Happens: with fused=True, on the CPU, Adam, AdamW and SGD change the parameters and leave their versions as they
#   were. A backward through values saved before the step raises nothing, and gives the gradient by the new ones.
# Versions: torch 2.13.0 (CPU build), numpy 2.4.6
# Date: 2026-11-30
# Matters: packed copies of the weights are made anew where a version has changed. IDQL's AdamW is such a fused
#   step: after it the packed copies would stay those of the weights before. Whoever calls
#   a fused step increments the versions (torch.autograd.graph.increment_version).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/env/bin/python" - <<'PY'
import torch

print("torch", torch.__version__)
seen = {}
for name in ("SGD", "Adam", "AdamW"):
    for how in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        w = torch.nn.Parameter(torch.tensor([2.0]))
        optimizer = getattr(torch.optim, name)([w], lr=0.5, **how)
        loss = (w * w).sum()  # saves w, for its gradient is 2 w
        w.grad = torch.ones(1)
        before = w._version
        optimizer.step()
        try:
            (grad,) = torch.autograd.grad(loss, w)
            backward = f"gives {grad.item():g} at w = 2"
        except RuntimeError:
            backward = "raises"
        seen[name, *how.items()] = w._version - before, backward
        print(f"{name}({how}): w is {w.item():g}, version +{w._version - before}; backward {backward}")

for (_, (kind, on)), (rise, backward) in seen.items():
    fused = kind == "fused" and on
    assert (rise == 0) == fused, "versions behave otherwise now"
    assert (backward == "raises") != fused, "backward behaves otherwise now"
PY
