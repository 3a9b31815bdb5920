"""A release is one version: of the package, of the changelog, of what a run records, of the image and of the wheel."""

from __future__ import annotations

import re
from pathlib import Path

import qdora_fast
from qdora_fast.system import install
from qdora_fast.system.hardware import describe, package_versions

ROOT = Path(qdora_fast.__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
STEPS = re.sub(r"\\\n\s*", " ", "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")))


def _stage(name: str) -> str:
    """The instructions of one stage."""
    return re.split(r"^FROM .*$", STEPS.split(f" AS {name}\n")[1], flags=re.MULTILINE)[0]


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    headings = re.findall(r"^## (\S+) \((unreleased|\d{4}-\d{2}-\d{2})\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0][0] == qdora_fast.__version__
    assert all(date != "unreleased" for _, date in headings[1:])


def test_a_run_records_this_version() -> None:
    assert package_versions()["qdora_fast"] == describe()["packages"]["qdora_fast"] == qdora_fast.__version__


def test_the_image_has_the_tested_versions_by_hash() -> None:
    pins = install.tested_versions()
    assert re.findall(r"^COPY --from=\S+/uv:(\S+) ", STEPS, re.M) == [pins["uv"]]
    assert "-r locks/base.txt -r locks/gpu.txt" in _stage("gpu-packages")
    assert "-r locks/base.txt" in _stage("cpu-packages") and "gpu" not in _stage("cpu-packages")
    for step in re.findall(r"uv pip install [^&\n]*", STEPS):
        named = re.findall(r"locks/\w+\.txt", step)
        assert "--no-deps" in step
        assert ("--require-hashes" in step) == bool(named), step
        assert all((ROOT / file).is_file() for file in named)
    assert re.findall(r'"torch==[^"]*"', STEPS) == ["\"torch==$(sed -n 's/^torch==//p' constraints.txt)\""]
    assert "s/^torch==//p" in MAKEFILE  # both read constraints.txt


def test_the_image_runs_as_a_user_and_keeps_models_and_runs_in_volumes() -> None:
    for stage in ("gpu", "cpu"):
        text = _stage(stage)
        (user,) = re.findall(r"^USER (\S+)$", text, re.M)
        assert user not in ("root", "0")
        assert text.index("USER ") < text.index("ENTRYPOINT")
        assert re.findall(r"^VOLUME (.*)$", text, re.M) == ['["/cache", "/runs"]']
        assert "qdora-fast" in text.split("HEALTHCHECK")[1].splitlines()[0] and "doctor" in text
    assert re.search(r"HF_HOME=/cache/\w+", STEPS)


def test_no_switch_of_unsloth_is_baked_in() -> None:
    """Such a variable stays in every container and switches the fast trainers off without a word."""
    assert not re.search(r"UNSLOTH_|CUDA_VISIBLE_DEVICES|TRITON_INTERPRET", STEPS)


def test_everything_that_is_copied_is_there() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*)$", STEPS, re.M):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
