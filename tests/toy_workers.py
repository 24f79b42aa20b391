"""A worker of the tests of `simulate.workers`: its process imports it from here."""

import os
import signal
import time

from sorl_fast.errors import BadInput


class Toy:
    """Squares numbers; a word makes it misbehave."""

    def __init__(self, name):
        self.name = name
        self.prepared = []

    def prepare(self, shared):
        if shared == "refuse":
            raise BadInput("nothing to be had")
        self.prepared.append(shared)

    def do(self, task):
        match task:
            case "who":
                return os.getpid(), self.name, self.prepared, os.environ["OMP_NUM_THREADS"]
            case "refuse":
                raise BadInput("a value, a bound, a remedy")
            case "fail":
                raise ValueError("no such number")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "hear":  # what the parent alone is to handle
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
                return "alive"
            case "hang":
                time.sleep(600)
            case "wait":
                time.sleep(1.5)
                return "waited"
        return task * task
