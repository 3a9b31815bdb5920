"""The `evaluation` section: what is asked of base and tuned model, and what counts as right."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from qdora_fast.config.code import function_name
from qdora_fast.config.fields import Count, Real, Section, number

KNOWN_METRICS = (
    *("exact_match", "normalized_match", "contains", "regex", "numeric", "json_match", "choice", "rouge_l"),
)


def _questions(value: object) -> object:
    """`full` or a number of questions a subject; said in one message, not one for each kind."""
    if value == "full" or (isinstance(number(value), int) and int(str(value)) >= 1):
        return value
    raise ValueError("expected full or a number of questions a subject")


class MmluSettings(Section):
    """What tuning made the model forget: MMLU before and after, by EleutherAI's harness (extra `eval`)."""

    enabled: bool = False
    """Ask base and tuned model at the end of `train` and by `evaluate`. `evaluate --mmlu` asks once."""
    path: str | None = None
    """Folder with a local copy of cais/mmlu (`hf download cais/mmlu --repo-type dataset --local-dir FOLDER`);
    empty: from the hub."""
    questions: Annotated[Literal["full"] | int, BeforeValidator(_questions)] = 36
    """Questions a subject. 36: the fixed subset of 2,052 that ships with this package; or full (14,042)."""
    shots: Count = Field(5, ge=0, le=5)
    """Solved examples before each question; MMLU has 5."""
    warn_below: Real = Field(-2.0, le=0)
    """Change of accuracy in points, from which on the report warns."""
    fail_below: Real = Field(-3.0, le=0)
    """Change of accuracy in points, from which on `evaluate` fails, unless `--allow-regression`."""
    tasks: list[str] = Field([])
    """Other tasks of the harness, by name."""
    task_folder: str | None = None
    """Folder with YAML files of tasks of your own; its path starts where that of `evaluation.metric` does. The harness
    runs what is in them (functions, templates, metrics), so the folder is used only with --own-code, or once you have
    allowed it."""

    @model_validator(mode="after")
    def _fail_after_warn(self) -> MmluSettings:
        if self.fail_below > self.warn_below:
            raise ValueError("fail_below must not be above warn_below")
        return self


class EvaluationSettings(Section):
    """The comparison of base and tuned model on the held-out rows."""

    metric: str = "normalized_match"
    """What makes an answer right: exact_match, normalized_match (case, white space and outer punctuation aside),
    contains, regex, numeric (the last number, or what follows ####), json_match (tool calls), choice (the likeliest of
    `choices`), rouge_l (a score, no accuracy), or your own function as FILE.py:function, for instance judge.py:right.
    The path starts at the folder of the config file (with --set and in Python at the working directory), and it runs
    only with --own-code, or once you have allowed it."""
    more_metrics: list[str] = Field([])
    """Further metrics to report; the verdict is by `metric`."""
    pattern: str | None = None
    """For regex: a pattern with one group; what the group finds last in answer and reference must be equal."""
    choices: list[str] = Field([])
    """For choice: the answers to choose from; empty: the different answers of the training rows, up to 20."""
    max_rows: Count = Field(200, ge=0)
    """Held-out rows answered by both models; 0 skips the comparison."""
    max_new_tokens: Count = Field(128, ge=1)
    """Longest generated answer in tokens."""
    batch_size: Count = Field(8, ge=1)
    """Prompts generated at once."""
    completions: Count = Field(24, ge=0)
    """Answers of both models kept side by side for a person to read, stratified by length; 0: none."""
    mmlu: MmluSettings = MmluSettings()

    @field_validator("metric", "more_metrics")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        for name in [value] if isinstance(value, str) else value:
            if ":" in name:
                function_name(name)
            elif name not in KNOWN_METRICS:
                raise ValueError(f"choose one of {', '.join(KNOWN_METRICS)}, or your own as FILE.py:function")
        return value

    @model_validator(mode="after")
    def _pattern_for_regex(self) -> EvaluationSettings:
        if "regex" in (self.metric, *self.more_metrics):
            try:
                groups = re.compile(self.pattern or "").groups
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError("metric regex needs a pattern with one group, for instance 'answer: (\\w+)'")
        return self
