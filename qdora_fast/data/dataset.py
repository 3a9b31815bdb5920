"""From paths to checked rows, split in two and tokenised: `prepare`.

    read → convert → filter → tokenise      one row at a time, on all cores           pipeline.py, row_processor.py
    duplicates → short rows → split         over all rows                             selection.py
    report, version hash                    what became of every row                  builder.py, report.py

No model is needed, only (for token counts, lengths and masks) its tokenizer, so that bad data fails before any weight
is read. Prepared rows are cached (cache.py). The quality score of a reference model, if asked for, comes
afterwards: see `Prepared.without`.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from qdora_fast.config import DataSettings
from qdora_fast.data import cache
from qdora_fast.data.clean.quality import QualityReport, Verdicts
from qdora_fast.data.clean.rejects import MALFORMED, Dropped, bullet_list, total
from qdora_fast.data.clean.selection import select
from qdora_fast.data.pipeline import OnRows, process_all
from qdora_fast.data.read import custom, remote
from qdora_fast.data.read.sources import Source, open_source
from qdora_fast.data.report.builder import ReportBuilder, after_quality
from qdora_fast.data.report.report import STEP_OF, DataReport, load_report, save_report
from qdora_fast.data.row_processor import Origin, RowProcessor
from qdora_fast.data.store import OTHER_CACHE, ROWS, Columns, Examples, Rows, RowWriter, open_examples
from qdora_fast.data.tokenize.render import Rendering, refuse_hopeless
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import DataError

DUPLICATES, ARRAYS, ACCOUNT = "duplicates.jsonl", "arrays.npz", "account.json"


@dataclass(frozen=True)
class Prepared:
    """Training rows, held-out rows, their tokens and the report. All in the order of the files."""

    folder: Path
    """Where rows and tokens lie; rejected.jsonl and duplicates.jsonl beside them name every dropped row."""
    columns: Columns
    report: DataReport
    chosen: np.ndarray
    """Numbers of the training rows, each once, ascending."""
    per_epoch: np.ndarray
    """The same as an epoch has them: without those that a weight thins, with those that it repeats."""
    held: np.ndarray
    """Numbers of the rows held out."""

    @cached_property
    def train(self) -> Rows:
        """The training rows, each once."""
        return Rows(self.folder / ROWS, self.columns.starts, self.chosen)

    @cached_property
    def held_out(self) -> Rows:
        """The rows held out."""
        return Rows(self.folder / ROWS, self.columns.starts, self.held)

    @cached_property
    def train_examples(self) -> Examples | None:
        """Tokens of one epoch; None without a tokenizer."""
        return open_examples(self.folder, self.per_epoch)

    @property
    def tokens(self) -> Examples:
        """`train_examples` of rows that were tokenised."""
        assert self.train_examples is not None, "prepared without a tokenizer"
        return self.train_examples

    @cached_property
    def scored_examples(self) -> Examples | None:
        """Tokens of `train`, row by row."""
        return open_examples(self.folder, self.chosen)

    @cached_property
    def held_out_examples(self) -> Examples | None:
        """Tokens of `held_out`, row by row."""
        return open_examples(self.folder, self.held)

    @property
    def train_tokens(self) -> int:
        """Tokens of an epoch; 0 without a tokenizer."""
        return self.report.tokens.total if self.report.tokens else 0

    @property
    def scripts(self) -> list[str]:
        """The dominant script of each row of `train`."""
        return [str(script) for script in self.columns.scripts[self.chosen]]

    def __repr__(self) -> str:
        """How many rows, and of what, in two lines."""
        return f"Prepared: {self.report}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.report._repr_html_()

    def source_of(self, ids: Sequence[int]) -> str | None:
        """Where the training row with these tokens stands, as its file calls it; None: there is no such row."""
        rows = Rows(self.folder / ROWS, self.columns.starts, self.per_epoch)
        for index in np.flatnonzero(self.columns.tokens[self.per_epoch] == len(ids)):
            if self.tokens[int(index)]["input_ids"] == list(ids):
                return str(rows[int(index)]["meta"]["source"])
        return None

    def without(self, verdicts: Verdicts, quality: QualityReport) -> Prepared:
        """The same without the training rows that the verdicts of a reference model name; held-out rows all stay."""
        gone = {int(self.chosen[verdict.index]): verdict for verdict in verdicts}
        chosen = self.chosen[~np.isin(self.chosen, list(gone))]
        per_epoch = self.per_epoch[~np.isin(self.per_epoch, list(gone))]
        reasons = [(self.train.source_of(each.index), each.reason, each.detail) for each in gone.values()]
        report = after_quality(self.report, self.columns, (chosen, per_epoch, self.held), reasons, quality)
        return Prepared(self.folder, self.columns, report, chosen, per_epoch, self.held)


def prepare(
    settings: DataSettings, *, seed: int, rendering: Rendering | None = None, on_rows: OnRows | None = None
) -> Prepared:
    """Prepare the rows that `settings` describes.

    Args:
        settings: the `data` section of a config.
        seed: decides which prompts are held out, nothing else.
        rendering: tokenizer and lengths; None prepares rows alone, without the filters that count tokens.
        on_rows: called with the number of rows processed since the last call; never where the cache has the result.

    Raises:
        DataError: unreadable, of unknown format, malformed, or too few to hold any out.
        ConfigError: a formatter that may not or cannot be run, a slow tokenizer.
        DiskSpaceError: no room for the prepared rows.
    """
    with remote.fetched_once():
        return _prepare(settings, seed, rendering, on_rows)


def _prepare(settings: DataSettings, seed: int, rendering: Rendering | None, on_rows: OnRows | None) -> Prepared:
    if not settings.cache:
        keeper = tempfile.TemporaryDirectory(prefix="qdora-fast-data-")
        prepared = _make(Path(keeper.name), settings, seed, rendering, on_rows)
        weakref.finalize(prepared, keeper.cleanup)
        return prepared
    folder = cache.entry(settings, seed=seed, rendering=rendering)
    if not folder.is_dir():
        with cache.new_entry(folder) as building:
            _make(building, settings, seed, rendering, on_rows)
    cache.used(folder)
    return _open(folder)


def _make(
    folder: Path, settings: DataSettings, seed: int, rendering: Rendering | None, on_rows: OnRows | None
) -> Prepared:
    own = settings.own_held_out
    sources = [open_source(source) for source in settings.mixture]
    sources += [open_source(own, held_out=True)] if own else []
    processor = RowProcessor([_origin(source, source.settings is own) for source in sources], settings, rendering)
    writer = RowWriter(folder)
    statistics = process_all(sources, processor, writer, workers=settings.workers, on_rows=on_rows)
    columns = writer.columns()
    dropped = statistics.drops.dropped()
    _refuse_malformed(statistics.rows_in, dropped, sources, settings)
    if rendering:
        in_tokens = [each for each in dropped if STEP_OF[each.reason] == "tokens"]
        refuse_hopeless(len(columns) + total(in_tokens), len(columns), in_tokens, rendering.max_length)
    selection = select(columns, writer, settings, seed=seed, dropped=dropped)

    builder = ReportBuilder(settings, sources, columns, statistics, selection, writer.rows(columns))
    with disk_errors(folder, elsewhere=OTHER_CACHE):
        writer.reject(builder.late_drops)
        builder.write_duplicates(folder / DUPLICATES)
        report = builder.report(cache.settings_hash(settings, seed=seed, rendering=rendering), rendering)
        save_report(folder / ACCOUNT, report)
        arrays = {each.name: getattr(columns, each.name) for each in fields(columns)}
        sides = {"train": selection.train, "per_epoch": selection.per_epoch, "held": selection.held_out}
        np.savez(folder / ARRAYS, allow_pickle=False, **arrays, **sides)
    writer.close()
    return Prepared(folder, columns, report, selection.train, selection.per_epoch, selection.held_out)


def _open(folder: Path) -> Prepared:
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        columns = Columns(**{each.name: arrays[each.name] for each in fields(Columns)})
        train, per_epoch, held = arrays["train"], arrays["per_epoch"], arrays["held"]
    return Prepared(folder, columns, load_report(folder / ACCOUNT), train, per_epoch, held)


def _origin(source: Source, is_own_held_out: bool) -> Origin:
    name = source.settings.formatter
    return Origin(source.detection.converter(), custom.load_formatter(name) if name else None, is_own_held_out)


def _refuse_malformed(rows_in: int, dropped: Sequence[Dropped], sources: list[Source], settings: DataSettings) -> None:
    """Stop on rows that cannot be read, unless they may be skipped; on a set of which most cannot be used, always."""
    unread = [each for each in dropped if each.reason != "left_out" and STEP_OF[each.reason] in ("read", "convert")]
    if total(unread) * 2 > rows_in:
        named = "; ".join(f"{source.path} as `{source.detection.name}` ({source.detection.why})" for source in sources)
        raise DataError(
            f"{total(unread)} of {rows_in} rows cannot be used. They were read from {named}:\n{bullet_list(unread)}\n"
            "Repair these rows, choose another data.format or data.columns, or write a data.formatter."
        )
    malformed = [each for each in dropped if each.reason in MALFORMED]
    if malformed and settings.on_bad_row == "error":
        raise DataError(
            f"{total(malformed)} of {rows_in} rows cannot be read:\n{bullet_list(malformed)}\n"
            "Repair or delete them, or set data.on_bad_row: skip to go on without them."
        )
