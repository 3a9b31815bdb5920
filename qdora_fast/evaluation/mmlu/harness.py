"""EleutherAI's lm-evaluation-harness (extra `eval`) asks a model that is already loaded; one figure a question.

The harness is made for its command line: it loads models itself, prints, logs, draws bars, and sets the seeds of the
whole process. Here it gets a model that is there already, behind an object that it can call but not change, and
gives back one figure for each question. Its own summary is not used: it knows nothing of pairs.

What is added to its reader of models (HFLM): only the logits that are looked at are computed, since those of whole
MMLU prompts are gigabytes; and prompts are cut on the left at the length that the loaded model takes, since Unsloth
would cut them on the right, where the question is. What it does not do: chat templates (the prompts are the ones that
published MMLU figures are made with), tasks with images, tasks that run the code a model writes.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from qdora_fast.models.out_of_memory import Batches, OutOfMemoryEvent, attempt
from qdora_fast.system.errors import ConfigError, QdoraError, first_line
from qdora_fast.system.install import how_to_install

FEW_SHOT_SEED = 1234

Tasks = dict[str, Any]
"""Tasks of the harness by name."""
OnShare = Callable[[float], None]
"""Told which share, 0 to 1, of the questions is answered."""


@dataclass(frozen=True)
class Outcome:
    """How one question went."""

    value: float
    """By the task's metric; for accuracies 0 or 1."""
    asked: str
    """Hash of the prompt, the answers to choose from and the right one."""


@dataclass(frozen=True)
class Answers:
    """What one model made of a set of tasks."""

    metric: str
    by_task: Mapping[str, Mapping[int, Outcome]]
    """Outcome by task and number of the question."""
    cut: int
    """Prompts that were longer than the model takes; they lost their beginning."""


def harness_version() -> str:
    """The installed version.

    Raises:
        ConfigError: not installed.
    """
    try:
        importlib.import_module("lm_eval")
        return importlib.metadata.version("lm_eval")
    except ImportError:
        raise ConfigError(
            f"MMLU and other benchmarks need lm-evaluation-harness; install it with\n  {how_to_install('eval')}"
        ) from None


@dataclass
class Reader:
    """A model in the harness' terms; what it was asked is counted.

    Base and tuned model are the same object: switch the adapter off around `ask`.
    """

    model: Any
    tokenizer: Any
    batch_size: int
    """Becomes smaller where memory runs out."""
    batches: Batches | None = None
    """What was found out about memory so far."""
    longest: int = field(init=False)
    """The most tokens that the loaded model takes."""

    def __post_init__(self) -> None:
        self.longest = _longest(self.model, self.tokenizer)
        self.batches = self.batches or Batches(self.model)

    def ask(self, tasks: Tasks, ids: Mapping[str, Sequence[int]] | None, on_share: OnShare | None = None) -> Answers:
        """Ask the model as it is now.

        Args:
            ids: numbers of the questions of each task; None: all.

        Raises:
            ConfigError: a task that cannot be asked in this way.
            QdoraError: one without a figure for each question.
            OutOfMemory: a single prompt does not fit.
        """
        from lm_eval.evaluator import evaluate

        for task in tasks.values():
            task.set_fewshot_seed(seed=FEW_SHOT_SEED)  # again: examples drawn by chance are the same for both models
        named = {task.config.task: task for task in tasks.values()}
        samples = None if ids is None else {tasks[name].config.task: list(ids[name]) for name in tasks}

        def answers() -> Answers:
            with quiet(), _no_bars():
                asked = harness_model(self, on_share)
                found = evaluate(asked, {"tasks": named}, samples=samples, bootstrap_iters=0, log_samples=True)
            return _answers(tasks, found["samples"], asked.cut)

        assert self.batches is not None
        try:
            while isinstance(given := attempt(answers), OutOfMemoryEvent):
                self.batch_size = self.batches.shrink(given, self.batch_size, "benchmark questions were answered")
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"evaluation.benchmarks: {', '.join(named)}: {first_line(error)}") from error
        return given


