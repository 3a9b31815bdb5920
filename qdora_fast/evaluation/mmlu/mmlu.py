"""What tuning made the model forget: MMLU and other public benchmarks, base against tuned, question by question.

The base is the tuned model with its adapter switched off, at the same quantisation, and both answer the same
questions, so that the change is the tuning alone and a change of 2 points can be seen with 2,052 questions. What the
base answered is kept, since it is the same for all runs on it; a kept answer counts only for the very prompt that the
tuned model was asked. The alarm is a status here, never an exception: what follows from it is the caller's decision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qdora_fast.config.evaluation import MmluSettings
from qdora_fast.evaluation import statistics
from qdora_fast.evaluation.mmlu.base_answers import base_key, keep_base, read_base
from qdora_fast.evaluation.mmlu.harness import Answers, Reader, Tasks, harness_version
from qdora_fast.evaluation.mmlu.harness_tasks import load_mmlu, load_named, question_count
from qdora_fast.evaluation.mmlu.mmlu_subset import ids_hash, question_ids, subject_sizes
from qdora_fast.models.out_of_memory import Batches
from qdora_fast.system.errors import DataError

SEED = 0
SAID = {"ok": "within the limits", "warn": "the model may have forgotten", "fail": "the model has forgotten"}
BY_CHANCE = "but the interval includes 0: this can be chance; ask more questions (evaluation.mmlu.questions: full)"
OnRequest = Callable[[int, int], None]


@dataclass(frozen=True)
class Benchmark:
    """Tasks that are asked and counted together."""

    name: str
    tasks: Tasks
    ids: Mapping[str, Sequence[int]] | None
    """Numbers of the questions of each task; None: all."""

    @property
    def n(self) -> int:
        """Number of questions."""
        return question_count(self.tasks, self.ids)


@dataclass(frozen=True)
class Measured:
    """What was asked of both models; None for what was not."""

    mmlu: dict[str, Any] | None
    benchmarks: dict[str, Any] | None
    """Figures by name."""


@dataclass(frozen=True)
class Paired:
    """One benchmark, answered by both models; the lists are in the same order."""

    metric: str
    tasks: list[str]
    """The task of each question."""
    base: list[float]
    tuned: list[float]
    cut: int
    """Prompts that lost their beginning, being longer than the loaded model takes."""
    base_cached: bool


def measure(
    model: Any,
    tokenizer: Any,
    settings: MmluSettings,
    names: Sequence[str] = (),
    *,
    identity: Mapping[str, Any],
    cache: Path,
    batch_size: int,
    on_request: OnRequest | None = None,
    batches: Batches | None = None,
) -> Measured:
    """Ask base and tuned model MMLU, where it is enabled, and benchmarks by name.

    Args:
        model: a PEFT model in evaluation mode; it is left as it was.
        names: of benchmarks; `evaluation.benchmarks`.
        identity: what makes the base the same base: its name, revision, quantisation, precision.
        cache: folder where the base's answers are kept.
        batch_size: prompts at once, fewer where memory runs out.
        on_request: told how many questions are answered and how many there are, those of both models together.

    Raises:
        ConfigError: the harness is missing, or a task cannot be found or loaded.
        DataError: the questions are not those of cais/mmlu, or the two models were not asked the same.
    """
    started = time.monotonic()
    asked: list[Benchmark] = []
    if settings.enabled:
        tasks = load_mmlu(subject_sizes(), settings.path, settings.shots)
        asked.append(Benchmark("mmlu", tasks, question_ids(settings.questions)))
    named = load_named(names, settings.task_folder) if names else {}
    asked += [Benchmark(name, tasks, None) for name, tasks in named.items()]
    reader = Reader(model, tokenizer, batch_size, batches)
    answered = compare(reader, asked, identity=identity, cache=cache, on_request=on_request)
    took = {"harness": harness_version(), "seconds": round(time.monotonic() - started, 1)}
    mmlu = None
    if settings.enabled:
        first, ids = answered.pop(0), asked[0].ids
        assert ids is not None
        mmlu = mmlu_figures(first, settings, reader.longest) | {
            "shots": settings.shots,
            "questions": settings.questions,
            "ids_sha256": ids_hash(ids),
            "task_version": str(next(iter(asked[0].tasks.values())).VERSION),
            "subjects": _by_task(first),
            "base_cached": first.base_cached,
            **took,
        }
    figures = {name: _other_figures(paired) | took for name, paired in zip(named, answered, strict=True)}
    return Measured(mmlu, figures or None)


def compare(
    reader: Reader,
    benchmarks: Sequence[Benchmark],
    *,
    identity: Mapping[str, Any],
    cache: Path,
    on_request: OnRequest | None = None,
) -> list[Paired]:
    """Ask base and tuned model each benchmark, the base only where its answers are not in the cache.

    Raises:
        DataError: the two models were not asked the same questions.
    """
    keys = [base_key(reader, identity, benchmark.name, benchmark.tasks, benchmark.ids) for benchmark in benchmarks]
    kept = [read_base(cache, key) for key in keys]
    total = sum(benchmark.n * (1 if answers else 2) for benchmark, answers in zip(benchmarks, kept, strict=True))
    done = furthest = 0

    def ask(benchmark: Benchmark) -> Answers:
        nonlocal done
        before, done = done, done + benchmark.n

        def on_share(share: float) -> None:
            nonlocal furthest
            furthest = max(furthest, min(total, before + math.floor(share * benchmark.n)))
            if on_request:
                on_request(furthest, total)

        return reader.ask(benchmark.tasks, benchmark.ids, on_share)

    def ask_base(benchmark: Benchmark, key: Mapping[str, Any]) -> Answers:
        with reader.model.disable_adapter():
            answers = ask(benchmark)
        keep_base(cache, {**key, "batch_size": reader.batch_size}, answers)  # memory may have run out
        return answers

    paired = []
    for benchmark, key, cached in zip(benchmarks, keys, kept, strict=True):
        base = cached or ask_base(benchmark, key)
        tuned = ask(benchmark)
        if cached and _asked(cached) != _asked(tuned):  # the questions changed under the same name
            base, cached = ask_base(benchmark, key), None
        paired.append(pair(benchmark.name, base, tuned, base_cached=cached is not None))
    return paired


def pair(name: str, base: Answers, tuned: Answers, *, base_cached: bool = False) -> Paired:
    """Put the two models' answers side by side.

    Raises:
        DataError: not the same questions, or another prompt for one of them.
    """
    asked = _asked(base)
    if asked != _asked(tuned):
        differing = sorted(set(asked.items()) ^ set(_asked(tuned).items()))
        (task, number), _ = differing[0]
        raise DataError(
            f"{name}: question {number} of {task} was not the same for base and tuned model, so that they cannot be "
            "compared. A task that writes its prompts by chance or by time does this; leave it out of "
            "evaluation.benchmarks"
        )
    places = [(task, number) for task, outcomes in base.by_task.items() for number in outcomes]
    return Paired(
        base.metric,
        [task for task, _ in places],
        [base.by_task[task][number].value for task, number in places],
        [tuned.by_task[task][number].value for task, number in places],
        tuned.cut,
        base_cached,
    )


def status_of(delta_points: float, settings: MmluSettings) -> Literal["ok", "warn", "fail"]:
    """Whether a change of accuracy, in points, is an alarm; the limits themselves are."""
    change = round(delta_points, 6)  # a fall of 2 points is one, however it was added up
    if change <= settings.fail_below:
        return "fail"
    return "warn" if change <= settings.warn_below else "ok"


def mmlu_figures(paired: Paired, settings: MmluSettings, longest: int) -> dict[str, Any]:
    """The change of accuracy in points with its interval, what it means in words, and the alarm.

    Args:
        longest: tokens that the loaded model takes.
    """
    found = statistics.compare_rates(paired.base, paired.tuned, seed=SEED)
    assert found.ci95 and found.base is not None and found.tuned is not None and found.difference is not None  # n >= 57
    delta, low, high = (100 * value + 0.0 for value in (found.difference, *found.ci95))  # + 0.0: no -0.0
    status = status_of(delta, settings)
    verdict_text = BY_CHANCE if status != "ok" and low <= 0 <= high else SAID[status]
    words = (
        f"MMLU {delta:+.1f} points (95 % CI {low:+.1f} to {high:+.1f}, McNemar p {found.p:.2g}), from "
        f"{100 * found.base:.1f} % to {100 * found.tuned:.1f} % of {found.n:,} questions; {verdict_text}"
    )
    if paired.cut:
        words += (
            f". {paired.cut:,} prompts were longer than the {longest:,} tokens that the model was loaded for and lost "
            "their first examples: set a larger model.max_length or fewer evaluation.mmlu.shots"
        )
    return {
        "n": found.n,
        "base": found.base,
        "tuned": found.tuned,
        "delta_points": delta,
        "ci95_points": [low, high],
        "p": found.p,
        "gained": found.gained,
        "lost": found.lost,
        "status": status,
        "words": words,
        "cut_prompts": paired.cut,
        "max_length": longest,
    }


def _other_figures(paired: Paired) -> dict[str, Any]:
    rates = set(paired.base) | set(paired.tuned) <= {0.0, 1.0}
    compare_them = statistics.compare_rates if rates else statistics.compare_scores
    found = compare_them(paired.base, paired.tuned, seed=SEED)
    return {
        "metric": paired.metric,
        "n": found.n,
        "base": found.base,
        "tuned": found.tuned,
        "delta": found.difference,
        "ci95": found.ci95 and list(found.ci95),
        "base_cached": paired.base_cached,
    }


def _by_task(paired: Paired) -> dict[str, dict[str, Any]]:
    places: dict[str, list[int]] = {}
    for place, task in enumerate(paired.tasks):
        places.setdefault(task, []).append(place)
    return {
        task: {"n": len(own)}
        | {side: sum(getattr(paired, side)[place] for place in own) / len(own) for side in ("base", "tuned")}
        for task, own in places.items()
    }


def _asked(answers: Answers) -> dict[tuple[str, int], str]:
    return {
        (task, number): outcome.asked
        for task, outcomes in answers.by_task.items()
        for number, outcome in outcomes.items()
    }
