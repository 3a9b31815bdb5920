"""What is installed without a checkout: the wheel has what the code reads, and its extras are the tested versions.

The wheel is installed into a new environment that finds the libraries of this one, and is used in a folder of its own.
Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qdora_fast
from qdora_fast.system import child, install
from qdora_fast.system.install import UNSLOTH

ROOT = Path(qdora_fast.__file__).parent.parent
PINS = {canonicalize_name(name): version for name, version in install.tested_versions().items()}
HERE = {**default_environment(), "extra": ""}
OF_CUDA = ("cuda-", "nvidia-")


def _build(root: Path, target: str, folder: Path) -> Path:
    command = child.python("-m", "hatchling", "build", "-t", target, "-d", str(folder))
    subprocess.run(command, cwd=root, env=child.environment(), capture_output=True, text=True, check=True)
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def described(wheel: Path) -> dict[str, list[str]]:
    """The fields of the wheel's METADATA."""
    with zipfile.ZipFile(wheel) as parts:
        (name,) = (name for name in parts.namelist() if name.endswith(".dist-info/METADATA"))
        fields = message_from_string(parts.read(name).decode())
    return {key: fields.get_all(key, []) for key in fields}


Commands = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A function that runs `qdora-fast` of a new environment, in which the wheel is all that is installed."""

    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    command = ["-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run(child.python(*command, str(wheel)), env=child.environment(), capture_output=True, check=True)
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
        command = [str(folder / "bin" / "qdora-fast"), *arguments]
        return subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True, check=False)

    return run


def _needs(described: dict[str, list[str]], extra: str) -> dict[str, Requirement]:
    """By plain name, what an extra adds on this machine."""
    needs = [Requirement(line) for line in described["Requires-Dist"]]
    asked = {**HERE, "extra": extra}
    return {
        canonicalize_name(need.name): need
        for need in needs
        if need.marker and not need.marker.evaluate(HERE) and need.marker.evaluate(asked)
    }


@pytest.mark.parametrize("extra", ["tested-gpu", "tested-cpu"])
def test_a_tested_extra_names_the_tested_version_of_all_that_is_needed(
    extra: str, described: dict[str, list[str]]
) -> None:
    pinned = _needs(described, extra)
    assert {name: str(need.specifier) for name, need in pinned.items()} == {name: f"=={PINS[name]}" for name in pinned}
    roots = [Requirement(line) for line in described["Requires-Dist"]]
    todo = [need for need in roots if need.marker is None or need.marker.evaluate(HERE)]
    todo += _needs(described, extra.removeprefix("tested-")).values()
    seen: set[tuple[str, str]] = set()
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        if name.startswith(OF_CUDA):
            continue
        assert name in pinned, f"{need} is not in {extra}: make lock"
        assert need.specifier.contains(PINS[name], prereleases=True), f"{need} takes no {PINS[name]}"
        for each in ("", *need.extras):
            if (name, each) not in seen:
                seen.add((name, each))
                todo += _requirements_of(name, each)
    assert {("transformers", ""), ("numpy", "")} <= seen


def _requirements_of(name: str, extra: str) -> list[Requirement]:
    """Of an installed package on this machine; [] for one that only a GPU needs and that is not here."""
    try:
        needs = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [need for need in needs if need.marker is None or need.marker.evaluate({**HERE, "extra": extra})]


def test_unsloth_is_in_the_tested_extra_for_a_gpu_alone_and_cuda_in_none(described: dict[str, list[str]]) -> None:
    gpu, cpu = _needs(described, "tested-gpu"), _needs(described, "tested-cpu")
    unsloth = {canonicalize_name(name) for name in UNSLOTH}
    assert unsloth <= gpu.keys() and not unsloth & cpu.keys()
    assert not [name for name in {*gpu, *cpu} if name.startswith(OF_CUDA)]
    assert {"torch"} <= gpu.keys() & cpu.keys() and "triton" not in cpu
    assert not {"pytest", "mypy", "mkdocs", "hatchling"} & {*gpu, *cpu}


@pytest.mark.parametrize("extra", ["gpu", "cpu", "eval", "gguf", "serve", "dev", "docs"])
def test_the_other_extras_accept_the_tested_version(extra: str, described: dict[str, list[str]]) -> None:
    needs = _needs(described, extra)
    assert needs
    for name, need in needs.items():
        assert name == "qdora-fast" or need.specifier.contains(PINS[name]), need


def test_the_extra_for_a_gpu_takes_nothing_newer_than_what_was_tested(described: dict[str, list[str]]) -> None:
    needs = _needs(described, "gpu")
    for name in ("torch", "triton", "unsloth", "unsloth-zoo"):
        *first, last = PINS[name].split(".")
        newer = [".".join([*first, str(int(last) + 1)]), ".".join([first[0], str(int(first[1]) + 1), "0"])]
        assert not needs[name].specifier.contains(newer[name in ("torch", "triton")]), name


def test_the_description_is_of_a_form_that_the_index_takes(described: dict[str, list[str]]) -> None:
    assert (described["Metadata-Version"], described["Name"]) == (["2.4"], ["qdora-fast"])
    assert described["Version"] == [qdora_fast.__version__]
    assert described["License-Expression"] == ["Apache-2.0"]


def test_an_sdist_carries_what_its_wheel_is_built_from(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(_build(ROOT, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    again = _build(next(tmp_path.glob("qdora_fast-*")), "wheel", tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {part.filename: part.CRC for part in first.infolist()} == {
            part.filename: part.CRC for part in second.infolist()
        }


def test_presets_and_a_plan_need_no_checkout(installed: Commands, tmp_path: Path) -> None:
    presets = installed("presets", cwd=tmp_path)
    assert presets.returncode == 0, presets.stderr
    shipped = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert shipped <= set(re.findall(r"^(\S+)", presets.stdout, flags=re.MULTILINE)) | set(presets.stdout.split())
    plan = installed("plan", "demo", "--json", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["base"]
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_answered_with_a_line_that_fits_this_environment(
    installed: Commands, tmp_path: Path
) -> None:
    (tmp_path / "unsloth.py").write_text("raise ImportError('not here')")
    script = "from qdora_fast.models.backend import open_backend; open_backend()"
    environment = Path(installed("presets", cwd=tmp_path).args[0]).parent.parent
    python = environment / "bin" / "python"
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", script], cwd=tmp_path, env=outside, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "[tested-" in last and str(environment) in last and "make" not in last


@pytest.mark.exhaustive
def test_the_demo_runs_to_its_proof_without_a_checkout(installed: Commands, tmp_path: Path) -> None:
    done = installed("train", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    report = json.loads((tmp_path / "runs" / "demo" / "merged_16bit" / "export.json").read_text())
    assert report["proof"]["passed"] is True
    recorded = json.loads((tmp_path / "runs" / "demo" / "environment.json").read_text())
    assert recorded["packages"]["qdora_fast"] == qdora_fast.__version__
