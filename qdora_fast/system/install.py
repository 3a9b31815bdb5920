"""How this package was installed, and the commands that add to it: every "install this" message comes from here.

A command must fit the environment that it is typed for: in a checkout `make` knows the way, a tool's environment
belongs to uv or pipx, a project's to its lock, a notebook has magics, and an environment that uv made has no pip. What
tells them apart lies on disk: the Makefile beside the package, the receipts of uv and pipx in the environment,
INSTALLER and direct_url.json beside the installed package. Versions are those of constraints.txt, which comes along.

Not known here: conda and poetry, whose environments have pip; what it installs there is not in their own lists.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qdora_fast import __version__
from qdora_fast.system import hardware
from qdora_fast.system.child import INTERPRETER
from qdora_fast.system.json_files import parse_json

NAME = "qdora-fast"
UNSLOTH = ("unsloth", "unsloth_zoo")
TESTED = {"gpu": "tested-gpu", "cpu": "tested-cpu"}
_PACKAGE = Path(__file__).parent.parent
_PASSING = re.compile(r"(archive|builds|environments)-v\d+")
"""Folders in uv's cache that hold the environments of `uvx` and `uv run --with`, which do not stay."""

Way = Literal["make", "pip", "uv", "uv tool", "uv project", "pipx"]


@dataclass(frozen=True)
class Installation:
    """One installed copy of this package: who manages its environment, and how it is named there."""

    way: Way
    environment: Path
    checkout: Path | None = None
    """Its folder, where the package is used from a checkout."""
    source: str = ""
    """Address that it was installed from; "" for the package index."""
    extras: tuple[str, ...] = ()
    """That a tool's receipt names: a tool is installed anew with all of them."""
    notebook: bool = False
    """The lines are typed into a cell."""

    def adds(self, *extras: str) -> str:
        """The lines that add extras of this package in the tested versions."""
        wanted = sorted({*extras, *self.extras})
        device = next((device for device in ("gpu", "cpu") if {device, TESTED[device]} & {*wanted}), "")
        if self.way == "make" and device:
            profile = " PROFILE=gpu" if device == "gpu" else ""
            return f"{self._in_checkout()}make clean && make install{profile}"
        backend = {"gpu": " --torch-backend=auto", "cpu": " --torch-backend=cpu"}.get(device, "")
        lines = self._install(self._named(wanted), backend=backend, pinned=TESTED.get(device) not in wanted)
        if device == "cpu":  # its own requirements have no build for the CPU
            lines += self._install(*(f'"{name}{_exactly(name)}"' for name in UNSLOTH), options=" --no-deps")
        return self._joined(lines)

    def adds_packages(self, *needs: str, without_dependencies: Sequence[str] = ()) -> str:
        """The lines that bring other packages to a version.

        Args:
            needs: requirements, as `peft==0.21.2`.
            without_dependencies: requirements whose own requirements are left out.
        """
        lines = self._install(*(f'"{need}"' for need in needs)) if needs else []
        if without_dependencies:
            lines += self._install(*(f'"{need}"' for need in without_dependencies), options=" --no-deps")
        return self._joined(lines)

    def repairs(self, path: Path) -> str:
        """The line that brings a file or folder of this package back as it was shipped."""
        if self.checkout:
            return f"git -C {_shown(self.checkout)} checkout -- {shlex.quote(os.path.relpath(path, self.checkout))}"
        return self._joined(self._install(self._named(()), options=" --force-reinstall --no-deps"))

    def _named(self, extras: Sequence[str]) -> str:
        """This package with extras, as the installer here takes it."""
        inside = f"[{','.join(extras)}]" if extras else ""
        if self.checkout and self.way != "make":
            return f'-e "{self.checkout}{inside}"'
        return f'"{NAME}{inside} @ {self.source}"' if self.source else f'"{NAME}{inside}=={__version__}"'

    def _install(self, *needs: str, options: str = "", backend: str = "", pinned: bool = True) -> list[str]:
        """The lines that install some requirements.

        Args:
            options: of pip and uv alike.
            backend: uv's choice of a torch build; pip has none, so a build for the CPU is left to uv.
            pinned: hold everything else at the tested versions.
        """
        file = constraints_file()
        held = f" -c {_shown(file)}" if pinned and file and "--no-deps" not in options else ""
        wanted = f"{options}{held} {' '.join(needs)}"
        python = _shown(Path(INTERPRETER))
        with_uv = f"uv pip install --python {python}{backend}{wanted}"
        if self.way == "uv tool" and not options and needs[0].startswith(f'"{NAME}'):
            return [f"uv tool install{backend}{wanted}"]
        if self.way == "uv project" and not options:
            return [f"uv add --project {_shown(self.environment.parent)}{wanted}"]
        if self.way in ("uv", "uv tool", "uv project"):
            return [with_uv]
        pip = f"pipx runpip {self.environment.name}" if self.way == "pipx" else f"{python} -m pip"
        pip = "%pip" if self.notebook and self.way == "pip" else pip
        if backend.endswith("=cpu"):
            return [f"{pip} install uv", f"{python} -m {with_uv}"]
        return [f"{pip} install{wanted}"]

    def _in_checkout(self) -> str:
        here = self.checkout is None or self.checkout == Path.cwd()
        return "" if here else f"cd {_shown(self.checkout or Path())} && "

    def _joined(self, lines: Sequence[str]) -> str:
        if self.notebook:
            cells = [line if line.startswith("%") else f"!{line}" for line in lines]
            return "\n".join([*cells, "# then restart the kernel"])
        return " && ".join(lines)


