"""Score a model on a file of rows with their answers: `qdora-fast evaluate MODEL --data FILE`.

MODEL is whatever `predict` takes. The rows are read and rendered as for training, the metric is chosen from them as the
evaluation of a run chooses it, and the base is asked beside the model where there is one. Rows that the run was trained
on, or whose question it was trained on, are told by their hashes: they are counted, named and scored apart, and never
called held out. Of a model that lies in no run nobody knows its training rows, which is said instead.

Nothing is written into a run; `--out` writes the answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.code import of_evaluation
from qdora_fast.config.loader import make_config
from qdora_fast.config.own_code import allow_own_code, require_code_allowed
from qdora_fast.config.recorded import read_config
from qdora_fast.data.clean.split import group_key
from qdora_fast.data.read import custom
from qdora_fast.data.read.messages import ROW_SHAPE
from qdora_fast.data.read.questions import Question as Asked
from qdora_fast.data.read.questions import sources_of, told
from qdora_fast.data.read.sources import open_source
from qdora_fast.data.row_processor import Job, Origin, RowProcessor
from qdora_fast.data.tokenize.chat_text import asks_for_clock
from qdora_fast.data.tokenize.render import Rendering
from qdora_fast.inference.conversation import SamplingParams
from qdora_fast.inference.loading import ChatModel
from qdora_fast.recipes.predict.opened import Opened, open_model
from qdora_fast.recipes.predict.output import check_form, write
from qdora_fast.recipes.predict.progress import refuse_other_files
from qdora_fast.recipes.predict.rows import rows_of, settings_of_rows, trained_shapes
from qdora_fast.recipes.score.asking import ask_group, choose_asking
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, DataError
from qdora_fast.system.paths import local_path
from qdora_fast.system.run_folder import RunFolder

EVERY = 2**31
"""Rows that are scored where `evaluation.max_rows` is not set."""
UNSEEN, TRAINED, ALL = "not_trained_on", "trained_on", "rows"
"""The groups of a record; ALL: it is not known what was trained on."""
TITLES = {UNSEEN: "rows not trained on", TRAINED: "rows trained on, not held out", ALL: "rows"}


@dataclass(frozen=True)
class FileRows:
    """The rows of a file, prepared as for training."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    examples: Sequence[Mapping[str, Sequence[int]]]
    """Their tokens; none for a server."""
    rejected: Sequence[tuple[str, str, str]] = ()
    """(source, reason, detail) of rows that cannot be scored."""
    how: str = ""
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Numbers of the rows of each group."""


def evaluate_file(
    model: str | Path | RunFolder | ChatModel,
    data: str | Path,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    server_model: str | None = None,
    overwrite: bool = False,
    own_code: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Score a model on rows with their answers, and its base beside it where there is one.

    Args:
        model: as for `predict`.
        data: a file of rows in any shape that is trained on.
        overrides: `evaluation.*` and `data.*` settings.
        out: a file for the answers, a row each.
        server_model: the model of a server, where it has several.
        overwrite: replace `out`.
        own_code: files of code that may run where settings name them.

    Returns:
        The scores: `metric`, and for each group of rows (`not_trained_on`, `trained_on`; `rows` where that is not
        known) its count, `task` and `loss`.

    Raises:
        ConfigError: no such model or server, a wrong setting, a metric that a server cannot be judged by.
        DataError: the rows cannot be read, or a reference cannot be judged.
    """
    of_rows = [text for text in overrides if text.startswith("data.")]
    of_evaluating = [text for text in overrides if not text.startswith("data.")]
    target = local_path(str(out)) if out is not None else None
    with allow_own_code(own_code):
        if target:
            refuse_other_files(target, overwrite=overwrite)
            check_form(target, [], local_path(str(data)))
        opened = open_model(model, SamplingParams(), server_model=server_model)
        config = _config(opened, of_evaluating)
        require_code_allowed(config, *of_evaluation(config))
        rows = read_file_rows(str(data), of_rows, opened, config)
        record, lines = _scored(opened, config, rows)
    if target:
        write(target, lines, {}, None)
        console.line("written", f"{target}: {rows_of(len(lines))}")
    return record


def read_file_rows(name: str, overrides: Sequence[str], opened: Opened, config: Config) -> FileRows:
    """The rows of a file with their tokens, sorted by whether the model was trained on them.

    Raises:
        DataError: unreadable, of unknown format, without answers, or more than half of no use.
    """
    chosen, own = settings_of_rows(name, overrides)
    found = None
    for shape in [] if own else trained_shapes(opened.run, name):
        try:
            found = open_source(shape, held_out=True)
            break
        except DataError:
            continue
    found = found or open_source(chosen, held_out=True)
    formatter = custom.load_formatter(found.settings.formatter) if found.settings.formatter else None
    origin = Origin(found.detection.converter(), formatter, own_held_out=True)
    processor = RowProcessor([origin], config.data, _rendering(opened, config))
    raw = list(found.rows())
    chunk = processor.process(Job(0, 1, raw))
    rows = [json.loads(line) for line in chunk.lines.splitlines()]
    if 2 * len(chunk.rejected) > len(raw):
        shown = "\n".join(f"  - {source}: {told(reason, detail)}" for source, reason, detail in chunk.rejected[:5])
        raise DataError(
            f"{name}: {len(chunk.rejected)} of {len(raw)} rows cannot be scored. They were read as "
            f"`{found.detection.name}` ({found.detection.why}):\n{shown}\nA row needs its answer to be scored; "
            "`predict` answers rows without one"
        )
    how = f"`{found.detection.name}`: {found.detection.why}"
    return FileRows(name, rows, _examples(chunk), chunk.rejected, how, _groups(rows, opened.run))


