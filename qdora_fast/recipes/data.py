"""The data alone: prepare it, look at it, have a person read a sample. What `qdora-fast data` does.

`train` runs the same steps before it reads a weight (`ready_data`), and checks afterwards that the loaded model's
tokenizer is the one that was used (`confirm`). A model is needed only for `data.quality`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qdora_fast.config import Config
from qdora_fast.config.code import FORMATTER
from qdora_fast.config.own_code import allow_own_code, require_code_allowed
from qdora_fast.data.dataset import DUPLICATES, Prepared
from qdora_fast.data.demo.base import DEMO, demo_base
from qdora_fast.data.read.messages import ROW_SHAPE
from qdora_fast.data.read.remote import fetched_once
from qdora_fast.data.store import REJECTED
from qdora_fast.data.tokenize.chat_text import asks_for_clock, today
from qdora_fast.data.tokenize.embeddings import require_embedded
from qdora_fast.data.tokenize.render import Renderer, Rendering
from qdora_fast.data.tokenize.templates import TemplateChoice
from qdora_fast.models.backend import open_backend
from qdora_fast.models.run_info import read_run_info
from qdora_fast.planning.auto.kinds import Resolved, RowLengths
from qdora_fast.planning.cards import ANY_MACHINE, this_machine
from qdora_fast.planning.memory.base import base_config, sizes_of
from qdora_fast.recipes import messages
from qdora_fast.recipes.auto import (
    has_auto,
    limit_exceeded,
    resolve,
    to_measure,
    with_length,
    without_length_limit,
)
from qdora_fast.recipes.given import settings_given
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, DoesNotFit, RefusedError
from qdora_fast.system.paths import local_path
from qdora_fast.system.run_folder import RunFolder, write_json
from qdora_fast.training.resume import base_fingerprint

CONFIRMED_ROWS = 8


@dataclass(frozen=True)
class Ready:
    """Prepared rows, how they became tokens, and the base they are for."""

    prepared: Prepared
    rendering: Rendering
    base_name: str
    config: Config
    """What they were prepared by, without `auto`, and with the date that the chat template prints, if it does."""
    resolved: Resolved | None = None
    """What `auto` became, if there was any."""


def prepare_data(
    config: str | Path | Mapping[str, Any] | Config, *, own_code: Sequence[str | Path] = (), **sections: Any
) -> Prepared:
    """Prepare the rows of a config as `train` would, and print what became of them.

    Args:
        config: name of a preset, path of a YAML file, a dictionary of sections, or a Config.
        own_code: files of code that may run where the config names them; `--own-code` of the command line.
        **sections: settings that replace the config's, for instance data={"path": "my.jsonl"}, or data={"rows": ...}
            for rows in memory, as `train` takes them.

    Returns:
        Rows and tokens of both sides, and `.report`.

    Raises:
        QdoraError: every foreseen failure, with the place and the fix in its message.
    """
    settings, _ = settings_given(config, sections)
    open_backend()  # a later `train` in this process needs it to come before transformers
    with allow_own_code(own_code):
        ready = ready_data(settings, find_base(settings), trains=False)
    ready = with_quality(ready, ready.config)
    messages.preflight(ready)
    return ready.prepared


def run_data(config: Config, *, name: str, out: Path | None, reviewed: Path | None) -> dict[str, Any]:
    """Prepare the rows, print a summary, write rows, report and the page of the sample; returns the report as JSON."""
    require_code_allowed(config, FORMATTER)
    if config.data.quality.enabled:
        open_backend()
    ready = ready_data(config, find_base(config), trains=False)
    ready = with_quality(ready, ready.config)
    messages.preflight(ready)
    folder = out or Path(config.run.dir) / f"{name}-data"
    review = read_review(ready.prepared, reviewed, config) if reviewed else None
    write_data(ready.prepared, folder, name=name, seed=config.train.seed, review=review)
    messages.prepared_data(folder, review)
    if review is not None:
        record_review(folder, review)
    return ready.prepared.report.as_json() | {"path": str(folder), "review": review.as_json() if review else None}


def review_run(folder: RunFolder, reviewed: Path) -> dict[str, Any]:
    """Record the review of a finished run's data in its evaluation log; returns the review as JSON."""
    from qdora_fast.data.report.review import read_review as read

    report = folder.read_json("data/report.json", {"hash": str})
    hashes = {row["meta"]["hash"] for row in folder.read_rows("data/train.jsonl", ROW_SHAPE)}
    review = read(reviewed, dataset=report["hash"], hashes=hashes)
    record_review(folder.path, review)
    return dict(review.as_json())


def find_base(config: Config, resumed: RunFolder | None = None) -> str:
    """The name of the base that loaders take: a hub id, or the absolute path of a folder.

    Args:
        resumed: the run to resume. One that began on another embedded base than this package's, as each machine once
            made its own, is resumed on that one where it still exists.

    Raises:
        IntegrityError: the embedded base is damaged.
    """
    if config.model.name == DEMO:
        first_base = Path(read_run_info(resumed).base) if resumed else None
        return str(first_base if first_base and first_base.is_dir() else demo_base())
    folder = local_path(config.model.name)
    return str(folder.resolve()) if folder.is_dir() else config.model.name


