"""The `evaluation` section: what is asked of base and tuned model, and what counts as right."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from qdora_fast.config.code import function_name
from qdora_fast.config.fields import Count, Real, Section, auto_or, number
from qdora_fast.config.metrics import AUTO, KNOWN_METRICS, listed

MOST_TOKENS = 512
"""Of an answer, where `max_new_tokens` is auto."""


def _questions(value: object) -> object:
    """`full` or a number of questions a subject; anything else is one error."""
    if value == "full" or (isinstance(number(value), int) and int(str(value)) >= 1):
        return value
    raise ValueError("expected full or a number of questions a subject")


class MmluSettings(Section):
    """MMLU before and after tuning, by EleutherAI's harness (extra `eval`): what the model has forgotten."""

    enabled: bool = False
    """Run MMLU on base and tuned model at the end of `train` and in `evaluate`. For a single time, use
    `evaluate --mmlu`."""
    path: str | None = None
    """Folder with a local copy of cais/mmlu (`hf download cais/mmlu --repo-type dataset --local-dir FOLDER`);
    Empty: downloaded from the hub."""
    questions: Annotated[Literal["full"] | int, BeforeValidator(_questions)] = 36
    """Questions for each subject. 36: the fixed subset of 2,052 questions in this package. full: all 14,042."""
    shots: Count = Field(5, ge=0, le=5)
    """Solved examples before each question; MMLU is usually reported with 5."""
    warn_below: Real = Field(-2.0, le=0)
    """Change of accuracy in percentage points at and below which the report warns."""
    fail_below: Real = Field(-3.0, le=0)
    """Change of accuracy in percentage points at and below which `evaluate` fails (exit code 43), unless
    `--allow-regression` is given."""
    task_folder: str | None = None
    """Folder with YAML files of your own tasks for `evaluation.benchmarks`; its path starts where that of
    `evaluation.metric` does. The harness runs what is in them (functions, templates, metrics), so the folder is used
    only with --own-code, or once you have allowed it."""

    @model_validator(mode="after")
    def _fail_after_warn(self) -> MmluSettings:
        if self.fail_below > self.warn_below:
            raise ValueError("fail_below must not be above warn_below")
        return self


class EvaluationSettings(Section):
    """The comparison of base and tuned model on the held-out rows."""

    metric: str = Field(
        AUTO,
        description="How an answer is compared with the reference. auto: chosen from the held-out references and said. "
        f"Else one of: {listed()}; or your own function as FILE.py:function, for instance judge.py:right. The path "
        "starts at the folder of the config file (with --set and in Python at the working directory), and it runs only "
        "with --own-code, or once you have allowed it.",
    )
    more_metrics: list[str] = Field([])
    """Further metrics in the report. The verdict is by `metric` alone. Where `auto` takes likelihood, chrf stands
    beside it."""
    pattern: str | None = None
    """For metric regex: a pattern with one group. The group's last match in the answer must equal that in the
    reference."""
    choices: list[str] = Field([])
    """For metric choice: the answers to choose from. Empty: the different answers of the training rows, up to 20."""
    max_rows: Count = Field(200, ge=0)
    """Held-out rows that both models answer. 0 skips the comparison; more rows give narrower intervals and take
    longer."""
    max_new_tokens: Annotated[Literal["auto"] | int, auto_or("a number of tokens of 1 or more")] = "auto"
    """Tokens after which a generated answer is cut. auto: 1.5 times the longest reference, 512 at most. Raise it when
    the report says that answers were cut."""
    batch_size: Count = Field(8, ge=1)
    """Prompts answered at once: more are faster and take more memory."""
    completions: Count = Field(24, ge=0)
    """Held-out prompts whose answers by both models are saved side by side for a person to read, chosen from all
    lengths. 0: none."""
    benchmarks: list[Annotated[str, Field(min_length=1)]] = Field([])
    """Benchmarks by their names in EleutherAI's harness (extra `eval`), such as [gsm8k, hellaswag]: run on base and
    tuned model at the end of `train` and in `evaluate`, beside MMLU or without it. For a single time, use
    `evaluate --tasks gsm8k,hellaswag`."""
    mmlu: MmluSettings = MmluSettings()

    @field_validator("metric", "more_metrics")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        for name in [value] if isinstance(value, str) else value:
            if ":" in name:
                function_name(name)
            elif name not in (KNOWN_METRICS if isinstance(value, list) else (*KNOWN_METRICS, AUTO)):
                auto = "" if isinstance(value, list) else f", {AUTO}"
                raise ValueError(f"choose one of {', '.join(KNOWN_METRICS)}{auto}, or your own as FILE.py:function")
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
