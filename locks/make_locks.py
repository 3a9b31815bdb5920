"""Writes the lock files beside it: every file of every release that constraints.txt names, by SHA-256 (`make lock`).

uv resolves pyproject.toml within constraints.txt for all machines named in [tool.uv], and takes the hashes from the
package index; nothing but the index's word is asked, no package is downloaded. Versions are decided in
constraints.txt alone: a package that is needed and not pinned there stops the writing. Left to the lock are the CUDA
packages, which follow from torch.

base.txt   what runs the package, torch left out: its CPU build comes from elsewhere than its CUDA build
gpu.txt    what a GPU adds to base.txt, torch among it; with base.txt it is the extra `tested-gpu` (extras.py)
dev.txt    what the tests and the further commands (MMLU, GGUF, serve) add to base.txt
build.txt  what builds the packages that come as source, and this one
docs.txt   what builds the documentation site and is in none of the others
uv.txt     uv itself, which finds the CPU build of torch and makes these files
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.extras import CUDA

HERE = Path(__file__).parent
ROOT = HERE.parent
MACHINES = [
    {"python_version": version, "python_full_version": f"{version}.0", "platform_machine": machine,
     "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
     "platform_python_implementation": "CPython", "extra": ""}
    for version, machine in itertools.product(("3.11", "3.12", "3.13"), ("x86_64", "aarch64"))
]  # fmt: skip
BUILDS_OTHERS = ("editables", "setuptools")
HEADER = "# {what}\n# Written by `make lock` from constraints.txt and pyproject.toml; not by hand.\n"

Lock = dict[str, tuple[str, list[str]]]
"""By plain name: the requirement as pip reads it, and the hashes of all files of that release."""


def main() -> int:
    """Write the six files, or say what is not pinned and write none."""
    unsloth = hashed(["unsloth", "unsloth_zoo"], "--no-deps")  # without what they ask for: see pyproject.toml
    on_gpu = hashed(None, "--extra", "gpu")
    cuda = {name for name in on_gpu if name == "torch" or name.startswith(CUDA)}
    base = _without(hashed(None, "--extra", "cpu") | unsloth, cuda | {"triton"})  # only torch for CUDA asks for triton
    dev = _without(hashed(None, "--extra", "cpu", "--extra", "dev"), base.keys() | cuda)
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = hashed([*told["build-system"]["requires"], *BUILDS_OTHERS])
    docs = _without(hashed(None, "--extra", "docs"), base.keys() | dev.keys() | cuda)
    files = {
        "base.txt": ("What runs the package, apart from torch.", base),
        "gpu.txt": ("What a GPU adds to base.txt; no GPU has run it yet.", _without(on_gpu, base)),
        "dev.txt": ("What the tests and the further commands add to base.txt.", dev),
        "build.txt": ("What builds this package, and those that come as source.", build),
        "docs.txt": ("What `make docs` adds to base.txt.", docs),
        "uv.txt": ("Finds the CPU build of torch, and makes the lock files.", hashed(["uv"])),
    }
    pinned = _pins()
    entries = itertools.chain.from_iterable(lock.items() for _, lock in files.values())
    loose = [line for name, (line, _) in entries if name not in pinned and not name.startswith(CUDA)]
    if loose:
        print("These are needed and not in constraints.txt; add what is to be used, then `make lock` again:")
        print("\n".join(sorted(set(loose))))
        return 1
    for file, (what, lock) in files.items():
        (HERE / file).write_text(HEADER.format(what=what) + _text(lock), encoding="utf-8")
        print(f"locks/{file}: {len(lock)} packages, {sum(len(hashes) for _, hashes in lock.values())} files")
    return 0


def hashed(names: Iterable[str] | None, *options: str) -> Lock:
    """The resolution of some packages, or of this one (None), with hashes, for every machine of [tool.uv]."""
    done = asked(names, "--generate-hashes", "--constraints", "constraints.txt", *options)
    if done.returncode:
        raise SystemExit(f"uv finds no set of packages that fits constraints.txt:\n{done.stderr}")
    lock: Lock = {}
    for entry in done.stdout.replace("\\\n", " ").splitlines():
        line, *hashes = entry.split("--hash=")
        need = Requirement(line.strip())
        holds = [not need.marker or need.marker.evaluate(machine) for machine in MACHINES]
        if any(holds):
            need.marker = None if all(holds) else _short(need.marker, holds)
            lock[canonicalize_name(need.name)] = (str(need), sorted(text.strip() for text in hashes))
    return lock


def asked(names: Iterable[str] | None, *options: str) -> subprocess.CompletedProcess[str]:
    """uv's resolution of some packages and, where --extra stands in `options` or names is None, of this one."""
    sources = ["pyproject.toml"] if names is None or "--extra" in options else []
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
               "--no-build-isolation-package", "qdora-fast", "--no-annotate", "--no-header",
               *options, *sources]  # fmt: skip
    return subprocess.run(
        [*command, "-"] if names is not None else command,
        cwd=ROOT, input="\n".join(names or ()), capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip


def _short(marker: Marker | None, holds: list[bool]) -> Marker | None:
    """The same condition without what is true of all machines here."""
    for machine in ("x86_64", "aarch64"):
        if holds == [each["platform_machine"] == machine for each in MACHINES]:
            return Marker(f'platform_machine == "{machine}"')
    return marker


def _pins() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line and not line.startswith("#")}


def _without(lock: Lock, names: Iterable[str]) -> Lock:
    gone = set(names)
    return {name: entry for name, entry in lock.items() if name not in gone}


def _text(lock: Lock) -> str:
    return "".join(
        " \\\n    ".join([line, *(f"--hash={each}" for each in hashes)]) + "\n" for line, hashes in lock.values()
    )


if __name__ == "__main__":
    sys.exit(main())
