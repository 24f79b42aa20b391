"""What the children of the tests of `isolated` do."""

import os
import signal
import subprocess
import sys
import time

from sorl_fast.isolated import Unavailable


def work(item, note):
    note(f"item {item['n']}")
    match item["do"]:
        case "ok":
            print("a kernel prints")
            return {"status": "ok", "reason": "", "pid": os.getpid(), "n": item["n"]}
        case "disagree":
            return {"status": "disagrees", "reason": "numbers"}
        case "harmless":
            return {"status": "failed", "reason": "not installed", "harmless": True}
        case "raise":
            raise ValueError("two\nlines")
        case "exit":
            print("last words", file=sys.stderr)
            sys.stderr.flush()
            os._exit(item.get("code", 3))
        case "signal":
            os.kill(os.getpid(), getattr(signal, item["name"]))
        case "hang":
            time.sleep(60)
        case "hang with a child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            note(f"child {child.pid}")
            time.sleep(60)
        case "slow":
            for i in range(4):
                time.sleep(0.4)
                note(f"part {i}")
            return {"status": "ok", "reason": ""}
        case "unavailable":
            raise Unavailable("no device")
        case "environment":
            return {"status": "ok", "reason": "", "value": os.environ.get("SORL_TEST_WORD")}
    return {"status": "ok", "reason": ""}