@fetched_once()
def ready_data(config: Config, base_name: str, *, trains: bool = True) -> Ready:
    """Rows, masks and tokens, with the tokenizer of the base; no weight is read.

    Args:
        trains: they are to be trained on here, so that `auto` becomes what fits; else it becomes what they need.

    Raises:
        DataError: see `data.prepare`.
        ConfigError: the base or its tokenizer is not there, the template does not fit, rows use tokens that the base
            has no embeddings for.
        RefusedError: rows are longer than the base was made for.
        DoesNotFit: nothing that `auto` could become fits here.
    """
    config = _within_limit(config, base_name)
    if has_auto(config):
        config, resolved = _resolve_auto(config, base_name, trains=trains)
        messages.resolved(resolved)
        return replace(ready_data(config, base_name), resolved=resolved)
    return _prepared(config, base_name)


def _prepared(config: Config, base_name: str) -> Ready:
    """Rows and tokens by a config without `auto`, all of which the base has embeddings for."""
    from qdora_fast.data import choose_template, prepare
    from qdora_fast.models.new_tokens import add_tokens
    from qdora_fast.models.tokenizer import embedding_count, load_tokenizer

    tokenizer, stop_ids = load_tokenizer(base_name, config.model.revision)
    embeddings = embedding_count(base_name, config.model.revision) or len(tokenizer)
    if tokens := config.adapter.trainable_tokens:
        embeddings = max(embeddings, 1 + max(add_tokens(tokenizer, tokens, rows=embeddings)))
    template = choose_template(tokenizer, config.data.template)
    config = with_date(config, tokenizer)
    rendering = _rendering(config, tokenizer, stop_ids, template)
    with console.counting_rows("preparing rows") as on_rows:
        prepared = prepare(config.data, seed=config.train.seed, rendering=rendering, on_rows=on_rows)
    sides = ((prepared.train, prepared.scored_examples), (prepared.held_out, prepared.held_out_examples))
    require_embedded(sides, tokenizer, embeddings, config.model.name)
    return Ready(prepared, rendering, base_name, config)


def _within_limit(config: Config, base_name: str) -> Config:
    """The config with no longer rows than the base was made for.

    Raises:
        RefusedError: there are such rows, and the config's own number asks for them.
    """
    limit = limit_exceeded(config, base_name)
    if limit is None:
        return config
    prepared = _prepared(without_length_limit(config), base_name).prepared
    tokens = prepared.columns.tokens[np.concatenate([prepared.chosen, prepared.held])]
    if longer := int((tokens > limit).sum()):
        raise RefusedError(
            f"model.max_length: {config.model.max_length:,} is more than the {limit:,} tokens that "
            f"`{config.model.name}` was made for, and {longer:,} of {len(tokens):,} rows are longer than that (the "
            f"longest has {int(tokens.max()):,}). Set model.max_length: {limit}: they are then dropped, or cut with "
            "data.on_long: truncate. To train it for longer texts, write rope_scaling or max_position_embeddings into "
            "its config.json first, so that exports have it, too"
        )
    messages.length_limited(config.model.length, limit)
    return with_length(config, limit)


def confirm(ready: Ready, base: Any, config: Config) -> Ready:
    """Set the template on the loaded model's tokenizer, and make sure that it gives the tokens that were prepared."""
    from qdora_fast.data import choose_template, prepare

    template = choose_template(base.tokenizer, config.data.template)
    rendering = _rendering(config, base.tokenizer, base.stop_ids, template)
    before, after = Renderer(ready.rendering), Renderer(rendering)
    rows = ready.prepared.train[:CONFIRMED_ROWS]
    if ready.rendering.stop_ids == rendering.stop_ids and all(before(row) == after(row) for row in rows):
        return replace(ready, rendering=rendering)
    messages.tokenizer_differs()
    prepared = prepare(config.data, seed=config.train.seed, rendering=rendering)
    return replace(ready, prepared=prepared, rendering=rendering)


def with_quality(ready: Ready, config: Config, base: Any | None = None) -> Ready:
    """Without the rows that the reference model finds unfit, if `data.quality` asks for it.

    Args:
        base: the loaded base, where there is one already.
    """
    settings = config.data.quality
    if not settings.enabled:
        return ready
    from qdora_fast.data.clean import quality

    prepared = ready.prepared
    cached = prepared.folder / f"scores-{_scorer(ready, config)}.npy"
    scores = quality.load_scores(cached) if config.data.cache else None
    if scores is None:
        model, tokenizer = _reference(ready, config, base)
        with console.counting_rows("reading training rows with the reference model", len(prepared.train)) as tell:
            scores = quality.score(model, tokenizer, prepared.scored_examples or [], settings, on_rows=tell)
        if config.data.cache:
            quality.save_scores(cached, scores)
    verdicts = quality.choose(scores, prepared.scripts, settings)
    return replace(ready, prepared=prepared.without(verdicts, quality.report(prepared.train, scores, verdicts)))