def how_to_install(*extras: str) -> str:
    """The command that adds extras of this package to how it is installed here, in the tested versions."""
    return installation().adds(*extras)


def how_to_set_up(*, gpu: bool | None = None) -> str:
    """The command that sets up everything in the tested versions.

    Args:
        gpu: for a GPU or for the CPU; as this machine is unless given.
    """
    for_gpu = bool(hardware.gpus()) if gpu is None else gpu
    return how_to_install(TESTED["gpu" if for_gpu else "cpu"])


def installation() -> Installation:
    """How this package is installed in the Python that runs."""
    environment, root = Path(sys.prefix), _PACKAGE.parent
    checkout = root if (root / "pyproject.toml").is_file() and (root / "Makefile").is_file() else None
    described = _described()
    way = _way(environment, described.get("INSTALLER", ""))
    if checkout and any(environment.glob("installed-*")):  # the mark that the Makefile leaves
        way = "make"
    source = "" if checkout else described.get("url", "")
    extras = _receipt(environment / "uv-receipt.toml")
    return Installation(way, environment, checkout, source, extras, "ipykernel" in sys.modules)


def tested_versions() -> dict[str, str]:
    """The pinned versions of constraints.txt, by package name (lower case, underscores); {} without the file."""
    path = constraints_file()
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {plain(name): version.strip() for name, version in pins}


def constraints_file() -> Path | None:
    """In the package where it came as a wheel, beside it in a checkout."""
    files = (path for path in (_PACKAGE / "constraints.txt", _PACKAGE.parent / "constraints.txt") if path.is_file())
    return next(files, None)


def plain(name: str) -> str:
    """A package's name with lower case and underscores alone."""
    return name.lower().replace("-", "_").replace(".", "_")


def _way(environment: Path, installer: str) -> Way:
    if (environment / "uv-receipt.toml").is_file() or any(map(_PASSING.fullmatch, environment.parts)):
        return "uv tool"
    if (environment / "pipx_metadata.json").is_file():
        return "pipx"
    if (environment.parent / "uv.lock").is_file():
        return "uv project"
    if importlib.util.find_spec("pip") is None:
        return "uv"
    return "uv" if installer == "uv" else "pip"


def _described() -> dict[str, str]:
    """INSTALLER and the address in direct_url.json of the installed package; {} where it is missing or unreadable."""
    try:
        found = importlib.metadata.distribution(NAME)
        told = parse_json(found.read_text("direct_url.json") or "{}")
        url, version_control = str(told.get("url", "")), told.get("vcs_info")
        if version_control:
            url = f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
        return {"INSTALLER": (found.read_text("INSTALLER") or "").strip(), "url": url}
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _receipt(path: Path) -> tuple[str, ...]:
    """The extras with which uv installed this package as a tool; () where the receipt cannot be read."""
    try:
        needs = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["requirements"]
        return tuple(extra for need in needs if need["name"] == NAME for extra in need.get("extras", ()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ()


def _exactly(name: str) -> str:
    version = tested_versions().get(name)
    return f"=={version}" if version else ""


def _shown(path: Path) -> str:
    """Relative to here when it lies below; quoted for a shell."""
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
