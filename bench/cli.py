"""`sorl-bench NAME ...`: one file a benchmark, each with `run(argv) -> exit code`.

Exit codes: 0 well, 1 a wrong result or a broken promise, 2 bad input.
"""

import importlib
import sys
import time
from collections.abc import Sequence

from ..errors import BadInput
from .harness import Disagreement

BENCHMARKS = {
    "collect": "steps a second of the collection, one worker against two",
    "sampler": "microseconds an action, here and with PyTorch, ONNX Runtime, OpenVINO",
    "denormals": "what denormal numbers cost the native sampler",
    "placement": "reading weights from pages as they came, and from those that the cache holds",
    "overhead": "what Python adds to a native call of the sampler",
    "choosing": "what each rule of choosing takes, and what a schedule of steps saves",
    "loop": "a control loop's jitter and missed deadlines",
    "train": "one training update of any method: torch eager and compiled, sorl-fast, fp32 and bf16",
    "kernels": "registers, stack and shared memory of each GPU kernel, against its budget; no GPU needed",
    "gpu": "on a GPU: its limits, then rollout, best-of-N and the training update against PyTorch",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; the console script `sorl-bench`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] not in BENCHMARKS:
        print("usage: sorl-bench NAME [options]   (sorl-bench NAME --help for a benchmark's own)")
        for name, text in BENCHMARKS.items():
            print(f"  {name:10s} {text}")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    started = time.monotonic()
    try:
        code = int(importlib.import_module(f".{argv[0]}", __package__).run(argv[1:]))
        print(f"sorl-bench {argv[0]}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        return code
    except BadInput as err:
        print(f"sorl-bench {argv[0]}: {err}", file=sys.stderr)
        return err.exit_code
    except Disagreement as err:
        print(f"sorl-bench {argv[0]}: {err}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as err:
        print(
            f"sorl-bench {argv[0]}: {err.name} is not installed: pip install 'sorl-fast[train]'",
            file=sys.stderr,
        )
        return BadInput.exit_code


if __name__ == "__main__":
    sys.exit(main())