def write_data(prepared: Prepared, folder: Path, *, name: str, seed: int, review: Any | None = None) -> None:
    """Write train.jsonl, held_out.jsonl, rejected.jsonl, duplicates.jsonl, report.json, report.html, review.html."""
    from qdora_fast.data.report.pages import report_page, review_page
    from qdora_fast.data.report.review import sample

    folder.mkdir(parents=True, exist_ok=True)
    prepared.train.write(folder / "train.jsonl")
    prepared.held_out.write(folder / "held_out.jsonl")
    for file in (REJECTED, DUPLICATES):
        shutil.copyfile(prepared.folder / file, folder / file)
    report = prepared.report.as_json() | {"name": name, "review": review.as_json() if review else None}
    write_json(folder / "report.json", report)
    (folder / "report.html").write_text(report_page(report, name=name), encoding="utf-8")
    rows = [prepared.train[index] for index in sample(prepared.train, seed=seed)]
    page = review_page(rows, dataset=prepared.report.hash, name=name)
    (folder / "review.html").write_text(page, encoding="utf-8")


def read_review(prepared: Prepared, path: Path, config: Config) -> Any:
    """A person's marks on the sample of this data.

    Raises:
        DataError: not such a file, or made for another version of the data.
    """
    from qdora_fast.data.report.review import read_review as read
    from qdora_fast.data.report.review import sample

    rows = prepared.train
    hashes = {rows[index]["meta"]["hash"] for index in sample(rows, seed=config.train.seed)}
    return read(path, dataset=prepared.report.hash, hashes=hashes)


def record_review(folder: Path, review: Any) -> None:
    """Append a review to the evaluation log below `folder`."""
    from qdora_fast.evaluation import log

    messages.reviewed(review, log.append(folder, "data_review", review.as_json()))


def _resolve_auto(config: Config, base_name: str, *, trains: bool) -> tuple[Config, Resolved]:
    """The config with numbers in place of `auto`, chosen by the rows as long as the model can take them."""
    base = base_config(base_name, config.model.revision)
    sizes = sizes_of(base.values, base.name, config.model.revision)
    prepared = _prepared(to_measure(config, sizes), base_name).prepared
    inside = np.concatenate([prepared.chosen, prepared.held])
    rows = RowLengths(prepared.columns.tokens[inside], beyond=prepared.report.dropped_for("too_long"))
    machine = this_machine(config.train.vram) if trains else ANY_MACHINE
    config, resolved = resolve(config, sizes, machine, rows)
    if resolved.refusal:
        raise DoesNotFit(resolved.refusal)
    return config, resolved


def with_date(config: Config, tokenizer: Any) -> Config:
    """The config with the day that the tokenizer's chat template is told, where it asks and none is named: today."""
    if config.data.date or not asks_for_clock(tokenizer):
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"date": today()})})


def _rendering(config: Config, tokenizer: Any, stop_ids: frozenset[int], template: TemplateChoice) -> Rendering:
    data = config.data
    return Rendering(
        tokenizer,
        config.model.length,
        data.train_on,
        data.on_long,
        stop_ids,
        data.filters.max_fraction,
        template,
        date=data.date if asks_for_clock(tokenizer) else None,
        thinking=data.thinking,
    )


def _reference(ready: Ready, config: Config, base: Any | None) -> tuple[Any, Any]:
    """The model that scores: the base as it is tuned, or the sibling that was named."""
    from qdora_fast.models.loading import check_base, load_base, load_reference
    from qdora_fast.training.trainer import choose_precision

    sibling = config.data.quality.model
    if sibling is None:
        if base is None:
            sections = (config.model, config.adapter)
            targets = check_base(ready.base_name, *sections, merge_base=config.export.merge_base)
            precision = choose_precision(config.train)
            base = load_base(ready.base_name, *sections, config.train, targets=targets, precision=precision)
        return base.model, base.tokenizer
    model, tokenizer = load_reference(sibling, setting="data.quality.model: ")
    wanted = ready.rendering.identity()["tokenizer"]
    if replace(ready.rendering, tokenizer=tokenizer).identity()["tokenizer"] != wanted:
        raise ConfigError(
            f"data.quality.model: `{sibling}` has another tokenizer than the base; name a smaller model of the same "
            "family, or leave it empty to score with the base itself"
        )
    return model, tokenizer


def _scorer(ready: Ready, config: Config) -> str:
    """Names the scores of one model for one set of rows."""
    settings = config.data.quality
    reference = base_fingerprint(settings.model or ready.base_name, config.model.revision)
    named = (reference, config.adapter.quantized, config.train.precision)
    shaped_by = f"{named} {settings.min_answer_tokens} {ready.prepared.report.hash}"
    return hashlib.sha256(shaped_by.encode()).hexdigest()[:16]
