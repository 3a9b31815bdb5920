"""Answer a file of rows: `qdora-fast predict MODEL --data q.jsonl --out a.jsonl`, and the same in Python.

Rows are read as training reads them and asked as `chat` asks; all that can be refused is refused before weights are
read. Answers are written window by window beside the file (progress.py), so that the same command goes on after a kill
and gives the same bytes. A row that cannot be asked or answered stays in the output and says why; no row is lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

from qdora_fast.config.own_code import allow_own_code
from qdora_fast.data.read.questions import Question, sources_of
from qdora_fast.data.tokenize.chat_text import today
from qdora_fast.inference.conversation import SamplingParams
from qdora_fast.inference.loading import ChatModel
from qdora_fast.inference.many import BATCHES, LENGTH, STOP, Answerer, OnRows, Said, in_windows
from qdora_fast.recipes.predict.opened import Opened, open_model
from qdora_fast.recipes.predict.output import added_columns, check_form, name_columns, with_columns, write
from qdora_fast.recipes.predict.progress import begun, refuse_other_files, remembered
from qdora_fast.recipes.predict.rows import InputRows, read_rows, rows_of, tell
from qdora_fast.recipes.predict.schema import AnswerSchema
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, QdoraError
from qdora_fast.system.paths import local_path
from qdora_fast.system.run_folder import RunFolder

TOLD_EVERY = 30
"""Seconds."""
ROWS_TRIED = 8
"""Rows that are rendered before weights are read."""


def predict(
    model: str | Path | RunFolder | ChatModel,
    rows: Any,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float | None = None,
    seed: int | None = None,
    batch_size: int = 8,
    server_model: str | None = None,
    schema: str | Path | None = None,
    answer_column: str | None = None,
    overwrite: bool = False,
    own_code: Sequence[str | Path] = (),
) -> Any:
    """Ask a model every row, and add its answers as columns.

    Args:
        model: a run, an adapter, a merged or quantised model's folder, a base (`demo`, a preset, a hub name), or the
            address of a server with OpenAI's API.
        rows: a list of dictionaries, a pandas DataFrame, or a path as for `data.path`. Answers that the rows have are
            not shown to the model.
        out: a .jsonl, .json, .csv, .tsv or .parquet file to write; the same call goes on where an earlier one broke
            off.
        overrides: `data.*` settings that say how rows are read, as `data.columns.prompt=ask`.
        system: a system message for rows without one.
        max_new_tokens: tokens of an answer, at most.
        temperature: 0 is greedy.
        top_p: draw from the likeliest tokens that make up this share.
        seed: the same one gives the same draws.
        batch_size: rows that are answered at once; fewer where memory runs out. Requests at once to a server.
        server_model: the model of a server, where it has several.
        schema: a JSON Schema; says of each answer whether it is valid JSON for it.
        answer_column: name of the answers' column; `answer`, or `predicted_answer` where the rows have that.
        overwrite: replace `out`, and what an earlier call with other rows, model or settings has begun.
        own_code: files of code that may run where settings name them.

    Returns:
        The rows with the columns answer, stopped_by ("stop token" or "length"), tokens, and error where a row could not
        be answered: a list of dictionaries, or a DataFrame where one was given.

    Raises:
        ConfigError: no such model or server, a wrong option, `out` exists or was begun with something else.
        DataError: the rows cannot be read, or most of them cannot be asked.
        RunLocked: another process writes `out`.
        QdoraError: a server that no longer answers.
    """
    sampling = SamplingParams(max_new_tokens, temperature, top_p, seed)
    if batch_size < 1 or max_new_tokens < 1:
        raise ConfigError("batch_size and max_new_tokens must be at least 1")
    with allow_own_code(own_code):
        target = local_path(str(out)) if out is not None else None
        held = AnswerSchema(local_path(str(schema))) if schema is not None else None
        if target:
            refuse_other_files(target, overwrite=overwrite)
        before = remembered(target, overwrite=overwrite) if target else {}
        more: dict[str, Any] = {"date": before.get("date") or today(), "drawn_seed": before.get("drawn_seed")}
        if sampling.temperature and sampling.seed is None:
            more["drawn_seed"] = more["drawn_seed"] or 1 + secrets.randbelow(2**31 - 1)
            sampling = replace(sampling, seed=more["drawn_seed"])
        how = {"server_model": server_model, "batch_size": batch_size, "date": str(more["date"])}
        opened = open_model(model, sampling, **how)  # type: ignore[arg-type]
        given = read_rows(_as_given(rows), overrides=overrides, run=opened.run, system=system)
        names = name_columns(given.rows, answer_column)
        if target:
            check_form(target, given.rows, given.path)
        _tell_start(opened, given, sampling, names.answer, batch_size)
        settings = asdict(sampling) | {"seed": seed, "batch_size": batch_size, "system": system and _short(system)}
        record = {
            "questions": {"rows": len(given.raw), "sha256": given.digest()},
            "model": opened.identity,
            "settings": settings,
        }
        if target is None:
            return _returned(rows, given, _added(_answered(opened, given, [], None), names, held, given, sampling))
        window = BATCHES * batch_size
        with begun(target, record, more=more, window=window, overwrite=overwrite) as progress:
            if progress.said:
                console.line("begun", f"{len(progress.said):,} of {len(given.raw):,} rows were answered before")
            started = monotonic()
            try:
                said = _answered(opened, given, progress.said, progress)
            except KeyboardInterrupt:
                console.note(f"{rows_of(len(progress.said))} answered so far; the same command goes on from there")
                raise
            added = _added(said, names, held, given, sampling)
            write(target, given.rows, added, given.path)
            progress.remove()
        console.line("written", f"{target}: {rows_of(len(said))} in {console.clock(monotonic() - started)}")
        return _returned(rows, given, added)


def _as_given(rows: Any) -> Any:
    """A path, or a list of dictionaries."""
    if isinstance(rows, str | Path):
        return rows
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return rows.to_dict("records")
    if hasattr(rows, "to_dicts"):  # Polars
        return rows.to_dicts()
    return list(rows)


def _returned(rows: Any, given: InputRows, added: Mapping[str, Sequence[Any]]) -> Any:
    """The rows with the answers, as they were given."""
    if hasattr(rows, "to_dict") and hasattr(rows, "assign"):
        return rows.assign(**added)
    return with_columns(given.rows, added)


def _answered(opened: Opened, given: InputRows, before: Sequence[Said], progress: Any) -> list[Said]:
    """The answers to all rows, those of before among them."""
    questions, said = given.questions, list(before)
    if len(said) == len(questions):
        return said
    _refuse_template(opened, questions)
    answerer = opened.load()
    with _counting(len(questions), len(said)) as on_rows:
        for first, window in in_windows(questions, answerer, len(said)):
            answers = _of_window(answerer, window, first, on_rows)
            if first == 0:
                _refuse_all_wrong(window, answers)
            if progress:
                progress.add(answers, [each.source for each in window])
            said += answers
    return said


def _refuse_template(opened: Opened, questions: Sequence[Question]) -> None:
    """Raise ConfigError, before weights are read, where the chat template takes none of the first rows."""
    first = [each for each in questions if not each.problem][:ROWS_TRIED] if opened.source else []
    wrong: list[str] = []
    for question in first:
        assert opened.source is not None
        try:
            opened.source.prompt(question.messages, question.tools, advise=False)
            return
        except ConfigError as error:
            wrong.append(f"{question.source}: {error}")
    if wrong:
        raise ConfigError(f"none of the first {rows_of(len(wrong))} can be asked. {wrong[0]}")


def _of_window(answerer: Answerer, window: Sequence[Question], first: int, on_rows: OnRows) -> list[Said]:
    """The answers to the rows of a window; those that cannot be asked say why."""
    good = [each for each in window if not each.problem]
    on_rows(len(window) - len(good))
    answers = iter(answerer.answers(good, first, on_rows))
    return [Said(problem=f"{each.source}: {each.problem}") if each.problem else next(answers) for each in window]


def _refuse_all_wrong(window: Sequence[Question], answers: Sequence[Said]) -> None:
    """Raise QdoraError where no row of the first window was answered: so it would go on."""
    if all(each.problem for each in answers):
        raise QdoraError(
            f"none of the first {len(window):,} rows can be answered. {window[0].source}: {answers[0].problem}"
        )


def _added(
    said: Sequence[Said], names: Any, schema: AnswerSchema | None, given: InputRows, sampling: SamplingParams
) -> dict[str, list[Any]]:
    """Our columns, once it is said what became of the rows."""
    added = added_columns(said, names, schema)
    cut = sum(each.stopped_by == LENGTH for each in said)
    good = sum(each.stopped_by == STOP for each in said)
    parts = [f"{good:,} of {len(said):,} came to their end"]
    if cut:
        parts.append(f"{cut:,} cut at {sampling.max_new_tokens:,} tokens or where the model is full (--max-new-tokens)")
    if empty := sum(each.text == "" for each in said):
        parts.append(f"{empty:,} empty")
    console.line("answers", "; ".join(parts))
    if schema:
        valid = sum(added[names.by_own["valid_json"]])
        console.line("json", f"{valid:,} of {len(said):,} answers are valid JSON for {schema.path}")
    wrong = [
        Question(question.source, problem=each.problem.removeprefix(f"{question.source}: "))
        for question, each in zip(given.questions, said, strict=True)
        if each.problem
    ]
    if wrong:
        console.line(
            "warning",
            f"{rows_of(len(wrong))} without an answer; `{names.by_own['error']}` says why: {sources_of(wrong)}",
        )
    return added


def _tell_start(opened: Opened, given: InputRows, sampling: SamplingParams, column: str, batch_size: int) -> None:
    console.line("model", f"{opened.name}: {opened.about}")
    tell(given)
    how = f"temperature {sampling.temperature:g}" if sampling.temperature else "greedy"
    taken = (
        ""
        if column == "answer" or "answer" not in {key for row in given.rows for key in row}
        else (f"; in column `{column}`, since the rows have a column `answer`, which stays as it is")
    )
    console.line("answers", f"{how}, {sampling.max_new_tokens:,} tokens at most, {batch_size} at a time{taken}")


@contextmanager
def _counting(total: int, done: int) -> Iterator[OnRows]:
    """A bar with the time that is left; a line every half minute where nobody watches."""
    begun_at = monotonic()
    counted = {"done": float(done), "told": begun_at}

    with console.counting_rows("answering", total) as bar:
        bar(done)

        def on_rows(count: int) -> None:
            counted["done"] += count
            bar(count)
            now, finished = monotonic(), int(counted["done"])
            if not console.is_terminal() and finished < total and now - counted["told"] >= TOLD_EVERY:
                counted["told"] = now
                left = (now - begun_at) * (total - finished) / max(1, finished - done)
                console.print(f"  {finished:,} of {total:,} rows, about {console.clock(left)} left")

        yield on_rows


def _short(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
