"""`make proofs`, or `python -m proofs`, from the command line.

make proofs                                          the size for a pull request
make proofs ARGS="--size full --smollm2 FOLDER"      the size for a release, SmolLM2-135M with it
make proofs ARGS="--only light,gemma2 --kind right"  some bases; right exports alone, or controls alone
make proofs ARGS="--table"                           the table of what was recorded

It is resumable: what stands in the record is not done again. Exit code 1: a right export was refused, or a wrong one
was not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Parse, run, show."""
    parser = argparse.ArgumentParser(prog="python -m proofs", description="Is the proof of an export right?")
    parser.add_argument("--size", choices=("small", "full"), default="small", help="full: for a release")
    parser.add_argument("--only", default="", metavar="A,B", help="these bases")
    parser.add_argument("--kind", choices=("right", "controls"), help="right exports alone, or controls alone")
    parser.add_argument("--limit", type=int, help="at most so many batches of exports, evenly chosen")
    parser.add_argument("--jobs", type=int, default=1, help="batches at once")
    parser.add_argument("--smollm2", type=Path, metavar="FOLDER", help="SmolLM2-135M-Instruct, 16-bit safetensors")
    parser.add_argument("--folder", type=Path, default=Path("proofs-left"), help="for bases, runs and the record")
    parser.add_argument("--record", type=Path, help="JSON lines, one an export; in --folder if not given")
    parser.add_argument("--table", action="store_true", help="show what is recorded, do nothing")
    chosen = parser.parse_args()
    from proofs import session

    sys.exit(session.run(chosen))


if __name__ == "__main__":
    main()
