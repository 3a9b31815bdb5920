"""What can be said of a row on its own: read it as a conversation, look at what it says, turn it into tokens.

This is the work that every row costs, and it needs no other row: `Judge.chunk` takes a few hundred raw rows and gives
back a `Chunk`, in any process. What needs all rows (duplicates, the split) is decided afterwards, from the keys and
MinHash signatures that are made here.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qdora_fast.config import DataSettings
from qdora_fast.data.clean import filters, similarity
from qdora_fast.data.clean.languages import CHARACTERS_FOR_LANGUAGE, script_of
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.clean.split import group_key
from qdora_fast.data.read import custom
from qdora_fast.data.read.formats import Conversation, Converter, convert
from qdora_fast.data.read.messages import Row
from qdora_fast.data.read.readers import BadRow, RawRow
from qdora_fast.data.store import Chunk, Columns
from qdora_fast.data.tokenize.render import FLAGS, Renderer, Rendering, TooLong, spoken

LONG_ENOUGH = 2**31 - 1
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


class _Judged(NamedTuple):
    row: Row
    prompt: str
    key: str
    input_ids: np.ndarray
    labels: np.ndarray
    flags: frozenset[str]
    said: int


_NO_TOKENS = np.zeros(0, np.int32)


class Judge:
    """Judges rows by the `data` section; `rendering` is None when there is no tokenizer yet.

    Raises:
        ConfigError: see `render.Renderer`.
    """

    def __init__(self, origins: Sequence[Origin], settings: DataSettings, rendering: Rendering | None) -> None:
        self._origins, self._settings = origins, settings
        self._renderer = Renderer(rendering) if rendering else None
        self._shortest = settings.filters.least_tokens

    def chunk(self, job: Job) -> Chunk:
        """Judge the rows of one job; their order is kept."""
        judged: list[_Judged] = []
        rejected: list[tuple[str, str, str]] = []
        too_long: list[int] = []
        repairs = Counter[str]()
        for number, raw in enumerate(job.rows, job.first):
            try:
                judged.append(self._judge(raw, job.origin, number, repairs))
            except RejectedRow as reason:
                rejected.append((raw.place, reason.reason, reason.detail))
                too_long += [reason.length] if isinstance(reason, TooLong) else []
        chunk = self._pack(judged, job)
        chunk.rejected, chunk.too_long, chunk.repairs = rejected, too_long, dict(repairs)
        return chunk

    def _judge(self, raw: RawRow | BadRow, number_of_origin: int, number: int, repairs: Counter[str]) -> _Judged:
        if isinstance(raw, BadRow):
            raise RejectedRow(raw.reason, raw.detail)
        origin = self._origins[number_of_origin]
        given = raw.row if origin.formatter is None else custom.apply(origin.formatter, raw.row)
        conversation = convert(given, origin.converter)
        repairs.update(conversation.repairs)
        row = self._row(conversation, raw, number, number_of_origin)
        if not origin.own_held_out:
            filters.check(row, raw.row, self._settings.filters)
        keys = (group_key(row), similarity.canonical_text(row))
        if self._renderer is None:
            return _Judged(row, *keys, _NO_TOKENS, _NO_TOKENS, frozenset(), LONG_ENOUGH)
        example, flags = self._renderer(row)
        ids, labels = (np.array(example[name], np.int32) for name in ("input_ids", "labels"))
        return _Judged(row, *keys, ids, labels, flags, self._said(row, int((labels >= 0).sum())))

    def _said(self, row: Row, trained: int) -> int:
        """Tokens of what is said; not counted for rows that `filters.min_tokens` cannot meet: with twice as many
        trained tokens (some are stop tokens), or with more characters than so few tokens hold."""
        assert self._renderer is not None
        if trained >= 2 * self._shortest or sum(map(len, spoken(row))) >= CHARACTERS_PER_TOKEN * self._shortest:
            return LONG_ENOUGH
        return self._renderer.said(row)

    def _row(self, conversation: Conversation, raw: RawRow, number: int, origin: int) -> Row:
        content = {"messages": conversation.messages, "tools": conversation.tools, "text": conversation.text}
        canonical = unicodedata.normalize("NFC", json.dumps(content, sort_keys=True, ensure_ascii=False))
        row: Row = {
            "messages": conversation.messages,
            "tools": conversation.tools,
            "meta": {
                "source": raw.place,
                "row": number,
                "hash": hashlib.sha256(canonical.encode()).hexdigest(),
                "origin": origin,
            },
        }
        if conversation.text is not None:
            row["text"] = conversation.text
        return row

    def _pack(self, judged: list[_Judged], job: Job) -> Chunk:
        lines = [json.dumps(each.row, ensure_ascii=False).encode() + b"\n" for each in judged]
        by_number = {number: raw.row for number, raw in enumerate(job.rows, job.first) if isinstance(raw, RawRow)}
        raws = [by_number[each.row["meta"]["row"]] for each in judged]
        chunk = Chunk(
            _columns(judged, job.origin, lines),
            b"".join(lines),
            groups=[_value(raw, self._settings.group) for raw in raws],
            strata=[_value(raw, self._settings.stratify) or "" for raw in raws],
            sampled=["\n".join(spoken(each.row))[:CHARACTERS_FOR_LANGUAGE] for each in judged],
            signatures=similarity.signatures([similarity.shingles(each.key) for each in judged]),
        )
        if self._renderer is not None:
            chunk.input_ids = np.concatenate([each.input_ids for each in judged] or [_NO_TOKENS])
            chunk.labels = np.concatenate([each.labels for each in judged] or [_NO_TOKENS])
        return chunk


def _columns(judged: Sequence[_Judged], origin: int, lines: Sequence[bytes]) -> Columns:
    def keys(texts: Sequence[str]) -> np.ndarray:
        return np.frombuffer(b"".join(map(similarity.exact_key, texts)), np.uint8).reshape(-1, 16)

    return Columns(
        starts=np.array([len(line) for line in lines], np.int64),
        keys=keys([each.key for each in judged]),
        prompts=keys([each.prompt for each in judged]),
        hashes=np.frombuffer(b"".join(bytes.fromhex(each.row["meta"]["hash"]) for each in judged), np.uint8).reshape(
            -1, 32
        ),
        sizes=np.array([len(each.key) for each in judged], np.int64),
        said=np.array([each.said for each in judged], np.int32),
        tokens=np.array([len(each.input_ids) for each in judged], np.int32),
        trained=np.array([int((each.labels >= 0).sum()) for each in judged], np.int32),
        flags=np.array([sum(1 << FLAGS.index(flag) for flag in each.flags) for each in judged], np.uint8),
        origins=np.full(len(judged), origin, np.int16),
        scripts=np.array([script_of("\n".join(spoken(each.row))) for each in judged], "U20"),
    )


def _value(raw: dict[str, Any], column: str | None) -> str | None:
    """The value of the user's own column as text; None where there is none."""
    value = raw.get(column) if column else None
    return None if value is None or value == "" else str(value)
