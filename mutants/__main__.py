"""`make mutants`, or `python -m mutants`: the list of faults from the command line.

make mutants                               every fault whose result is not known yet
make mutants ARGS="--only me-own,nf-mean"  these
make mutants ARGS="--again --jobs 1"       all, whatever is known, one at a time
make mutants ARGS="--list mine.toml"       another list
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import tempfile
from pathlib import Path

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # forked processes share the cores; and OpenMP does not survive a fork
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # a process cannot fork with a GPU in its hands
    "TRITON_INTERPRET": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # two faults within one second: Python would take the first one's bytecode
}


def main() -> None:
    """Parse, run, show; exit code 1 where a fault is neither killed nor equivalent."""
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(prog="python -m mutants", description="Would the tests notice?")
    parser.add_argument("--list", type=Path, default=Path(__file__).parent / "faults.toml", help="of faults, in TOML")
    parser.add_argument("--only", default="", metavar="ID,ID", help="these faults")
    parser.add_argument("--tests", nargs="+", default=[], help="these instead of those that stand for the module")
    parser.add_argument("--again", action="store_true", help="also those whose result is known")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="faults at once")
    parser.add_argument("--seconds", type=int, default=240, help="of CPU that the tests of a fault may take")
    parser.add_argument("--results", type=Path, default=root / ".cache" / "mutants.json", help="what is known")
    parser.add_argument("--root", type=Path, default=root, help="the project")
    chosen = parser.parse_args()
    os.environ.update(_ENVIRONMENT)  # before torch is imported
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"  # PyTorch's own choice
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))  # each fork has another TMPDIR
    from mutants import session

    sys.exit(session.run(chosen))


if __name__ == "__main__":
    main()
