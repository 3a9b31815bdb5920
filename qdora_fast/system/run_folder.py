"""A run's folder: what lies where, and how to find it again.

    runs/<name>/
      config.yaml        the resolved config, every default spelled out; load it to repeat the run
      environment.json   machine and package versions
      fit.json           what `auto` was resolved to and why, if anything was; the longest batch's memory on a GPU
      model.json         what was trained: base, revision, adapted and quantised layers, template
      base_sample.safetensors  some weights of that base, by which an export knows it again
      code/              copies of the files of code that the config names; run only where their user has allowed it
      data/              train.jsonl, held_out.jsonl, rejected.jsonl, duplicates.jsonl, proof_rows.json,
                         report.json and report.html, review.html (a sample to read and mark)
      metrics.jsonl      one line a log event: loss, learning rate, tokens/s, memory
      tracker.json       the ids by which experiment trackers know this run, where train.tracker names any
      tensorboard/       its events, where train.tracker names it
      checkpoints/       for --resume; the newest two and the best
      finished.json      written last: without it, the run was stopped before its end
      adapter/           the trained adapter with its tokenizer and chat template
      merged_16bit/      the deployable model, with export.json beside its weights
      evaluation/        held-out answers of base and tuned model; log.jsonl, the evaluation log

A folder explains itself: exporting or chatting needs nothing but the folder and the base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qdora_fast.system.errors import ConfigError
from qdora_fast.system.json_files import read_lines, read_object
from qdora_fast.system.paths import refuse_links_out
from qdora_fast.system.redact import redacted

_NUMBER = r"(-\d+)?"
"""What `RunFolder.create` adds to a name that exists."""

FINISHED = "finished.json"
COPY_RUN = "copy the run again, or train it again"
"""What to do about a damaged file of a run."""
EXPORT = "export.json"
"""What an exported folder says of itself."""
UNPROVEN = ".unproven"
"""The suffix of the folder of an export that did not pass its proof."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Nothing is created by asking for a path."""

    path: Path

    @classmethod
    def create(cls, parent: Path, name: str, *, shared: bool = False) -> Self:
        """Make a new folder `name`, or `name-2`, `name-3`, ... where that exists already.

        Args:
            shared: other users of the machine may read it as far as the umask allows; else only its owner may enter,
                for rows and answers lie in it.

        Raises:
            ConfigError: it cannot be made.
        """
        for number in range(1, 10_000):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(0o777 if shared else 0o700, parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(f"run.dir: cannot create {path}: {error.strerror}") from None
            return cls(path)
        raise ConfigError(f"run.dir: {parent} holds 9,999 runs called {name}; clean up or set run.name")

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run.

        Raises:
            ConfigError: not a run's folder (near ones are named), or a link in it leads out.
        """
        folder = cls(Path(path))
        if not folder.config_file.is_file():
            beside = sorted(p.parent for p in folder.path.parent.glob("*/config.yaml"))
            hint = f"; runs there: {', '.join(str(p) for p in beside[:8])}" if beside else ""
            raise ConfigError(f"{path} is not a run (no config.yaml in it){hint}")
        refuse_links_out(folder.path)
        return folder

    @classmethod
    def newest(cls, parent: Path, name: str) -> Self | None:
        """The run of this name (`name-2` and so on included) that has the newest checkpoint; None: none has any."""
        runs = [run for run in cls.named(parent, name) if run.config_file.is_file()]
        saved = [(run.checkpoints()[-1].stat().st_mtime, run.path) for run in runs if run.checkpoints()]
        return cls(max(saved)[1]) if saved else None

    @classmethod
    def named(cls, parent: Path, name: str) -> Iterator[Self]:
        """The folders of this name, with the numbers that `create` adds; not all of them need be runs."""
        ours = re.compile(re.escape(name) + _NUMBER)
        beside = parent.iterdir() if parent.is_dir() else ()  # no glob: [ ] * ? are letters of a name
        return (cls(path) for path in beside if ours.fullmatch(path.name))

    @property
    def first_name(self) -> str:
        """The folder's name without the number that `create` adds."""
        return re.sub(_NUMBER + r"\Z", "", self.path.name)

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """Prepared rows and their report."""
        return self.path / "data"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        """The trained adapter, with tokenizer and chat template."""
        return self.path / "adapter"

    @property
    def evaluation(self) -> Path:
        """Answers and figures of the held-out comparison."""
        return self.path / "evaluation"

    @property
    def finished(self) -> bool:
        """Trained, compared, exported and reported."""
        return (self.path / FINISHED).is_file()

    def checkpoints(self) -> list[Path]:
        """Checkpoints, oldest first, by step."""
        return checkpoints_in(self.path / "checkpoints")

    def write_json(self, name: str, content: Any) -> Path:
        """Write `content` as an indented JSON file below the folder."""
        return write_json(self.path / name, content)

    def add_to_json(self, name: str, content: dict[str, Any]) -> Path:
        """Write these keys into a JSON file below the folder, beside those that it has; it is made if need be."""
        earlier = self.read_json(name) if (self.path / name).is_file() else {}
        return self.write_json(name, earlier | content)

    def read_json(self, name: str, shape: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Read a JSON object below the folder.

        Args:
            shape: the keys that it must have, see `json_files.Shape`.

        Raises:
            ConfigError: the run did not get that far.
            IntegrityError: the file is damaged.
        """
        path = self.path / name
        if not path.exists():
            raise ConfigError(f"{self.path} has no {name}: the run did not finish; run it again or --resume it")
        return read_object(path, shape, fix=COPY_RUN)

    def write_rows(self, name: str, rows: Iterable[Any]) -> Path:
        """Write one JSON object a line below the folder."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return path

    def read_rows(self, name: str, shape: Mapping[str, Any] | None = None) -> list[Any]:
        """Read a file of one JSON object a line; [] where there is none.

        Args:
            shape: the keys that each must have, see `json_files.Shape`.

        Raises:
            IntegrityError: the file is damaged.
        """
        path = self.path / name
        return read_lines(path, shape, fix=COPY_RUN) if path.exists() else []


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders `checkpoint-<step>` below `folder`, oldest first, by step."""
    named = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*")}
    return [named[step] for step in sorted(filter(str.isdecimal, named), key=int)]


def newest_checkpoint(folder: Path) -> str:
    """For messages: the checkpoint below `folder` from which a run can be resumed. Only good ones are saved."""
    checkpoints = checkpoints_in(folder)
    return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"


def write_json(path: Path, content: Any) -> Path:
    """Write `content` as an indented JSON file without secrets; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(redacted(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
