"""Rows in a list through the `Renderer`, one after the other, with an account: what `prepare` does, plainly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qdora_fast.data.clean.rejects import DropCounter, Dropped, RejectedRow
from qdora_fast.data.read.messages import Row
from qdora_fast.data.store import Example
from qdora_fast.data.tokenize.masking import IGNORED
from qdora_fast.data.tokenize.render import Preview, Renderer, Rendering, previews, refuse_hopeless

if TYPE_CHECKING:
    from datasets import Dataset


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
    renderer = Renderer(Rendering(tokenizer, max_length, train_on, on_long, frozenset(stop_ids)))
    tally, flags = DropCounter(), Counter[str]()
    examples: list[Example] = []
    kept: list[Row] = []
    truncated = 0
    for row in rows:
        try:
            example, met = renderer(row)
        except RejectedRow as rejected:
            tally.add(rejected, row["meta"]["source"])
            continue
        truncated += "truncated" in met
        flags.update(met - {"truncated"})
        examples.append(example)
        kept.append(row)

    report = RenderReport(
        rows_in=len(rows),
        kept=len(kept),
        dropped=tally.dropped(),
        tokens=sum(len(example["input_ids"]) for example in examples),
        trained_tokens=sum(sum(label != IGNORED for label in example["labels"]) for example in examples),
        longest=max((len(example["input_ids"]) for example in examples), default=0),
        max_length=max_length,
        truncated=truncated,
        flags=dict(flags),
        previews=previews(kept, examples, tokenizer),
    )
    refuse_hopeless(report.rows_in, report.kept, report.dropped, max_length)
    return Rendered(examples, kept, report)
