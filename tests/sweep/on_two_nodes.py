"""Run by test_ray.py: a sweep on a Ray cluster of two nodes of this machine, one of which is killed.

on_two_nodes.py WORD...: the words of `sorl-fast sweep`, with an absolute --out. The node on which a job has
saved its first checkpoint is killed, with all that runs there; then another one joins.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster


def processes():
    """Parents of all processes, and their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            found[int(path.name)] = (
                int((path / "stat").read_text().rpartition(")")[2].split()[1]),
                words,
            )
        except OSError:
            continue
    return found


def below(root, found):
    """Every process that descends from `root`."""
    done = {root}
    while more := {pid for pid, (parent, _) in found.items() if parent in done} - done:
        done |= more
    return done - {root}


def node_of_first_checkpoint(nodes, out):
    """Wait for a checkpoint; return the node on which it was made, and what runs there."""
    # (a glob of ** would look into folders of a moment, and fail where one is gone by then)
    while not (saved := sorted(out.glob("mine/bc/seed*/checkpoints/0*"))):
        time.sleep(0.02)
    folder = str(saved[0].parent.parent).encode()
    found = processes()
    (child,) = (pid for pid, (_, words) in found.items() if folder in words)
    for node in nodes:
        own = below(node.all_processes["raylet"][0].process.pid, found)
        if child in own:
            return node, own
    raise SystemExit("no node runs that job")


if __name__ == "__main__":
    words = sys.argv[1:]
    out = Path(words[words.index("--out") + 1])
    # a node that is no more is given up after 5 seconds, not 15; a slow one is given time as ever
    head = {"num_cpus": 0, "_system_config": {"health_check_period_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    command = [sys.executable, "-m", "sorl_fast.cli", "sweep", *words, "--engine", "ray"]
    sweep = subprocess.Popen([*command, "--address", cluster.address])
    node, own = node_of_first_checkpoint(nodes, out)
    for pid in (node.all_processes["raylet"][0].process.pid, *own):  # as a power cut does
        os.kill(pid, signal.SIGKILL)
    print("killed a node", flush=True)
    cluster.add_node(num_cpus=1)
    code = sweep.wait()
    cluster.shutdown()
    sys.exit(code)
