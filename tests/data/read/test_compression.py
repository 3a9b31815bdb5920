"""Packed files as they come: in several frames, cut, corrupt, from other tools."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from backports import zstd

from qdora_fast.data.read import compression, readers
from qdora_fast.data.read.compression import DAMAGE, lines, open_bytes
from qdora_fast.system.errors import DataError

TEXT = b"".join(b"line %d \xe0\xa4\xb9\n" % number for number in range(50_000))


def unpacked(path: Path) -> bytes:
    with open_bytes(path) as stream:
        return stream.read()


@pytest.mark.parametrize("frames", [1, 2, 50])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_any_number_of_frames_is_one_file(ending: str, frames: int, tmp_path: Path) -> None:
    pack = gzip.compress if ending == ".gz" else zstd.compress
    step = len(TEXT) // frames + 1
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"".join(pack(TEXT[start : start + step]) for start in range(0, len(TEXT), step)))
    assert unpacked(path) == TEXT
    assert [line for _, line in lines(path)] == TEXT.splitlines(keepends=True)


def test_frames_without_a_size_with_wide_windows_and_with_notes_between_them_are_read(tmp_path: Path) -> None:
    parameter = zstd.CompressionParameter
    options = {parameter.window_log: 28, parameter.enable_long_distance_matching: 1, parameter.content_size_flag: 0}
    wide = zstd.ZstdCompressor(options=options)
    note = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"a note"[:5]
    path = tmp_path / "a.zst"
    path.write_bytes(note + wide.compress(TEXT) + wide.flush() + note + zstd.compress(b"end"))
    assert unpacked(path) == TEXT + b"end"


@pytest.mark.parametrize("kept", [1, 5, 100, 1_000, -1])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_cut_file_is_never_taken_for_a_short_one(ending: str, kept: int, tmp_path: Path) -> None:
    pack = gzip.compress if ending == ".gz" else zstd.compress
    path = tmp_path / f"a{ending}"
    path.write_bytes(pack(TEXT)[:kept])
    with pytest.raises(DAMAGE):
        unpacked(path)


def test_rubbish_after_the_end_is_damage(tmp_path: Path) -> None:
    for name, pack in (("a.gz", gzip.compress), ("a.zst", zstd.compress)):
        (tmp_path / name).write_bytes(pack(TEXT) + b"rubbish that is no frame")
        with pytest.raises(DAMAGE):
            unpacked(tmp_path / name)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".json.zst", ".csv.gz"])
def test_what_unpacks_to_a_thousand_times_its_size_is_refused(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNPACKED_BYTES", "LINE_BYTES"):
        monkeypatch.setattr(compression, name, 2**20)
    monkeypatch.setattr(readers, "LARGE_JSON", 2**20)
    row = b'{"a": "' + b"x" * 2**16 + b'"}'
    text = {".json.zst": b"[" + b",".join([row] * 512) + b"]", ".csv.gz": b"a,b\n" + (b"x" * 2**16 + b",y\n") * 512}
    pack = gzip.compress if ending.endswith(".gz") else zstd.compress
    path = tmp_path / f"a{ending}"
    path.write_bytes(pack(text.get(ending, (row + b"\n") * 512)))
    monkeypatch.setattr(compression, "UNPACKED_PER_PACKED_BYTE", 200)
    with pytest.raises(DataError, match=r"a\..*: unpacks to more than 200 times its size"):
        list(readers.read_file(path))


def test_blank_lines_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "BLANK_LINES", 100)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((b"\n" * 100 + b"{}\n") * 3))
    assert len(list(lines(path))) == 303
    path.write_bytes(gzip.compress(b"{}\n" + b" \r\n" * 101))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:102: 101 blank lines in a row"):
        list(lines(path))


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(b"")
        assert list(lines(tmp_path / name)) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_text_of_two_bytes_a_character_is_refused_and_a_nul_is_not(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"question": "हाँ?"}\n'.encode(encoding))
    with pytest.raises(DataError, match=r"UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 a\.jsonl"):
        list(lines(path))
    path.write_bytes(b"\0\0\0\0\n{\0}\n")
    assert len(list(lines(path))) == 2