def harness_model(reader: Reader, on_share: OnShare | None = None) -> Any:
    """The harness' HFLM around the reader's model, for one `ask`; it says of its prompts how many were `cut`."""
    import torch
    from lm_eval.models.huggingface import HFLM

    class Asked(HFLM):  # type: ignore[misc, unused-ignore]
        """HFLM with fewer logits, no bars and a count."""

        cut = 0
        contexts, done, continuation = 1, 0, 1

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            self.contexts, self.done = len(requests), 0
            return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **options: Any) -> Any:
            # One pass through the model serves all one-token answers to a prompt.
            self.contexts, self.done = len({tuple(one[1] + one[2][:-1]) for one in requests}), 0
            self.continuation = max(len(one[2]) for one in requests)
            self.cut += len({tuple(one[1]) for one in requests if len(one[1]) + len(one[2]) > self.max_length + 1})
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            # inps [batch, T], padded with 0 on the right. HFLM counts from the end of the logits: [batch, kept, V].
            shortest = int(((inps != 0) * torch.arange(1, inps.shape[1] + 1, device=inps.device)).amax(1).min())
            kept = min(inps.shape[1], inps.shape[1] - shortest + self.continuation)
            with torch.no_grad():
                logits = self.model(input_ids=inps, logits_to_keep=kept).logits
            self._count(len(inps))
            return logits

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
            generated = super()._model_generate(context, max_length, stop, **options)
            self._count(len(context))
            return generated

        def _count(self, finished: int) -> None:
            self.done += finished
            if on_share:
                on_share(min(1.0, self.done / self.contexts))

    return Asked(
        pretrained=_Callable(reader.model),
        tokenizer=copy.deepcopy(reader.tokenizer),  # HFLM gives it a pad token where it has none
        backend="causal",
        batch_size=reader.batch_size,
        max_length=reader.longest,
        softmax_dtype="float32",  # in bf16 answers tie, and the first one wins
    )


class _Callable:
    """A model that can be called but is no module: HFLM would tie its weights anew and set its mode."""

    def __init__(self, model: Any) -> None:
        self.device, self.config = model.device, model.config
        self._model = model

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs)

    def generate(self, **inputs: Any) -> Any:
        """Write on, as the model does."""
        return self._model.generate(**inputs)


@contextmanager
def quiet(*, stderr: bool = False) -> Iterator[None]:
    """Keep what the harness logs and prints to itself; with `stderr` its bars and warnings too.

    Standard error is left open while a model is asked: the caller's own progress goes there.
    """
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) if stderr else nullcontext():
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_bars() -> Iterator[None]:
    """The one bar of the harness that no argument switches off: it is drawn for each task."""
    module: Any = importlib.import_module("lm_eval.api.task")
    bar = module.tqdm
    module.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        module.tqdm = bar


def _answers(tasks: Tasks, samples: Mapping[str, Sequence[Mapping[str, Any]]], cut: int) -> Answers:
    metrics = {samples[task.config.task][0]["metrics"][0] for task in tasks.values()}
    if len(metrics) > 1:
        raise ConfigError(
            f"evaluation.benchmarks: {', '.join(tasks)} are measured in different ways ({', '.join(sorted(metrics))}) "
            "and have no common figure; name them one by one"
        )
    metric = metrics.pop()
    by_task = {name: _outcomes(name, samples[task.config.task], metric) for name, task in tasks.items()}
    return Answers(metric, by_task, cut)


def _outcomes(task: str, samples: Sequence[Mapping[str, Any]], metric: str) -> dict[int, Outcome]:
    first = samples[0]["filter"]  # where answers are read in several ways, the first one counts
    outcomes = {}
    for sample in samples:
        value = sample[metric]
        if sample["filter"] != first:
            continue
        if not isinstance(value, int | float):
            raise QdoraError(
                f"{task}: `{metric}` is no figure of one question, so that models cannot be compared by it"
            )
        asked = json.dumps([sample["prompt_hash"], sample["arguments"], sample["target_hash"]], default=str)
        outcomes[sample["doc_id"]] = Outcome(float(value), hashlib.sha256(asked.encode()).hexdigest()[:16])
    return outcomes


def _longest(model: Any, tokenizer: Any) -> int:
    from lm_eval.models.utils import resolve_max_length

    longest = int(resolve_max_length(model.config, tokenizer))
    return min(longest, int(getattr(model, "max_seq_length", None) or longest))
