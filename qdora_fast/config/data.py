"""The `data` section: which rows, what is dropped from them and why, what is held out, how they become tokens.

A single source is described by `path` and the keys of `_Where` at the top of the section; a mixture by a list in
`sources`, whose entries have the same keys and a weight.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from qdora_fast.config.code import function_name
from qdora_fast.config.fields import Count, Day, Real, Section, auto_or

Format = Literal["auto", "alpaca", "chatml", "sharegpt", "prompt_completion", "columns", "text"]


class ColumnSettings(Section):
    """Your own column names, for question/answer tables."""

    prompt: str | None = None
    """Column with the question or instruction."""
    response: str | None = None
    """Column with the answer that is learned."""
    system: str | None = None
    """Column with a system message, if there is one."""
    context: str | None = None
    """Column with what the question is about (a passage, a schema), if there is one; it follows the question."""


class _Where(Section):
    """Where rows lie and what shape they have; the common part of a single source and of each in a mixture."""

    split: str = "train"
    """Split of a hub dataset, or of a folder whose files are named by split (train-00000-of-00002.parquet, test.jsonl,
    validation/...), of which the other splits are left out."""
    config: str | None = None
    """Configuration of a hub dataset that has several, such as `main` of openai/gsm8k. Empty: its only one."""
    format: Format = "auto"
    """Shape of a row. auto: recognised from the columns of the first 100 rows, and printed. Set it when that fails."""
    columns: ColumnSettings = ColumnSettings()
    """Names of your own columns; with `prompt` and `response` set, `format` is columns."""
    formatter: str | None = None
    """Your own function as `FILE.py:function`, for instance my_rows.py:to_messages. It gets a row as a dictionary and
    returns one in a known shape, or None to leave the row out. The path starts at the folder of the config file
    (with --set and in Python at the working directory). It runs only with --own-code, or once you have allowed it."""
    max_rows: Annotated[Count, Field(ge=1)] | None = None
    """Rows that are read at most, for a quick try. Empty: all."""

    @field_validator("formatter")
    @classmethod
    def _file_and_function(cls, formatter: str | None) -> str | None:
        return None if formatter is None else function_name(formatter)

    @model_validator(mode="after")
    def _columns_in_pairs(self) -> _Where:
        named = [self.columns.prompt, self.columns.response]
        if any(named) and not all(named):
            raise ValueError("columns.prompt and columns.response go together: name both")
        if (self.columns.system or self.columns.context) and not all(named):
            raise ValueError(
                "columns.system and columns.context need columns.prompt and columns.response: name them, too"
            )
        if self.format == "columns" and not all(named):
            raise ValueError("format `columns` needs columns.prompt and columns.response")
        if all(named) and self.format not in ("auto", "columns"):
            raise ValueError(f"columns.* is for format `columns`, not `{self.format}`; remove one of them")
        return self


class SourceSettings(_Where):
    """One source of a mixture."""

    path: str
    """A file, a folder, a URL, a hub dataset id or `demo`, as `data.path`."""
    weight: Real = Field(1.0, gt=0, le=100)
    """How often a training row of this source is seen in an epoch: 0.5 takes half of them (always the same half),
    2 takes each twice. Rows held out are neither thinned nor repeated."""


class FilterSettings(Section):
    """Which rows are dropped for their text; each dropped row is counted, with its reason and source."""

    min_tokens: Annotated[Literal["auto"] | int, auto_or("a number of tokens, 0 for off", least=0)] = "auto"
    """Fewest tokens of prompt and answer together, template not counted. auto: 30, unless more than a third of the
    rows are shorter: short answers are then what the set is about, no row is dropped, and a warning is printed.
    0: no limit."""
    max_fraction: Real = Field(0.9, gt=0, le=1)
    """Longest row, with its template, as a share of `model.max_length`; longer ones are dropped. Applies only with
    `on_long: drop`."""
    placeholders: bool = True
    """Drop answers with an unfilled {{name}}, and those that are only a stand-in such as TODO or [insert answer]."""
    truncated: bool = True
    """Drop answers that stop in the middle: an open code block, a last word that cannot end a sentence, or a column
    that says that the token limit was reached."""
    role_order: bool = True
    """Drop conversations that the assistant opens, and those with a tool result that answers no call."""
    mojibake: bool = True
    """Drop text decoded with the wrong encoding ("donâ€™t")."""
    control_characters: bool = True
    """Drop text with NUL, escape sequences, U+FFFD and other characters that are no text."""
    max_repetition: Real = Field(0.5, gt=0, le=1)
    """Drop answers of 50 words or more in which a larger share of the word 5-grams repeats an earlier one. 1: off."""
    refusals: bool = False
    """Drop answers that refuse ("As an AI language model, I cannot ..."). Off by default, because refusing can be what
    the model should learn."""

    @property
    def least_tokens(self) -> int:
        """`min_tokens` as a number."""
        return 30 if self.min_tokens == "auto" else self.min_tokens


class DedupSettings(Section):
    """Which rows are dropped as duplicates. Of each group the longest stays."""

    exact: bool = True
    """Drop rows that are equal after Unicode NFC, case folding and white-space folding."""
    near: bool = True
    """Drop rows that are nearly equal: the Jaccard similarity of their word 5-grams (of characters, for scripts without
    spaces) is at least `similarity`. Candidates come from MinHash, and each is compared exactly. Off: such rows stay,
    all on one side of the split."""
    similarity: Real = Field(0.8, ge=0.5, le=1)
    """Jaccard similarity from which two rows are near-duplicates. Raise it for rows that share a template."""


class QualitySettings(Section):
    """Scores of the training rows by a reference model: does the question help to predict the answer (IFD)?"""

    enabled: bool = False
    """Score the training rows with `model`, and drop the worst. Loads the weights of
    `model`, and reads every row twice."""
    model: str | None = None
    """Hub id or folder of the reference model; a smaller one of the same family is faster. Empty: the base itself."""
    max_ifd: Real = Field(1.0, gt=0)
    """Drop rows whose IFD, exp(loss of the answer after its question - loss of the answer alone), is at least this:
    from 1 on, the question does not help to predict the answer."""
    outliers: Real = Field(5.0, gt=0)
    """Drop rows whose loss lies at least so many median absolute deviations, and at least log 2 nats a token, above the
    median of the rows in the same script."""
    min_answer_tokens: Count = Field(10, ge=1)
    """Rows with answers of fewer tokens are not scored, because their IFD is mostly noise."""
    max_drop: Real = Field(0.15, gt=0, le=0.15)
    """Largest share of the training rows that is dropped by the scores, worst first."""
    batch_tokens: Count = Field(4096, ge=64)
    """Tokens per forward pass of the reference model: more are faster and take more memory."""


class DataSettings(_Where):
    """The rows, and how they become tokens."""

    path: str | None = None
    """A .json, .jsonl, .csv, .tsv, .parquet or .arrow file (text formats also as .gz and .zst), a folder of them, the
    URL of one (https, s3, gs, az, hf; also a pattern such as s3://bucket/rows/*.jsonl), a hub dataset id, or `demo` for
    the embedded rows."""
    sources: list[SourceSettings] = Field([])
    """Several sources in place of `path`: a list of {path, weight, format, columns, ...}."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do about rows that cannot be read (broken JSON, missing columns, values of a wrong type). error: stop and
    name them. skip: leave them out and count them."""
    template: str = "auto"
    """How messages become text. auto: the model's own chat template, else plain Alpaca text.
    model, alpaca, chatml, alpaca-think and chatml-think (with the reasoning of the last answers as
    <think>...</think>), or the path of a .jinja file."""
    date: Day | None = None
    """The day, such as 2026-01-31, that a chat template prints which prints the date (Llama 3.2, gpt-oss): one for all
    that the run learns, evaluates and proves. Empty: the day on which the rows are prepared, which is then written
    into the run's config. No effect on other templates."""
    thinking: Literal["auto", "on", "off", "as_is"] = "auto"
    """Whether the model learns to think before it answers, where the chat template knows of reasoning (Qwen3, SmolLM3,
    GLM, Gemma 4, gpt-oss). auto: each row in its own mode, with thinking where its last answer has reasoning, which is
    then learned, and without where it has none (`enable_thinking: false` of most templates). on, off: all rows, off
    without their reasoning. as_is: the template is told nothing, as before there was this setting. No effect on other
    templates."""
    train_on: Literal["responses", "all"] = "responses"
    """responses: loss on every assistant turn only. all: loss on every token."""
    on_long: Literal["drop", "truncate"] = "drop"
    """What to do about rows longer than `model.max_length`. drop: leave them out. truncate: cut them at the end. Both
    are counted."""
    filters: FilterSettings = FilterSettings()
    dedup: DedupSettings = DedupSettings()
    quality: QualitySettings = QualitySettings()
    held_out: Real = Field(0.10, ge=0, lt=0.9)
    """Share of rows that are never trained on, chosen by a hash of the prompt. The share may become up to 1.5 times as
    large, so that rows stay held out when others are added. 0 turns evaluation off."""
    held_out_path: str | None = None
    """Your own held-out rows in place of a share: a file, folder, URL or hub id of rows in the same shape. Training
    rows that repeat one of them are dropped. Empty: `held_out` decides."""
    group: str | None = None
    """Column whose rows with the same value stay on one side of the split, such as the id of a conversation or a
    document. Empty: only rows with the same prompt and near-duplicates are held together."""
    stratify: str | None = None
    """Column of a category: the share `held_out` is taken from each of its values. Empty: from all rows together."""
    workers: Annotated[Count, Field(ge=1)] | None = None
    """Processes that prepare rows. Empty: one per CPU core, at most 8. Lower it when memory runs out; the result is the
    same."""
    cache: bool = True
    """Cache prepared rows and tokens, so that the next start with the same files and settings reads them at once."""

    @field_validator("thinking", mode="before")
    @classmethod
    def _on_and_off(cls, thinking: object) -> object:
        """YAML reads a bare `on` and `off` as true and false."""
        return {True: "on", False: "off"}[thinking] if isinstance(thinking, bool) else thinking

    @model_validator(mode="after")
    def _path_or_sources(self) -> DataSettings:
        if not self.path and not self.sources:
            raise ValueError("path is required: a file or folder of rows, a hub id, or `demo`; or a list of `sources`")
        if self.path and self.sources:
            raise ValueError("`path` and `sources` exclude each other; put the path into the list")
        beside = sorted(set(_Where.model_fields) & {key for key in self.model_fields_set if self._differs(key)})
        if self.sources and beside:
            raise ValueError(f"with `sources`, put {', '.join(beside)} into its entries")
        if self.held_out_path and self.stratify:
            raise ValueError("`stratify` chooses held-out rows, but `held_out_path` names them; remove one")
        return self

    def _differs(self, key: str) -> bool:
        return bool(getattr(self, key) != DataSettings.model_fields[key].default)

    @property
    def mixture(self) -> tuple[SourceSettings, ...]:
        """The sources in order; a single `path` is a mixture of one."""
        if self.sources:
            return tuple(self.sources)
        return (SourceSettings(path=self.path or "", **self._companions()),)

    @property
    def own_held_out(self) -> SourceSettings | None:
        """The source of `held_out_path`, read in the way of the (first) training source."""
        if self.held_out_path is None:
            return None
        return self.mixture[0].model_copy(update={"path": self.held_out_path, "weight": 1.0, "max_rows": None})

    def _companions(self) -> dict[str, object]:
        return {key: getattr(self, key) for key in _Where.model_fields}
