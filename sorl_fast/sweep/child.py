"""A command of a sweep as a process of its own: `python -m sorl_fast.sweep.child PARENT WORD...`.

What it does is `sorl-fast WORD...`. It is asked to stop, and so saves, when its parent is no more: a sweep
that was killed, or a node of a cluster that fell out, leaves nobody behind who holds the run's folder.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def die_with(parent: int) -> None:
    """Be sent SIGTERM when the parent ends, or the thread of it that has started us."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (OSError, AttributeError):
        return  # no Linux: a sweep that is killed leaves its runs running
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    from ..cli import main

    sys.exit(main(sys.argv[2:]))
