"""What lies in a run's folder, read as far as it is there: the material of the run's page and of its model card.

A run may have failed half way, been stopped while it wrote a line, or never been evaluated. So nothing here is an
error: a file that is missing gives an empty part, one that cannot be read is named in `unreadable`, and a line that is
no JSON object is passed over. Whoever shows the parts says what is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from qdora_fast.config import AdapterSettings, DataSettings, ModelSettings
from qdora_fast.data.read.readers import is_supported
from qdora_fast.data.read.sources import HUB_ID
from qdora_fast.evaluation.log import LOG
from qdora_fast.system.errors import IntegrityError
from qdora_fast.system.json_files import read_lines, read_object
from qdora_fast.system.pages import is_number
from qdora_fast.system.run_folder import UNPROVEN, RunFolder


class Changed(NamedTuple):
    """A setting that is not the default. `default` is None also for what has none."""

    key: str
    value: Any
    default: Any


@dataclass(frozen=True)
class ResolvedSettings:
    """The settings of a run, every default filled in."""

    model: ModelSettings
    adapter: AdapterSettings
    data: DataSettings
    every: Mapping[str, Any]
    """All sections, as JSON."""
    changed: Sequence[Changed]


@dataclass(frozen=True)
class RunParts:
    """All that a run left behind. A part that is not there is {} or []."""

    name: str
    settings: ResolvedSettings | None
    """None where config.yaml does not fit this version of the package."""
    evaluation: dict[str, Any]
    """evaluation/evaluation.json: see `record.Evaluation`."""
    data: dict[str, Any]
    """data/report.json."""
    model: dict[str, Any]
    engine: dict[str, Any]
    environment: dict[str, Any]
    exports: list[dict[str, Any]]
    """export.json of every merged model, `folder` added; `unproven` is true where its proof failed."""
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl, in the order of their steps; of a step that was repeated after --resume the last."""
    answers: list[dict[str, Any]]
    completions: list[dict[str, Any]]
    log: list[dict[str, Any]]
    files: frozenset[str]
    """Of the files that a reader may open (LINKED), those that are there."""
    unreadable: list[str] = field(default_factory=list)

    def review(self) -> dict[str, Any] | None:
        """The last review of the answers that the run has now; None: pending."""
        now = part(self.evaluation, "completions").get("sha256")
        found = [
            each for each in self.log if each.get("kind") == "review" and now and each.get("completions_sha256") == now
        ]
        return found[-1] if found else None

    def data_review(self) -> dict[str, Any] | None:
        """The last review of a sample of the rows that the run was trained on; None: pending."""
        found = [each for each in self.log if each.get("kind") == "data_review"]
        of_these = [each for each in found if each.get("dataset") == self.data.get("hash")]
        return of_these[-1] if of_these else part(self.data, "review") or None


LINKED = ("data/report.html", "data/review.html", "evaluation/completions.html", "config.yaml")


Content = TypeVar("Content")


def read_run(folder: RunFolder, settings: ResolvedSettings | None) -> RunParts:
    """Read everything below a run's folder. Never fails for what is missing or broken.

    Args:
        settings: what config.yaml says; None: it is not there, or cannot be read.
    """
    reader = _Reader(folder.path)
    if settings is None:
        reader.unreadable.append("config.yaml")
    return RunParts(
        name=folder.path.resolve().name,
        settings=settings,
        evaluation=reader.object("evaluation/evaluation.json"),
        data=reader.object("data/report.json"),
        model=reader.object("model.json"),
        engine=reader.object("engine.json"),
        environment=reader.object("environment.json"),
        exports=list(_exports(reader)),
        metrics=_by_step(reader.lines("metrics.jsonl")),
        answers=reader.lines("evaluation/held_out_answers.jsonl"),
        completions=reader.lines("evaluation/completions.jsonl"),
        log=reader.lines(str(LOG)),
        files=frozenset(name for name in LINKED if (folder.path / name).exists()),
        unreadable=reader.unreadable,
    )


def part(whole: Any, key: str) -> dict[str, Any]:
    """An inner object; {} where there is none."""
    value = whole.get(key) if isinstance(whole, Mapping) else None
    return value if isinstance(value, dict) else {}


def base_name(parts: RunParts) -> str:
    """The base for people: the hub id, the name of a local folder without its place, or the embedded demo base."""
    named = parts.settings.model.name if parts.settings else str(parts.model.get("base") or "an unknown base")
    if named == "demo":
        return "the embedded demo base"
    return public_name(named)


def base_on_hub(parts: RunParts) -> str | None:
    """The base's hub id; None for a local folder and for the embedded demo base."""
    named = parts.settings.model.name if parts.settings else ""
    read = parts.model.get("base", named)  # the place that it was read from: for a folder an absolute path
    return named if read == named and is_hub_id(named) else None


def public_name(text: str) -> str:
    """A hub id as it is; of a path on this machine only the last part."""
    if is_hub_id(text):
        return text
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or "a folder"


def is_hub_id(text: str) -> bool:
    """Of the form owner/name, no file's name, and nothing of that name lies here."""
    named = HUB_ID.fullmatch(text) is not None and "/" in text and not is_supported(Path(text))
    return named and not Path(text).exists()


class _Reader:
    """Reads JSON below a folder and remembers what could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: list[str] = []

    def object(self, name: str) -> dict[str, Any]:
        """The one object in a file."""
        return self._read(name, read_object, {})

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a file with one a line; other lines are left out."""
        return self._read(name, partial(read_lines, skip_bad=True), [])

    def _read(self, name: str, read: Callable[[Path], Content], nothing: Content) -> Content:
        path = self.folder / name
        if not path.exists():
            return nothing
        try:
            return read(path)
        except IntegrityError:
            self.unreadable.append(name)
            return nothing


def _exports(reader: _Reader) -> Iterator[dict[str, Any]]:
    for path in sorted(reader.folder.glob("merged_*/export.json")):
        found = reader.object(f"{path.parent.name}/{path.name}")
        if found:
            yield {**found, "folder": path.parent.name, "unproven": path.parent.name.endswith(UNPROVEN)}


def _by_step(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses and held-out losses come in lines of their own, so each kind keeps its last line of a step."""
    kept: dict[tuple[float, str], dict[str, Any]] = {}
    for line in lines:
        if is_number(line.get("step")):
            kind = str(line.get("event") or next((key for key in ("loss", "eval_loss") if key in line), ""))
            kept[line["step"], kind] = line
    return [kept[key] for key in sorted(kept)]