def _groups(rows: Sequence[Mapping[str, Any]], run: RunFolder | None) -> dict[str, list[int]]:
    """Which rows were trained on, by their content or their question; all in one group where that is not known."""
    trained = run.read_rows("data/train.jsonl", ROW_SHAPE) if run else []
    if not trained:
        return {ALL: list(range(len(rows)))}
    hashes, asked = {row["meta"]["hash"] for row in trained}, {group_key(row) for row in trained}
    seen = [row["meta"]["hash"] in hashes or group_key(row) in asked for row in rows]  # type: ignore[arg-type]
    groups = {
        UNSEEN: [i for i, each in enumerate(seen) if not each],
        TRAINED: [i for i, each in enumerate(seen) if each],
    }
    return {name: numbers for name, numbers in groups.items() if numbers}


def _scored(opened: Opened, config: Config, rows: FileRows) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record, and a line for each row that was asked."""
    _tell_rows(opened, rows)
    asking = choose_asking(opened, config, rows.rows)
    asking.tell()
    answerer = opened.load()
    groups: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for name, numbers in rows.groups.items():
        examples = [rows.examples[i] for i in numbers] if rows.examples else []
        scores, answers = ask_group(answerer, asking, [rows.rows[i] for i in numbers], examples)
        groups[name] = {"n": len(numbers)} | scores
        lines += [line | {"trained_on": None if name == ALL else name == TRAINED} for line in answers]
        _tell_group(name, len(numbers), scores)
    trained = [rows.rows[i]["meta"]["source"] for i in rows.groups.get(TRAINED, ())]
    record = {
        "model": opened.name,
        "about": opened.about,
        "identity": opened.identity,
        "data": rows.name,
        "metric": asking.settings.metric,
        "chosen": asking.chosen.why or None,
        "training_known": ALL not in rows.groups,
        "groups": groups,
        "trained_rows": trained,
        "not_scored": [
            {"place": source, "reason": reason, "detail": detail} for source, reason, detail in rows.rejected
        ],
    }
    return record, lines


def _tell_rows(opened: Opened, rows: FileRows) -> None:
    console.line("model", f"{opened.name}: {opened.about}")
    console.line("rows", f"{rows.name}: {rows_of(len(rows.rows))} with their answers ({rows.how})")
    if rows.rejected:
        bad = [Asked(source, problem=told(reason, detail)) for source, reason, detail in rows.rejected]
        console.line("warning", f"{rows_of(len(bad))} cannot be scored, and not counted: {sources_of(bad)}")
    trained = rows.groups.get(TRAINED, ())
    if trained:
        named = sources_of([Asked(rows.rows[i]["meta"]["source"]) for i in trained])
        console.line(
            "warning",
            f"{rows_of(len(trained))} trained on, with this answer or another: scored apart, and not held out: {named}",
        )
    if ALL in rows.groups and opened.run is None and opened.source is not None:
        console.line("note", "which rows this model was trained on is not known here: none of them is called held out")


def _tell_group(name: str, count: int, scores: Mapping[str, Any]) -> None:
    console.print()
    console.print(f"{TITLES[name]}: {count:,}", style="bold", markup=False)
    task, loss = scores["task"], scores["loss"]
    if task:
        console.print(f"  {task['metric']}: {task['words']}", markup=False)
        for more, other in task.get("more", {}).items():
            console.print(f"  {more}: {other['words']}", markup=False)
        cut, empty = (task[key] for key in ("truncated", "empty"))
        for side, share in cut.items() if isinstance(cut, dict) else {"answers": cut}.items():
            blank = empty[side] if isinstance(empty, dict) else empty
            if share > 0.05 or blank > 0.05:
                console.print(f"  {side}: {share:.0%} were cut, {blank:.0%} are empty", markup=False)
    if loss:
        console.print(f"  loss: {loss['words']}", markup=False)


def _config(opened: Opened, overrides: Sequence[str]) -> Config:
    for text in overrides:
        if not text.startswith("evaluation."):
            raise ConfigError(f"--set {text}: only evaluation.* and data.* can be set here")
    names = {text.partition("=")[0].strip() for text in overrides}
    given = [*overrides] if "evaluation.max_rows" in names else [*overrides, f"evaluation.max_rows={EVERY}"]
    if opened.run:
        return read_config(opened.run, given)
    return make_config({"model": {"name": "none"}, "data": {"path": "none"}}, given)


def _rendering(opened: Opened, config: Config) -> Rendering | None:
    """How rows become tokens for this model; None for a server."""
    source = opened.source
    if source is None:
        return None
    vocabulary = source.vocabulary
    return Rendering(
        vocabulary.tokenizer,
        source.max_length,
        config.data.train_on,
        config.data.on_long,
        frozenset(vocabulary.stop_ids),
        date=config.data.date if asks_for_clock(vocabulary.tokenizer) else None,
        thinking=config.data.thinking,
    )


def _examples(chunk: Any) -> list[dict[str, list[int]]]:
    """The tokens of each row of a chunk."""
    if chunk.input_ids is None:
        return []
    ends = chunk.columns.tokens.cumsum()
    starts = ends - chunk.columns.tokens
    return [
        {"input_ids": chunk.input_ids[start:end].tolist(), "labels": chunk.labels[start:end].tolist()}
        for start, end in zip(starts, ends, strict=True)
    ]
