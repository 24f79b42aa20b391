"""`python -m lerobot_policy_sorl POLICY FOLDER`: a policy's file or run as a policy.path of LeRobot's."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from sorl_fast import BadInput

from .modeling_sorl import SorlPolicy


def write(source: Path, folder: Path) -> None:
    """Write a policy as LeRobot reads it, whole or not at all.

    Raises
    ------
    BadInput
        The policy cannot be read, or the folder is there or cannot be written.
    """
    policy = SorlPolicy.from_pretrained(source)
    if folder.exists():
        raise BadInput(f"{folder} is there already: give another folder, or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as err:
        raise BadInput(f"{folder} cannot be written: {err.strerror}. Give another folder") from err
    try:
        policy.save_pretrained(made)
        made.chmod(0o755)
        os.rename(made, folder)  # noqa: PTH104
    except BaseException:
        shutil.rmtree(made)
        raise


def main() -> int:
    """Read the command line; 2 says what is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m lerobot_policy_sorl", description=__doc__)
    parser.add_argument(
        "source", metavar="POLICY", type=Path, help="a policy's file or a run's folder"
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where LeRobot shall find it")
    args = parser.parse_args()
    try:
        write(args.source, args.folder)
    except BadInput as err:
        print(err, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
