"""A manifest notices every change to a folder's files, and to itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.system.errors import IntegrityError
from qdora_fast.system.manifest import NAME, problems, read_manifest, sha256_of, value_hash, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(range(200)))
    (tmp_path / "state" / "step.json").write_text('{"step": 7}\n')
    write_manifest(tmp_path, {"kind": "checkpoint", "step": 7, "name": "Zoë"})
    return tmp_path


def test_what_was_written_is_whole_and_says_what_it_is(folder: Path) -> None:
    assert problems(folder) == []
    found = read_manifest(folder)
    assert found["about"] == {"kind": "checkpoint", "step": 7, "name": "Zoë"}
    assert found["files"]["state/step.json"]["bytes"] == 12


def test_every_single_flipped_bit_is_found(folder: Path) -> None:
    for path in (folder / "weights.bin", folder / "state" / "step.json", folder / NAME):
        written = path.read_bytes()
        for bit in range(len(written) * 8):
            damaged = bytearray(written)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert problems(folder), f"bit {bit} of {path.name}"
        path.write_bytes(written)
    assert problems(folder) == []


def test_each_kind_of_damage_names_the_file(folder: Path) -> None:
    weights = folder / "weights.bin"
    written = weights.read_bytes()
    weights.write_bytes(written[:50])
    assert problems(folder) == [f"{weights}: 50 bytes, but 200 were written"]
    weights.unlink()
    assert problems(folder) == [f"{weights}: missing"]
    weights.write_bytes(written[::-1])
    assert problems(folder) == [f"{weights}: its content has changed since it was written"]


def test_a_manifest_that_is_missing_empty_or_leads_outside_is_refused(folder: Path) -> None:
    (folder / NAME).write_text("")
    with pytest.raises(IntegrityError, match="damaged"):
        read_manifest(folder)
    (folder / NAME).unlink()
    with pytest.raises(IntegrityError, match="No such file"):
        read_manifest(folder)
    from qdora_fast.system.manifest import _text

    inner = folder / "state"
    outside = {"../weights.bin": {"bytes": 200, "sha256": "0" * 64}}
    (inner / NAME).write_text(_text({"about": {}, "files": outside}))
    assert problems(inner) == [f"{inner / '../weights.bin'}: lies outside the folder"]


def test_files_that_came_later_do_not_matter(folder: Path) -> None:
    (folder / "README.md").write_text("a model card")
    assert problems(folder) == []


def test_a_file_is_hashed_as_sha256sum_does_and_a_value_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert value_hash({"a": [1], "b": "é"}) == value_hash({"b": "é", "a": [1]}) != value_hash({"a": [1], "b": "e"})


def test_a_file_that_may_change_can_be_left_out(folder: Path) -> None:
    (folder / "README.md").write_text("a model card")
    write_manifest(folder, {}, leave_out=["README.md"])
    (folder / "README.md").write_text("an edited one")
    assert problems(folder) == []
    assert set(read_manifest(folder)["files"]) == {"weights.bin", "state/step.json"}
