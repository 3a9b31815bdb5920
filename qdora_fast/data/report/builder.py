"""Puts the report together: from what the pipeline counted and the selection decided to one `DataReport`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from qdora_fast.config import DataSettings
from qdora_fast.data.clean import dedup
from qdora_fast.data.clean.languages import MOST_TEXTS, languages, shares
from qdora_fast.data.clean.lengths import TokenReport, describe_tokens
from qdora_fast.data.clean.quality import QualityReport
from qdora_fast.data.clean.rejects import KEEPING, DropCounter, Dropped, total
from qdora_fast.data.clean.selection import TOO_MANY, SelectedRows
from qdora_fast.data.pipeline import RowStatistics
from qdora_fast.data.read.detection import Detection, readable
from qdora_fast.data.read.fields import UnusedFields
from qdora_fast.data.read.sources import Source
from qdora_fast.data.report.report import (
    STEP_OF,
    Cluster,
    DataReport,
    DuplicateIds,
    DuplicateReport,
    SourceReport,
    SplitReport,
    UnusedColumn,
)
from qdora_fast.data.report.thinking import ThinkingReport, describe_thinking
from qdora_fast.data.store import Columns, Rows
from qdora_fast.data.tokenize.left_out import DATED, EARLIER, LOSSES, loss_sentence
from qdora_fast.data.tokenize.render import FLAGS, Rendering, contents
from qdora_fast.data.tokenize.thinking import thinks

WARNED = ("filters", "tokens")
"""Steps of which more than a third of the rows is worth a warning; the selection has its own."""
CLUSTERS_SHOWN, MEMBERS_SHOWN, TEXT_SHOWN = 10, 5, 200


class ReportBuilder:
    """Builds the report of one preparation from what the pipeline counted and the selection decided."""

    def __init__(
        self,
        settings: DataSettings,
        sources: Sequence[Source],
        columns: Columns,
        statistics: RowStatistics,
        selection: SelectedRows,
        rows: Rows,
    ) -> None:
        self.settings, self.sources, self.columns = settings, sources, columns
        self.statistics, self.selection, self.rows = statistics, selection, rows

    @cached_property
    def late_drops(self) -> list[tuple[str, str, str]]:
        """(source, reason, detail) of the rows that the selection dropped; the pipeline has written its own."""
        return [(self.rows.source_of(row), reason, detail) for row, reason, detail in self.selection.dropped]

    def write_duplicates(self, path: Path) -> None:
        """Write one line for each group of duplicates: the row that stays, and the others."""
        with path.open("w", encoding="utf-8") as file:
            for cluster in self._clusters:
                members = [
                    {"place": self.rows.source_of(each.row), "kind": each.kind, "similarity": round(each.similarity, 3)}
                    for each in cluster.members
                ]
                line = {"kept": self.rows.source_of(cluster.representative), "members": members}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def report(self, settings_hash: str, rendering: Rendering | None) -> DataReport:
        """The report; see `DataReport`."""
        drops, chosen = self.statistics.drops, self.selection
        for source, reason, detail in self.late_drops:
            drops.count(reason, source, detail)
        dropped = drops.dropped()
        content = content_hash(self.columns, chosen.train, chosen.held_out)
        tokens = self._tokens(rendering, dropped) if rendering else None
        ids = self._duplicate_ids()
        inside = np.concatenate([chosen.train, chosen.held_out])
        return DataReport(
            rows_in=self.statistics.rows_in,
            kept=len(inside),
            dropped=dropped,
            train=len(chosen.train),
            held_out=len(chosen.held_out),
            per_epoch=len(chosen.per_epoch),
            hash=version_hash(content, settings_hash),
            content_hash=content,
            settings_hash=settings_hash,
            repairs=dict(self.statistics.repairs),
            sources=tuple(self._source(number) for number in range(len(self.sources))),
            duplicates=self._duplicates(),
            split=SplitReport(chosen.groups, self.settings.group, self.settings.stratify, tuple(chosen.strata)),
            tokens=tokens,
            scripts=shares(self.columns.scripts[inside].tolist()),
            languages=languages(self.statistics.texts),
            languages_of=min(len(self.statistics.texts), MOST_TEXTS),
            duplicate_ids=ids,
            warnings=tuple(self._warnings(dropped, ids)),
            notes=tuple(self._notes(rendering)),
            thinking=self._thinking(rendering, tokens),
        )

    @cached_property
    def _clusters(self) -> list[dedup.Cluster]:
        return self.selection.duplicates.clusters() if self.selection.duplicates else []

    def _source(self, number: int) -> SourceReport:
        source, chosen, origins = self.sources[number], self.selection, self.columns.origins
        read, detection = source.report(), source.detection
        epoch = chosen.per_epoch[origins[chosen.per_epoch] == number]
        return SourceReport(
            path=source.path,
            weight=source.settings.weight,
            rows_in=self.statistics.by_origin[number],
            train=int((origins[chosen.train] == number).sum()),
            held_out=int((origins[chosen.held_out] == number).sum()),
            per_epoch=len(epoch),
            tokens=int(self.columns.tokens[epoch].sum()),
            format=detection.name,
            why=detection.why,
            agreement=detection.agreement,
            checked=detection.checked,
            files=read.files,
            skipped=read.skipped,
            other_splits=read.other_splits,
            unused=tuple(_unused_columns(self.statistics.unused[number], detection)),
            read=self.statistics.unused[number].rows,
        )

    def _duplicates(self) -> DuplicateReport:
        largest = [
            Cluster(
                kept=self.rows.source_of(cluster.representative),
                text=" ".join("\n".join(contents(self.rows[cluster.representative])).split())[:TEXT_SHOWN],
                members=tuple(
                    (self.rows.source_of(each.row), each.kind, round(each.similarity, 3))
                    for each in cluster.members[:MEMBERS_SHOWN]
                ),
                size=len(cluster.members),
            )
            for cluster in self._clusters[:CLUSTERS_SHOWN]
        ]
        kinds = Counter(each.kind for cluster in self._clusters for each in cluster.members)
        return DuplicateReport(
            kinds["exact"],
            kinds["near"],
            self.settings.dedup.similarity,
            len(self._clusters),
            tuple(largest),
            self.selection.contaminated,
        )

    def _tokens(self, rendering: Rendering, dropped: Sequence[Dropped]) -> TokenReport:
        epoch = self.selection.per_epoch
        bits = {name: int((self.columns.flags[epoch] >> bit & 1).sum()) for bit, name in enumerate(FLAGS)}
        truncated = bits.pop("truncated")
        return describe_tokens(
            self.columns.tokens[epoch],
            self.columns.trained[epoch],
            beyond=self.statistics.too_long,
            max_length=rendering.max_length,
            limit=rendering.limit,
            fraction=rendering.limit / rendering.max_length,
            truncated=truncated,
            too_short=sum(each.count for each in dropped if each.reason == "too_short"),
            flags={name: count for name, count in bits.items() if count},
        )

    def _thinking(self, rendering: Rendering | None, tokens: TokenReport | None) -> ThinkingReport | None:
        if rendering is None or tokens is None or rendering.thinking == "as_is":
            return None
        thinking = thinks(rendering.tokenizer)
        if thinking is None:
            return None
        return describe_thinking(thinking, rendering.thinking, len(self.selection.per_epoch), tokens.flags)

    def _duplicate_ids(self) -> DuplicateIds | None:
        repeated = [ids for ids in self.statistics.ids if ids.count]
        if not repeated:
            return None
        examples = tuple(example for ids in repeated for example in ids.examples)[:3]
        return str(repeated[0].column), sum(ids.count for ids in repeated), examples

    def _warnings(self, dropped: Sequence[Dropped], ids: DuplicateIds | None) -> list[str]:
        warnings = list(self.selection.warnings)
        for each in dropped:
            if (
                STEP_OF[each.reason] in WARNED
                and each.reason in KEEPING
                and each.count > TOO_MANY * self.statistics.rows_in
            ):
                warnings.append(
                    f"{each.count} of {self.statistics.rows_in} rows were dropped as {each.reason}; "
                    f"{KEEPING[each.reason]} keeps them"
                )
        if self.selection.contaminated:
            warnings.append(
                f"the check after the split found {self.selection.contaminated} training rows that are like a "
                "held-out row; they were dropped"
            )
        if ids:
            warnings.append(f"{ids[1]} rows have the {ids[0]} of an earlier row ({'; '.join(ids[2])}); all were read")
        left_out = {each.reason: each for each in self.statistics.left_out.dropped()}
        warnings += [
            loss_sentence(kind, left_out[kind].count, len(self.columns), left_out[kind].examples)
            for kind in LOSSES
            if kind in left_out
        ]
        return warnings

    def _notes(self, rendering: Rendering | None) -> Iterator[str]:
        """What the chat template does that is no fault, and that one wants to know."""
        rows = {each.reason: f"{each.count:,} of {len(self.columns):,}" for each in self.statistics.left_out.dropped()}
        if DATED in rows and rendering:
            yield (
                f"the chat template prints the date, in {rows[DATED]} rows: it is {rendering.date} in all that is "
                "learned, evaluated and proven (data.date); where the model is served it is the day's own"
            )
        if EARLIER in rows:
            learned = ""
            if rendering and rendering.thinking != "as_is" and rendering.train_on == "responses":
                learned = (
                    "such answers are not learned, since without their reasoning they would teach to answer without "
                    "(data.thinking: as_is learns them so); "
                )
            yield (
                f"the chat template leaves out the reasoning of earlier answers, in {rows[EARLIER]} rows, as it does "
                f"when the model is served; {learned}rows with one answer each keep it"
            )


def _unused_columns(unused: UnusedFields, detection: Detection) -> Iterator[UnusedColumn]:
    """Those of text first."""
    for name, each in sorted(unused.by_name.items(), key=lambda item: not item[1].is_text):
        words = max(1, round(each.words / each.texts)) if each.is_text else 0
        fix = detection.fix_for(None if each.is_nested else name) if words else ""
        yield UnusedColumn(readable(name), each.rows, words, each.first, fix)


def after_quality(
    report: DataReport,
    columns: Columns,
    sides: tuple[np.ndarray, np.ndarray, np.ndarray],
    gone: Sequence[tuple[str, str, str]],
    quality: QualityReport,
) -> DataReport:
    """The report once a reference model has judged: `sides` are what is left (train, per epoch, held out), `gone` the
    (source, reason, detail) of the rows that are not."""
    train, per_epoch, held = sides
    drops = DropCounter()
    for source, reason, detail in gone:
        drops.count(reason, source, detail)
    judged = drops.dropped()
    dropped = sorted((*report.dropped, *judged), key=lambda each: (-each.count, each.reason))
    content = content_hash(columns, train, held)
    settings_hash = hashlib.sha256(f"{report.settings_hash} judged".encode()).hexdigest()
    tokens = report.tokens
    if tokens:
        lengths = columns.tokens[per_epoch]
        tokens = replace(
            tokens,
            total=int(lengths.sum()),
            trained=int(columns.trained[per_epoch].sum()),
            longest=int(lengths.max(initial=0)),
            mean=float(lengths.mean()) if len(lengths) else 0.0,
        )
    return replace(
        report,
        kept=report.kept - total(judged),
        train=len(train),
        per_epoch=len(per_epoch),
        dropped=tuple(dropped),
        content_hash=content,
        settings_hash=settings_hash,
        hash=version_hash(content, settings_hash),
        tokens=tokens,
        quality=quality,
    )


def content_hash(columns: Columns, train: np.ndarray, held_out: np.ndarray) -> str:
    """SHA-256 over the contents of both sides: the same for the same rows in any order."""
    sides = ("\n".join(sorted(bytes(row).hex() for row in columns.hashes[side])) for side in (train, held_out))
    return hashlib.sha256("\n\nheld out\n".join(sides).encode()).hexdigest()


def version_hash(content: str, settings: str) -> str:
    """The version of the data."""
    return hashlib.sha256(f"{content} {settings}".encode()).hexdigest()
