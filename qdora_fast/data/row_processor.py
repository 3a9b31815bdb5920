"""The work on a row that needs no other row: read it as a conversation, filter it, turn it into tokens.

`RowProcessor.process` takes a few hundred raw rows and gives back a `Chunk`, in any process. What needs all rows
(duplicates, the split) is decided afterwards, from the keys and MinHash signatures that are made here.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qdora_fast.config import DataSettings
from qdora_fast.data.clean import filters, similarity
from qdora_fast.data.clean.languages import CHARACTERS_FOR_LANGUAGE, script_of
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.clean.split import group_key
from qdora_fast.data.read import custom
from qdora_fast.data.read.fields import UnusedFields
from qdora_fast.data.read.formats import Conversation, Converter, convert
from qdora_fast.data.read.messages import Row
from qdora_fast.data.read.readers import BadRow, RawRow
from qdora_fast.data.store import Chunk, Columns
from qdora_fast.data.tokenize.render import FLAGS, Renderer, Rendering, TooLong, contents

NOT_COUNTED = 2**31 - 1
"""Stands for the content tokens of a row that is long enough for every limit."""
CHARACTERS_PER_TOKEN = 40
"""More than any ordinary text has, on average."""


@dataclass(frozen=True)
class Origin:
    """How rows of one source are read; `own_held_out` rows are the user's own choice and not filtered."""

    converter: Converter
    formatter: custom.Formatter | None = None
    own_held_out: bool = False


class Job(NamedTuple):
    """Raw rows of one source; the first is row number `first` of all, counted from 1."""

    origin: int
    first: int
    rows: Sequence[RawRow | BadRow]


class _ProcessedRow(NamedTuple):
    row: Row
    prompt: str
    key: str
    input_ids: np.ndarray
    labels: np.ndarray
    flags: frozenset[str]
    content_tokens: int
    left_out: frozenset[str] = frozenset()


_NO_TOKENS = np.zeros(0, np.int32)


