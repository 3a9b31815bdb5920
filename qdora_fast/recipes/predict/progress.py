"""The answers so far, in a folder beside the file that is written, until that file is complete.

    OUT.unfinished/record.json     the questions, the model and the settings that the answers belong to
    OUT.unfinished/answers.jsonl   a line for each row, in the order of the rows, on the disk after each window

The file itself is written at the end, at once: half a file is never taken for a complete one. The same command goes on
after a kill, a full disk or a power cut: what was written of a window that was not finished is thrown away, and the
window is answered again, so that the same batches give the same bytes as without the break. A record of other
questions, another model or other settings is refused, and so is a second process. What this does not do: remember a
version of a library; another one may round otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qdora_fast.inference.many import Said
from qdora_fast.system.atomic import staged_file
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import read_lines, read_object
from qdora_fast.system.paths import typed
from qdora_fast.system.redact import redacted
from qdora_fast.system.run_folder import write_json
from qdora_fast.system.run_lock import locked

ENDING = ".unfinished"
RECORD, ANSWERS = "record.json", "answers.jsonl"
ABOUT = {"questions": "other rows", "model": "another model", "settings": "other settings"}
"""The parts of a record, and what is said where they differ."""
AGAIN = "--overwrite begins anew"
_LINE = {
    **{"row": int, "text": str | None, "stopped_by": str | None, "tokens": int | None, "reasoning": str},
    **{"problem": str},
}


@dataclass
class Progress:
    """The answers so far."""

    folder: Path
    said: list[Said]
    """Of the first rows: complete windows."""
    more: Mapping[str, Any]
    """What the first start decided: the seed of draws, the date."""

    def add(self, window: Sequence[Said], sources: Sequence[str]) -> None:
        """Write the answers of a window; they are on the disk when this returns."""
        lines = [
            json.dumps({"row": number, "source": source} | asdict(each)) + "\n"
            for number, (each, source) in enumerate(zip(window, sources, strict=True), len(self.said))
        ]
        with disk_errors(self.folder), (self.folder / ANSWERS).open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self.said.extend(window)

    def remove(self) -> None:
        """Everything is in its place: the folder goes."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def begun(
    out: Path, record: Mapping[str, Any], *, more: Mapping[str, Any], window: int, overwrite: bool
) -> Iterator[Progress]:
    """The answers that an earlier start has left for `out`, or a new beginning; nobody else writes meanwhile.

    Args:
        record: the parts of `ABOUT`.
        more: remembered from the first start on.
        window: rows of a window.
        overwrite: `out` may be replaced, and an earlier start with another record be forgotten.

    Raises:
        ConfigError: `out` exists, or what was begun has another record.
        RunLocked: another process writes it.
        IntegrityError: the answers so far are damaged.
    """
    refuse_other_files(out, overwrite=overwrite)
    folder = out.with_name(f"{out.name}{ENDING}")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, instead="or write another file (--out)"):
        refuse_other_files(out, overwrite=overwrite)  # it may have been finished meanwhile
        folder.mkdir(exist_ok=True)
        earlier = _earlier(folder, record, overwrite=overwrite)
        if earlier is None:
            (folder / ANSWERS).unlink(missing_ok=True)
            _write_record(folder / RECORD, {**record, **more})
            yield Progress(folder, [], dict(more))
        else:
            yield Progress(folder, _answers(folder, window), {key: earlier.get(key) for key in more})


def remembered(out: Path, *, overwrite: bool) -> dict[str, Any]:
    """The record of an earlier start for `out`; {} where there is none.

    Raises:
        IntegrityError: it is damaged, and may not be overwritten.
    """
    return _read_record(out.with_name(f"{out.name}{ENDING}") / RECORD, overwrite=overwrite) or {}


def refuse_other_files(out: Path, *, overwrite: bool) -> None:
    """Raise ConfigError where `out` is there already, or is no file."""
    if out.exists() and not out.is_file():
        raise ConfigError(f"--out {out}: not a file")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out}: already exists; name another file, or --overwrite replaces it")


def _earlier(folder: Path, record: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The record of an earlier start that these answers go on from; None: begin."""
    earlier = _read_record(folder / RECORD, overwrite=overwrite)
    if earlier is None:
        return None
    as_read = json.loads(json.dumps(redacted(record)))
    wrong = [
        f"{what} ({_difference(earlier.get(key), as_read[key])})"
        for key, what in ABOUT.items()
        if earlier.get(key) != as_read[key]
    ]
    if wrong and not overwrite:
        raise ConfigError(
            f"{typed(folder)} was begun with {' and '.join(wrong)}: give the same command again to go on with it, name "
            f"another --out, or {AGAIN}"
        )
    return None if wrong else earlier


def _read_record(path: Path, *, overwrite: bool) -> dict[str, Any] | None:
    try:
        return read_object(path, fix=AGAIN) if path.is_file() else None
    except IntegrityError:
        if overwrite:
            return None
        raise


def _write_record(path: Path, content: Mapping[str, Any]) -> None:
    """On the disk when this returns, or not there at all."""
    with disk_errors(path), staged_file(path) as staging:
        write_json(staging, content)
        with staging.open("rb") as file:
            os.fsync(file.fileno())


def _difference(before: Any, now: Any) -> str:
    """What differs between two parts of a record: `max_new_tokens 64 then, 256 now`."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return "it differs"
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} {before.get(key)} then, {now.get(key)} now" for key in keys[:3])


def _answers(folder: Path, window: int) -> list[Said]:
    """The answers of complete windows; what comes behind them is cut off."""
    path = folder / ANSWERS
    if not path.is_file():
        return []
    lines = read_lines(path, _LINE, fix=AGAIN)
    if [each["row"] for each in lines] != list(range(len(lines))):
        raise IntegrityError(f"{path}: rows are missing in it; {AGAIN}")
    record = read_object(folder / RECORD, {"questions": {"rows": int}}, fix=AGAIN)
    complete = len(lines) if len(lines) == record["questions"]["rows"] else len(lines) // window * window
    with path.open("r+b") as file:
        for _ in range(complete):
            file.readline()
        file.truncate(file.tell())
    return [Said(**{each.name: line[each.name] for each in fields(Said)}) for line in lines[:complete]]
