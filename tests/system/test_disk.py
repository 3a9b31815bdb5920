"""A disk that is full, read-only or broken is one message for the user; any other error passes."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import DiskSpaceError, QdoraError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_names_the_folder_what_is_safe_and_the_ways_out(tmp_path: Path, number: int) -> None:
    disk = disk_errors(tmp_path, saved=lambda: "a is untouched", elsewhere="or take b", again="start anew")
    with pytest.raises(DiskSpaceError) as caught, disk:
        raise OSError(number, "")
    assert str(caught.value) == (
        f"{tmp_path}: could not be written ({os.strerror(number)}); a is untouched. "
        "Free some space there or take b, then start anew"
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE])
def test_what_a_disk_refuses_names_the_file_that_the_system_names(tmp_path: Path, number: int) -> None:
    with pytest.raises(QdoraError) as caught, disk_errors(tmp_path):
        raise OSError(number, "", str(tmp_path / "metrics.jsonl"))
    assert caught.value.exit_code == 1
    assert str(caught.value) == (
        f"{tmp_path / 'metrics.jsonl'}: could not be written or read ({os.strerror(number)}). "
        "Repair the disk or the permissions there, then run the same command again"
    )


def test_what_is_safe_is_asked_for_when_the_error_comes(tmp_path: Path) -> None:
    finished: list[int] = []
    disk = disk_errors(tmp_path, saved=lambda: f"{len(finished)} of 2 are finished")
    with pytest.raises(DiskSpaceError, match="; 1 of 2 are finished"), disk:
        finished.append(1)
        raise OSError(errno.ENOSPC, "")


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "not there"), ValueError("os error 28"), OSError()])
def test_any_other_error_passes(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_full_disk_is_known_by_the_words_of_safetensors_too(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # the system then refuses to write more, as a full disk does
    try:
        with pytest.raises(DiskSpaceError, match="File too large"), disk_errors(tmp_path):
            save_file({"a": torch.zeros(999)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