class RowProcessor:
    """Turns raw rows into prepared ones by the `data` section; `rendering` is None when there is no tokenizer yet.

    Raises:
        ConfigError: see `render.Renderer`.
    """

    def __init__(self, origins: Sequence[Origin], settings: DataSettings, rendering: Rendering | None) -> None:
        self._origins, self._settings = origins, settings
        self._renderer = Renderer(rendering) if rendering else None
        self._shortest = settings.filters.least_tokens
        self._split_by = {settings.group, settings.stratify}

    @property
    def renders(self) -> bool:
        """Whether rows become tokens."""
        return self._renderer is not None

    def process(self, job: Job) -> Chunk:
        """The rows of one job, in their order, and those that were rejected."""
        processed: list[_ProcessedRow] = []
        rejected: list[tuple[str, str, str]] = []
        too_long: list[int] = []
        repairs, unused = Counter[str](), UnusedFields()
        for number, raw in enumerate(job.rows, job.first):
            try:
                processed.append(self._process_row(raw, job.origin, number, repairs, unused))
            except RejectedRow as reason:
                rejected.append((raw.source, reason.reason, reason.detail))
                too_long += [reason.length] if isinstance(reason, TooLong) else []
        chunk = self._pack(processed, job)
        chunk.rejected, chunk.too_long, chunk.repairs = rejected, too_long, dict(repairs)
        chunk.origin, chunk.unused = job.origin, unused
        return chunk

    def _process_row(
        self, raw: RawRow | BadRow, origin_number: int, number: int, repairs: Counter[str], unused: UnusedFields
    ) -> _ProcessedRow:
        if isinstance(raw, BadRow):
            raise RejectedRow(raw.reason, raw.detail)
        origin = self._origins[origin_number]
        given = raw.row if origin.formatter is None else custom.apply(origin.formatter, raw.row)
        conversation = convert(given, origin.converter, raw.padded if origin.formatter is None else _all(raw, given))
        repairs.update(conversation.repairs)
        unread = [(name, value) for name, value in conversation.unread if name not in self._split_by]
        unused.see(unread, conversation.texts(), raw.source, beside=conversation.thoughts())
        row = self._row(conversation, raw, number, origin_number)
        if not origin.own_held_out:
            filters.check(row, raw.row, self._settings.filters)
        keys = (group_key(row), similarity.canonical_text(row))
        if self._renderer is None:
            return _ProcessedRow(row, *keys, _NO_TOKENS, _NO_TOKENS, frozenset(), NOT_COUNTED)
        example, flags = self._renderer(row)
        ids, labels = (np.array(example[name], np.int32) for name in ("input_ids", "labels"))
        content_tokens = self._content_tokens(row, int((labels >= 0).sum()))
        return _ProcessedRow(row, *keys, ids, labels, flags, content_tokens, self._renderer.left_out(row))

    def _content_tokens(self, row: Row, trained: int) -> int:
        """Tokens of the row's contents; `NOT_COUNTED` for rows that `filters.min_tokens` cannot drop: those with twice
        as many trained tokens (some are stop tokens), or with more characters than so few tokens hold."""
        assert self._renderer is not None
        if trained >= 2 * self._shortest or sum(map(len, contents(row))) >= CHARACTERS_PER_TOKEN * self._shortest:
            return NOT_COUNTED
        return self._renderer.content_tokens(row)

    def _row(self, conversation: Conversation, raw: RawRow, number: int, origin: int) -> Row:
        content = {"messages": conversation.messages, "tools": conversation.tools, "text": conversation.text}
        canonical = unicodedata.normalize("NFC", json.dumps(content, sort_keys=True, ensure_ascii=False))
        row: Row = {
            "messages": conversation.messages,
            "tools": conversation.tools,
            "meta": {
                "source": raw.source,
                "row": number,
                "hash": hashlib.sha256(canonical.encode()).hexdigest(),
                "origin": origin,
            },
        }
        if conversation.text is not None:
            row["text"] = conversation.text
        return row

    def _pack(self, processed: list[_ProcessedRow], job: Job) -> Chunk:
        lines = [json.dumps(each.row, ensure_ascii=False).encode() + b"\n" for each in processed]
        by_number = {number: raw.row for number, raw in enumerate(job.rows, job.first) if isinstance(raw, RawRow)}
        raws = [by_number[each.row["meta"]["row"]] for each in processed]
        chunk = Chunk(
            _columns(processed, job.origin, lines),
            b"".join(lines),
            groups=[_value(raw, self._settings.group) for raw in raws],
            strata=[_value(raw, self._settings.stratify) or "" for raw in raws],
            sampled=["\n".join(contents(each.row))[:CHARACTERS_FOR_LANGUAGE] for each in processed],
            left_out=[(each.row["meta"]["source"], kind) for each in processed for kind in sorted(each.left_out)],
            signatures=similarity.signatures([similarity.shingles(each.key) for each in processed]),
        )
        if self._renderer is not None:
            chunk.input_ids = np.concatenate([each.input_ids for each in processed] or [_NO_TOKENS])
            chunk.labels = np.concatenate([each.labels for each in processed] or [_NO_TOKENS])
        return chunk


def _columns(processed: Sequence[_ProcessedRow], origin: int, lines: Sequence[bytes]) -> Columns:
    def keys(texts: Sequence[str]) -> np.ndarray:
        return np.frombuffer(b"".join(map(similarity.exact_key, texts)), np.uint8).reshape(-1, 16)

    return Columns(
        starts=np.array([len(line) for line in lines], np.int64),
        keys=keys([each.key for each in processed]),
        prompts=keys([each.prompt for each in processed]),
        hashes=np.frombuffer(b"".join(bytes.fromhex(each.row["meta"]["hash"]) for each in processed), np.uint8).reshape(
            -1, 32
        ),
        sizes=np.array([len(each.key) for each in processed], np.int64),
        content_tokens=np.array([each.content_tokens for each in processed], np.int32),
        tokens=np.array([len(each.input_ids) for each in processed], np.int32),
        trained=np.array([int((each.labels >= 0).sum()) for each in processed], np.int32),
        flags=np.array([sum(1 << FLAGS.index(flag) for flag in each.flags) for each in processed], np.uint16),
        origins=np.full(len(processed), origin, np.int16),
        scripts=np.array([script_of("\n".join(contents(each.row))) for each in processed], "U20"),
    )


def _all(raw: RawRow, made: dict[str, Any]) -> Iterable[str]:
    """Columns that may come from structs in what a formatter has made of a row: all of them, if there are any."""
    return made if raw.padded else ()


def _value(raw: dict[str, Any], column: str | None) -> str | None:
    """The value of the user's own column as text; None where there is none."""
    value = raw.get(column) if column else None
    return None if value is None or value == "" else str(value)
