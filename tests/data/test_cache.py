"""The second start finds what the first one made; one changed byte of anything that matters does not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import DataSettings
from qdora_fast.data import cache, choose_template, prepare
from qdora_fast.data.dataset import Prepared
from qdora_fast.data.tokenize.render import Rendering
from qdora_fast.system.errors import ConfigError, DataError, DiskSpaceError

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}"} for i in range(40)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def made(path: Path, rendering: Rendering | None = None, **settings: Any) -> tuple[Prepared, bool]:
    """The prepared data, and whether rows had to be looked at for it."""
    looked: list[int] = []
    data = prepare(DataSettings(path=str(path), **settings), seed=1, rendering=rendering, on_rows=looked.append)
    return data, bool(looked)


def test_the_second_start_reads_no_row(path: Path, base_tokenizer: Any) -> None:
    choose_template(base_tokenizer, "auto")
    rendering = Rendering(base_tokenizer, 128)
    first, looked = made(path, rendering)
    second, again = made(path, rendering)
    assert looked and not again
    assert second.report == first.report
    assert list(second.train) == list(first.train)
    assert list(second.train_examples or []) == list(first.train_examples or [])


def test_touching_a_file_or_asking_for_other_workers_changes_nothing(path: Path) -> None:
    made(path)
    os.utime(path, (1, 1))
    assert not made(path, workers=2)[1]


def test_one_changed_letter_is_other_data(path: Path) -> None:
    made(path)
    path.write_text(path.read_text().replace("It is 7", "It is 8"))
    assert made(path)[1]


@pytest.mark.parametrize("settings", [{"held_out": 0.2}, {"filters": {"refusals": True}}, {"max_rows": 30}])
def test_other_settings_are_other_data(path: Path, settings: dict[str, Any]) -> None:
    made(path)
    assert made(path, **settings)[1]


def test_another_template_length_or_tokenizer_is_other_data(path: Path, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    choose_template(tokenizer, "alpaca")
    made(path, Rendering(tokenizer, 128))
    assert made(path, Rendering(tokenizer, 96))[1]
    assert made(path, Rendering(tokenizer, 128, stop_ids=frozenset({5})))[1]
    choose_template(tokenizer, "chatml")
    assert made(path, Rendering(tokenizer, 128))[1]
    other = make_tokenizer(["<new>"])
    choose_template(other, "chatml")
    assert made(path, Rendering(other, 128))[1]
    assert not made(path, Rendering(tokenizer, 128))[1]


def test_the_date_that_a_template_prints_is_part_of_the_tokens_and_not_of_the_version(
    path: Path, base_tokenizer: Any
) -> None:
    text = choose_template(base_tokenizer, "alpaca").text
    base_tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + text
    first, _ = made(path, Rendering(base_tokenizer, 128, date="2026-11-30"))
    other, looked = made(path, Rendering(base_tokenizer, 128, date="2026-12-01"))
    assert looked and other.tokens[0] != first.tokens[0]
    assert other.report.hash == first.report.hash, "a review of the rows holds on another day"
    again, looked = made(path, Rendering(base_tokenizer, 128, date="2026-11-30"))
    assert not looked and again.report.notes == first.report.notes
    assert "40 of 40 rows: it is 2026-11-30" in first.report.notes[0]


def test_how_a_tokenizer_was_last_called_does_not_matter(path: Path, base_tokenizer: Any) -> None:
    choose_template(base_tokenizer, "auto")
    base_tokenizer.pad_token = "<eos>"
    made(path, Rendering(base_tokenizer, 128))
    base_tokenizer(["a", "b c d e"], padding=True, truncation=True, max_length=3)
    assert not made(path, Rendering(base_tokenizer, 128))[1]


def test_nothing_is_kept_when_asked_not_to(path: Path, tmp_path: Path) -> None:
    data, _ = made(path, cache=False)
    assert not (tmp_path / "cache").exists()
    folder = data.folder
    assert list(data.train) and folder.is_dir()
    del data
    assert not folder.exists()


def test_a_failure_leaves_no_entry(path: Path, tmp_path: Path) -> None:
    path.write_text(path.read_text() + "{broken")
    with pytest.raises(DataError):
        made(path)
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_a_full_disk_is_said_and_leaves_no_entry(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdora_fast.data import store

    def full(self: object, chunk: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.RowWriter, "add", full)
    with pytest.raises(DiskSpaceError, match=r"No space left.*QDORA_FAST_CACHE"):
        made(path)
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_ways_out(path: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands in the way")
    with pytest.raises(ConfigError, match=r"QDORA_FAST_CACHE.*data.cache: false"):
        made(path)


def test_only_the_entries_used_last_are_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ENTRIES", 3)
    for number in range(3):
        os.utime(made(path, max_rows=20 + number)[0].folder, (number, number))
    made(path, max_rows=20)  # used again: now the youngest
    made(path, max_rows=39)
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 3
    assert not made(path, max_rows=20)[1]
    assert made(path, max_rows=21)[1]


def test_rows_stay_readable_when_their_entry_is_removed(path: Path) -> None:
    data, _ = made(path)
    first = data.train[0]
    shutil.rmtree(data.folder)
    assert data.train[0] == first
