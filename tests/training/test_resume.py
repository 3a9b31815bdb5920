"""The base's fingerprint tells bases apart and does not mind where they lie; damaged checkpoints are named.

Which run is resumed, and that it ends the same, is in test_checkpoint.py and test_run_folder.py.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from qdora_fast.system.errors import CheckpointError
from qdora_fast.system.manifest import write_manifest
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training.resume import base_fingerprint, newest_complete, require_same


def test_a_base_is_known_by_its_weights_and_not_by_its_place(tmp_path: Path) -> None:
    first, moved = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    size = 3 * 2**20
    (first / "config.json").write_text("{}")
    (first / "model.safetensors").write_bytes(bytes(size))
    shutil.copytree(first, moved)
    known = base_fingerprint(str(first), None)
    assert base_fingerprint(str(moved), None) == known
    part = size // 10  # as wide as one layer of ten; a fine-tune changes them all
    others = {
        "its beginning": b"\x01" + bytes(size - 1),
        "a layer after the embeddings": bytes(4 * part) + b"\x01" * part + bytes(size - 5 * part),
        "its end": bytes(size - 1) + b"\x01",
        "longer": bytes(size + 4096),
        "shorter": bytes(size - 4096),
        "much shorter": bytes(4096),
    }
    seen = {known}
    for content in others.values():
        (moved / "model.safetensors").write_bytes(content)
        seen.add(base_fingerprint(str(moved), None))
    shutil.copy(first / "model.safetensors", moved)
    (moved / "config.json").write_text('{"rope_theta": 5}')
    seen.add(base_fingerprint(str(moved), None))
    assert len(seen) == len(others) + 2
    assert base_fingerprint("someone/some-model", "abc") == "someone/some-model@abc"
    assert base_fingerprint("someone/some-model", None) == "someone/some-model@main"


def test_the_newest_complete_checkpoint_is_taken_and_each_newer_one_explained(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_text("x" * step)
        write_manifest(folder, {})
    (tmp_path / "checkpoints" / "checkpoint-10" / "weights").write_text("x")
    (tmp_path / "checkpoints" / "checkpoint-10.incomplete").mkdir()
    found, skipped = newest_complete(RunFolder(tmp_path))
    assert found == tmp_path / "checkpoints" / "checkpoint-4"
    assert len(skipped) == 1
    assert "checkpoint-10: " in skipped[0]
    assert "1 bytes, but 10 were written" in skipped[0]


def test_each_difference_to_the_run_that_wrote_it_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"identity": {"seed": 1, "data": "abc", "optimizer": "adamw"}})
    require_same(tmp_path, {"seed": 1, "data": "abc", "optimizer": "adamw"})
    with pytest.raises(CheckpointError) as caught:
        require_same(tmp_path, {"seed": 2, "data": "abc", "optimizer": "adamw_8bit", "template": "x"})
    lines = str(caught.value).splitlines()
    assert lines[1:4] == [
        "  - seed: 1 then, 2 now",
        "  - optimizer: adamw then, adamw_8bit now",
        "  - template: not recorded then, x now",
    ]


def test_the_fingerprint_of_an_earlier_version_is_known(tmp_path: Path) -> None:
    """It was a hash over names, sizes and the first MiB of each file."""
    base, checkpoint = tmp_path / "base", tmp_path / "checkpoint"
    for folder in (base, checkpoint):
        folder.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(bytes(range(256)) * 8192)
    digest = hashlib.sha256()
    for file in (base / "config.json", base / "model.safetensors"):
        digest.update(f"{file.name} {file.stat().st_size}".encode() + file.read_bytes()[: 2**20])
    write_manifest(checkpoint, {"identity": {"base": f"weights {digest.hexdigest()[:16]}", "seed": 1}})
    now = {"base": base_fingerprint(str(base), None), "seed": 1}
    require_same(checkpoint, now, str(base))
    with pytest.raises(CheckpointError, match="base: "):
        require_same(checkpoint, now)
    with pytest.raises(CheckpointError) as caught:
        require_same(checkpoint, now | {"seed": 2}, str(base))
    assert "base: " not in str(caught.value)
    (base / "config.json").write_text('{"rope_theta": 5}')
    with pytest.raises(CheckpointError, match="base: "):
        require_same(checkpoint, {"base": base_fingerprint(str(base), None), "seed": 1}, str(base))
