"""`make faults`, or `python -m faults`: the matrix from the command line.

make faults                                     the size for a pull request
make faults ARGS="--full"                       the size for a release
make faults ARGS="--only kill --trials 5"       a group, and how many of it
make faults ARGS="--only kill --trial 17"       one trial again
make faults ARGS="--sabotage all"               can the matrix turn red?
make faults ARGS="--baseline"                   the same faults on the plain Trainer
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # forked processes share the cores; and OpenMP does not survive a fork
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # a process cannot fork with a GPU in its hands
}


def main() -> None:
    """Parse, run, show; exit code 1 where a trial did not pass."""
    parser = argparse.ArgumentParser(prog="python -m faults", description="Real faults on the real stack.")
    parser.add_argument("--full", action="store_true", help="the size for a release instead of a pull request")
    parser.add_argument("--only", default="", metavar="A,B", help="these groups")
    parser.add_argument("--trials", type=int, help="so many of each group")
    parser.add_argument("--trial", type=int, help="this one of the group")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other moments and places")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="trials at once")
    parser.add_argument("--sabotage", metavar="NAME", help="break our own code so; `all`: each way, and expect red")
    parser.add_argument("--baseline", action="store_true", help="the plain Trainer with PEFT DoRA instead")
    parser.add_argument("--folder", type=Path, default=Path("faults-left"), help="for what failed trials leave")
    parser.add_argument("--record", type=Path, help="write all outcomes to this JSON file")
    chosen = parser.parse_args()
    os.environ.update(_ENVIRONMENT)  # before torch is imported
    from faults import session

    sys.exit(session.run(chosen))


if __name__ == "__main__":
    main()
