"""Raises constraints.txt to the newest versions that resolve together, and says what moved and what holds the rest back
(`make lock-newest`, which then writes the locks).

uv decides: everything that pyproject.toml names, for a GPU, is resolved without constraints.txt. What stays below its
newest release is asked for alone once more, and uv's refusal names the package that does not take it. Not decided here:
the bounds of pyproject.toml, and whether anything still works; that is `make clean && make test`, and a person.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from locks.extras import CUDA
from locks.make_locks import BUILDS_OTHERS, ROOT, asked

EVERYTHING = ("--extra", "gpu", "--extra", "dev", "--extra", "docs")
OURS = "pyproject.toml"


def main() -> int:
    """Write constraints.txt and print the table; 1, and nothing written, where the index or uv has no answer."""
    path = ROOT / "constraints.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    old = {_name(line): line.split("==")[1] for line in lines if _is_pin(line)}
    build = ["hatchling", "uv", *BUILDS_OTHERS]
    new = {name: version for name, version in _resolved(build, *EVERYTHING).items() if not name.startswith(CUDA)}
    newest = _resolved(new, "--no-deps")
    path.write_text("\n".join(_rewritten(lines, old, new)) + "\n", encoding="utf-8")
    _print_moves(old, new)
    behind = [name for name in sorted(new) if Version(new[name]) < Version(newest[name])]
    for name in behind:
        print(f"  {name} {new[name]}, newest {newest[name]}: {_held_by(name, newest[name], build)}")
    print(f"{len(new)} packages, {len(behind)} below their newest release; next: make clean && make test")
    return 0


def _resolved(names: Iterable[str], *options: str) -> dict[str, str]:
    """Version by plain name.

    Raises:
        SystemExit: with uv's own words; whether the index did not answer or nothing fits is told apart.
    """
    done = asked(names, "--upgrade", *options)
    if done.returncode:
        what = "finds no set of packages" if "No solution found" in done.stderr else "got no answer from the index"
        raise SystemExit(f"uv {what}; constraints.txt is as it was:\n{done.stderr.strip()}")
    versions: dict[str, str] = {}
    for need in (Requirement(line) for line in done.stdout.splitlines() if "==" in line):
        name, version = _name(need.name), str(need.specifier).removeprefix("==")
        versions[name] = min(version, versions.get(name, version), key=Version)  # one that all accepted Pythons take
    return versions


def _rewritten(lines: list[str], old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """The lines of constraints.txt with the new versions; what is new stands at the end, what is gone is left out."""
    for line in lines:
        name = _name(line)
        if not _is_pin(line):
            yield line
        elif name in new:
            yield f"{line.split('==')[0]}=={new[name]}"
    yield from (f"{name}=={version}" for name, version in sorted(new.items()) if name not in old)


def _print_moves(old: dict[str, str], new: dict[str, str]) -> None:
    moves = [(name, old.get(name, "-"), new.get(name, "-")) for name in sorted({*old, *new})]
    for name, before, after in moves:
        if before != after:
            print(f"  {name:<28}{before:>18} -> {after}")


def _held_by(name: str, version: str, build: Iterable[str]) -> str:
    """What does not take this version, in uv's words."""
    refusal = " ".join(asked([*build, f"{name}=={version}"], *EVERYTHING).stderr.split()).split(" depends on ")
    holds: dict[str, None] = {}
    for before, after in itertools.pairwise(refusal):
        who = OURS if (subject := before.split()[-1]).startswith("qdora-fast") else subject
        for bound in re.findall(rf"\b{re.escape(name)}((?:[<>=!~]=?[^\s,]+,?)+)", after):
            if not bound.startswith(f"=={version}"):
                holds[f"{who} takes {bound.rstrip(',')}"] = None
    return "; ".join(holds) or "with it others would be older"


def _name(line: str) -> str:
    return canonicalize_name(line.split("==")[0])


def _is_pin(line: str) -> bool:
    return "==" in line and not line.startswith("#")


if __name__ == "__main__":
    sys.exit(main())
