"""From rows to token ids and labels, with an account of everything that happened on the way.

This is the second of two stages: it needs the tokenizer, and with it a chat template. The result has exactly two
columns, `input_ids` and `labels`, no row longer than asked for, and no row without a trained token,
so that a trainer has nothing left to decide (some trainers cut, mask or keep empty rows without a word).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qdora_fast.data.masking import IGNORED, Masked, tokenize_text, tokenize_with_spans
from qdora_fast.data.messages import Row
from qdora_fast.data.rejects import Dropped, RejectedRow, Tally, bullet_list, total
from qdora_fast.data.vocabulary import Vocabulary
from qdora_fast.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

PREVIEWS = 2

Example = dict[str, list[int]]


@dataclass(frozen=True)
class Preview:
    """A rendered row as alternating pieces of text, each with whether it is trained."""

    place: str
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class RenderReport:
    """What became of the rows. `rows_in` = `kept` + dropped; lengths and counts are in tokens."""

    rows_in: int
    kept: int
    dropped: tuple[Dropped, ...]
    tokens: int
    trained_tokens: int
    longest: int
    max_length: int
    truncated: int
    """Rows cut at `max_length`; their answers lack an end, and therefore a stop token."""
    flags: Mapping[str, int]
    """Rows per flag of `masking.Masked`."""
    previews: tuple[Preview, ...]

    @property
    def trained_share(self) -> float:
        """Share of all tokens that carry loss, 0 to 1."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Rendered:
    """Tokenised rows: per example `input_ids` and `labels` of equal length, -100 where nothing is learned."""

    examples: list[Example]
    rows: list[Row]
    """The kept rows, one per example."""
    report: RenderReport

    def dataset(self) -> Dataset:
        """The examples as a `datasets.Dataset` with the columns input_ids and labels."""
        from datasets import Dataset

        columns = {name: [example[name] for example in self.examples] for name in ("input_ids", "labels")}
        return Dataset.from_dict(columns)


def render(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    max_length: int,
    train_on: Literal["responses", "all"] = "responses",
    on_long: Literal["drop", "truncate"] = "drop",
    stop_ids: Collection[int] = (),
) -> Rendered:
    """Tokenise rows with the tokenizer's chat template and mark what is learned.

    Args:
        rows: from `prepare`; an empty list gives an empty result.
        tokenizer: a fast Transformers tokenizer whose chat template is chosen (see `choose_template`).
        max_length: longest example in tokens.
        train_on: loss on the answers, or on every token.
        on_long: drop longer rows, or cut them at the end.
        stop_ids: tokens that end generation, from the model's generation config; EOS always counts.

    Raises:
        ConfigError: a slow tokenizer, or one without any stop token.
        DataError: no row has anything to train on, or more than half cannot be masked for sure.
    """
    vocabulary = Vocabulary(tokenizer, stop_ids)
    tally, flags = Tally(), Counter[str]()
    examples: list[Example] = []
    kept: list[Row] = []
    truncated = 0
    for row in rows:
        try:
            masked = _tokenize(row, vocabulary, train_on)
            too_long = len(masked.input_ids) > max_length
            example = _fit(masked, max_length, on_long)
        except RejectedRow as rejected:
            tally.add(rejected, row["meta"]["source"])
            continue
        flags.update(masked.flags)
        truncated += too_long
        examples.append(example)
        kept.append(row)

    report = RenderReport(
        rows_in=len(rows),
        kept=len(kept),
        dropped=tally.freeze(),
        tokens=sum(len(example["input_ids"]) for example in examples),
        trained_tokens=sum(sum(label != IGNORED for label in example["labels"]) for example in examples),
        longest=max((len(example["input_ids"]) for example in examples), default=0),
        max_length=max_length,
        truncated=truncated,
        flags=dict(flags),
        previews=tuple(_preview(*pair, tokenizer) for pair in list(zip(kept, examples, strict=True))[:PREVIEWS]),
    )
    _refuse_hopeless(report)
    return Rendered(examples, kept, report)


def _tokenize(row: Row, vocabulary: Vocabulary, train_on: Literal["responses", "all"]) -> Masked:
    if "text" in row:
        return tokenize_text(row["text"], vocabulary)
    return tokenize_with_spans(row["messages"], vocabulary, tools=row["tools"], train_on=train_on)


def _fit(masked: Masked, max_length: int, on_long: Literal["drop", "truncate"]) -> Example:
    length = len(masked.input_ids)
    if length > max_length and on_long == "drop":
        raise RejectedRow("too_long", f"{length} tokens")
    labels = masked.labels[:max_length]
    if all(label == IGNORED for label in labels):
        raise RejectedRow("no_trained_tokens", f"the first {max_length} of {length} tokens are all prompt")
    return {"input_ids": masked.input_ids[:max_length], "labels": labels}


def _preview(row: Row, example: Example, tokenizer: Any) -> Preview:
    pieces: list[tuple[str, bool]] = []
    ids, trained = example["input_ids"], [label != IGNORED for label in example["labels"]]
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or trained[end] != trained[start]:
            pieces.append((tokenizer.decode(ids[start:end]), trained[start]))
            start = end
    return Preview(row["meta"]["source"], tuple(pieces))


def _refuse_hopeless(report: RenderReport) -> None:
    """A run on almost nothing is refused; rows that are merely too long are the user's choice, unless all are."""
    unclear = total(each for each in report.dropped if each.reason != "too_long")
    if not report.rows_in or (report.kept and unclear * 2 <= report.rows_in):
        return
    reasons = {each.reason for each in report.dropped}
    fixes = []
    if reasons & {"too_long", "no_trained_tokens"}:
        fixes.append(f"raise model.max_length (now {report.max_length})")
    if "too_long" in reasons:
        fixes.append("set data.on_long: truncate")
    if reasons & {"template_error", "answer_not_located"}:
        fixes.append("choose another data.template, such as alpaca")
    if "special_token_in_text" in reasons:
        fixes.append("remove the special tokens from the text (or use data.format: text for text rendered already)")
    raise DataError(
        f"{report.rows_in - report.kept} of {report.rows_in} rows cannot be trained on:\n"
        f"{bullet_list(report.dropped)}\nTo mend it: {'; or '.join(fixes)}."
    )
