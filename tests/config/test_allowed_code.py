"""The user's list of code that may run: kept for the user alone, and no entry is lost."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from qdora_fast.config.allowed_code import Entry, add, entries, list_file
from qdora_fast.system.errors import ConfigError


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def entry(number: int, setting: str = "data.formatter") -> Entry:
    """One of many."""
    return Entry(f"{number:064x}", setting, f"/rows{number}.py")


def _add_many(first: int) -> None:
    for number in range(first, first + 20):
        add([entry(number)])


def test_an_entry_is_kept_once_with_its_date() -> None:
    assert entries() == []
    add([entry(1)])
    add([entry(1), entry(1, "evaluation.metric")])
    kept = [(each.sha256, each.setting) for each in entries()]
    assert kept == [(f"{1:064x}", "data.formatter"), (f"{1:064x}", "evaluation.metric")]
    assert all(len(each.date) == 10 and each.path == "/rows1.py" for each in entries())


def test_processes_that_add_at_once_lose_nothing() -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(100 * number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({each.sha256 for each in entries()}) == 80


def test_only_the_user_may_read_or_write_it() -> None:
    add([entry(1)])
    assert stat.S_IMODE(list_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(list_file().parent.stat().st_mode) == 0o700
    assert {path.name for path in list_file().parent.iterdir()} <= {list_file().name, "allowed_code.lock"}


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_list_that_others_can_write_is_not_believed(place: str) -> None:
    add([entry(1)])
    (list_file() if place == "file" else list_file().parent).chmod(0o777)
    with pytest.raises(ConfigError, match="others than you can write here.*chmod go-w"):
        entries()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"allowed": [1]}', '{"allowed": [{"sha256": "x"}]}', "[" * 100_000])
def test_a_damaged_list_is_one_clear_error(text: str) -> None:
    add([entry(1)])
    list_file().write_text(text)
    with pytest.raises(ConfigError, match=r"allowed_code.json: .* is damaged; remove it"):
        entries()


def test_a_folder_that_cannot_be_written_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written.*XDG_CONFIG_HOME"):
        add([entry(1)])


@pytest.mark.parametrize("named", ["", "relative"])
def test_without_a_named_folder_it_lies_in_the_users_home(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", named)  # the XDG rules pass over relative paths
    monkeypatch.setenv("HOME", "/home/asha")
    assert list_file() == Path("/home/asha/.config/qdora_fast/allowed_code.json")
