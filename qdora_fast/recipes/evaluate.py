"""The evaluation of a run: base against tuned, what was forgotten, completions to read, and the log.

`train` calls `evaluate_model` with the model it has in memory; `evaluate` opens a finished run for it. Both leave the
same: evaluation/evaluation.json, a line in evaluation/log.jsonl, the answers, completions to read, report.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from qdora_fast.config import Config
from qdora_fast.config.code import of_evaluation
from qdora_fast.config.own_code import allow_own_code, require_code_allowed
from qdora_fast.config.recorded import read_config
from qdora_fast.data.clean.rejects import REASONS, RejectedRow
from qdora_fast.data.read.messages import ROW_SHAPE
from qdora_fast.data.tokenize.chat_text import asks_for_clock, templates_of
from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.evaluation.record import EvaluationResult
from qdora_fast.models.backend import open_backend
from qdora_fast.models.out_of_memory import Batches, make_room
from qdora_fast.models.run_info import read_run_info
from qdora_fast.recipes import messages
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, IntegrityError, RegressionError
from qdora_fast.system.hardware import cache_folder
from qdora_fast.system.redact import redact
from qdora_fast.system.remote_code import require_allowed
from qdora_fast.system.run_folder import COPY_RUN, RunFolder
from qdora_fast.system.run_lock import locked
from qdora_fast.training.memory_cap import cap_memory
from qdora_fast.training.resume import base_fingerprint

if TYPE_CHECKING:
    from qdora_fast.evaluation.heldout import Question

EVALUATION, ANSWERS = "evaluation/evaluation.json", "evaluation/held_out_answers.jsonl"


GENERAL_TOKENS = 256
"""Tokens of an answer to a general prompt, at least: short references say nothing of these."""


@dataclass(frozen=True)
class EvalModel:
    """A trained model with its adapter, ready to be asked, and the held-out rows with their tokens."""

    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    rows: Sequence[Mapping[str, Any]]
    examples: Sequence[Mapping[str, Sequence[int]]]
    precision: str


def evaluate(
    run: str | Path | RunFolder,
    *,
    overrides: Sequence[str] = (),
    allow_regression: bool = False,
    own_code: Sequence[str | Path] = (),
) -> EvaluationResult:
    """Evaluate a finished run once more.

    Args:
        run: its folder.
        overrides: settings of the `evaluation` section to change, as `evaluation.metric=numeric`.
        allow_regression: report a fallen MMLU instead of failing.
        own_code: files of code that may run where the run's settings name them; `--own-code` of the command line.

    Returns:
        The evaluation, a dictionary as in evaluation/evaluation.json.

    Raises:
        ConfigError: not a finished run, no held-out rows, a template that is not the run's, an unknown metric, code of
            the run that may not be run.
        RunLocked: another process works in the run's folder.
        RegressionError: MMLU fell by more than `evaluation.mmlu.fail_below`.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    config = _changed(folder, overrides)
    with allow_own_code(own_code), locked(folder.path):
        require_code_allowed(config, *of_evaluation(config))
        check_benchmarks(config)
        if capped := cap_memory(config.train.vram):
            console.note(capped)
        record = evaluate_model(open_run(folder, config), config, folder, on_chosen=messages.asking)
        write_report(folder)
    if not allow_regression:
        refuse_regression(record)
    return EvaluationResult(record)


def evaluate_model(
    tuned: EvalModel, config: Config, folder: RunFolder, *, on_chosen: Callable[[Any], None] | None = None
) -> dict[str, Any]:
    """Measure, print and record; `tuned.model` is used as it is, its adapter switched off for the base.

    Args:
        on_chosen: told what `auto` became, see `check_questions`.

    Returns:
        The evaluation, as in evaluation/evaluation.json.

    Raises:
        OutOfMemory: not even one row at a time fits.
    """
    from qdora_fast.evaluation import log
    from qdora_fast.evaluation.heldout import choose_rows
    from qdora_fast.evaluation.record import make_record
    from qdora_fast.evaluation.task import Read, judge, measure_loss

    make_room(tuned.model)
    batches = Batches(tuned.model, on_note=console.note)
    chosen_rows = choose_rows(tuned.rows, config.evaluation.max_rows)
    rows, examples = [tuned.rows[i] for i in chosen_rows], [tuned.examples[i] for i in chosen_rows]
    asked = check_questions(rows, tuned.tokenizer, config)
    if on_chosen:
        on_chosen(asked)
    begun = monotonic()
    with messages.reading(2 * len(rows)) as on_row:
        loss, losses = measure_loss(tuned.model, examples, batches, rows=rows, on_row=on_row)
    read = monotonic()
    answered = _answered(tuned, asked, config, folder, batches)
    timing = {
        "rows": len(rows),
        "answered": len(answered.questions),
        "tokens": sum(reply.tokens for side in (answered.replies.base, answered.replies.tuned) for reply in side),
        "loss_seconds": round(read - begun, 2),
        "answer_seconds": round(monotonic() - read, 2),
    }
    task, right = judge(answered, asked.chosen.settings, Read(rows, losses))
    if task:
        task["chosen"] = asked.chosen.why or None
    by_hash = {row["meta"]["hash"]: number for number, row in enumerate(rows)}
    folder.write_rows(ANSWERS, _answer_lines(asked.questions, answered, right, losses, by_hash))
    completions = _completions(tuned, answered, config, asked.chosen, folder, batches)
    timing["seconds"] = round(monotonic() - begun, 2)  # MMLU has its own
    public = _benchmarks(tuned, config, folder, batches)
    every = config.model_dump(mode="json")
    record = make_record(
        folder, every, config.adapter, task=task, heldout_loss=loss, completions=completions, timing=timing, **public
    )
    folder.write_json(EVALUATION, record)
    log.append(folder.path, "evaluation", record)
    messages.evaluation(record, answered)
    return record


@dataclass(frozen=True)
class Asked:
    """The questions of the held-out rows, and the settings by which they are asked and judged."""

    rows: int
    """Rows that are read."""
    questions: Sequence[Any]
    chosen: Any
    """`evaluation.auto.Chosen`."""


def check_questions(rows: Sequence[Mapping[str, Any]], tokenizer: Any, config: Config) -> Asked:
    """The questions of those held-out rows that are asked, `auto` decided, once it is sure that the metrics can judge
    their answers.

    Raises:
        ConfigError, DataError: see `evaluation.task.check`.
    """
    from qdora_fast.evaluation.auto import resolve_auto
    from qdora_fast.evaluation.heldout import choose_rows
    from qdora_fast.evaluation.task import check

    rows = [rows[number] for number in choose_rows(rows, config.evaluation.max_rows)]
    questions = questions_of(rows, tokenizer, config, max_length=config.model.length, noun="held-out rows")
    chosen = resolve_auto(config.evaluation, questions)
    check(questions, chosen.settings)
    return Asked(len(rows), questions, chosen)


def questions_of(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, config: Config, *, max_length: int, noun: str
) -> list[Question]:
    """The questions of rows; how many of them the chat template refuses is said.

    Args:
        noun: what the message calls the rows.
    """
    from qdora_fast.evaluation.heldout import make_questions

    refused: list[str] = []
    questions = make_questions(
        rows,
        tokenizer,
        max_length=max_length,
        date=config.data.date,
        thinking=config.data.thinking,
        on_refused=refused.append,
    )
    if refused:
        console.note(
            f"{len(refused)} of {len(rows)} {noun} are not asked: the chat template refuses their prompt ({refused[0]})"
        )
    return questions


def check_benchmarks(config: Config) -> None:
    """Refuse benchmarks that cannot be asked, before weights are read.

    Raises:
        ConfigError: their harness is not installed, or it has none of that name.
        RefusedError: the folder of own tasks may not be used.
    """
    settings = config.evaluation
    if settings.mmlu.enabled or settings.benchmarks:
        from qdora_fast.evaluation.mmlu.harness import harness_version

        harness_version()
    if settings.benchmarks:
        from qdora_fast.evaluation.mmlu.harness_tasks import require_named

        require_named(settings.benchmarks, settings.mmlu.task_folder)


def write_report(folder: RunFolder) -> Path:
    """Write report.html and the model cards again, from the files of the run's folder; returns the report's path."""
    from qdora_fast.evaluation.report.card import Kind, model_card
    from qdora_fast.evaluation.report.pages import run_page
    from qdora_fast.recipes.report import read_parts

    parts = read_parts(folder)
    kinds: tuple[Kind, ...] = ("adapter", "merged_16bit", "merged_4bit_forced")
    for kind in kinds:
        if (folder.path / kind).is_dir():
            (folder.path / kind / "README.md").write_text(redact(model_card(parts, kind=kind)), encoding="utf-8")
    report = folder.path / "report.html"
    report.write_text(run_page(parts), encoding="utf-8")
    return report


def refuse_regression(record: Mapping[str, Any]) -> None:
    """Raise RegressionError when an evaluation says that too much was forgotten."""
    mmlu = record.get("mmlu")
    if mmlu and mmlu["status"] == "fail":
        raise RegressionError(
            f"{mmlu['words']}. Fewer epochs, a lower learning rate or rank, or general rows in the mixture keep more; "
            "--allow-regression reports it instead of failing, evaluation.mmlu.fail_below moves the limit"
        )


def open_run(folder: RunFolder, config: Config) -> EvalModel:
    """Load a run's base and adapter, its held-out rows, and their tokens as they were for training.

    Raises:
        ConfigError: the run did not finish, held nothing out, or its template is not what the base and config give.
    """
    unsloth = open_backend()
    from qdora_fast.data import choose_template
    from qdora_fast.data.tokenize.render import Renderer, Rendering
    from qdora_fast.data.tokenize.templates import bundled_name
    from qdora_fast.models.tokenizer import read_tokenizer
    from qdora_fast.recipes.report import trained_model
    from qdora_fast.training.trainer import choose_precision

    info = read_run_info(folder)
    require_allowed(info.own_code)
    rows = folder.read_rows("data/held_out.jsonl", ROW_SHAPE)
    if not rows:
        raise ConfigError(
            f"{folder.path} held no rows out (data.held_out: 0), so there is nothing to evaluate on; train with "
            "data.held_out: 0.1, or with your own rows in data.held_out_path"
        )
    if not folder.adapter.is_dir():
        raise ConfigError(f"{folder.path} has no adapter yet: the run did not finish; run it again or --resume it")
    tokenizer = read_tokenizer(str(folder.adapter))
    base, model = trained_model(folder, config).load(precision=choose_precision(config.train))
    template = choose_template(base.tokenizer, config.data.template)
    saved = templates_of(tokenizer)
    if templates_of(base.tokenizer) != saved and bundled_name(saved.get("default")) != template.name:
        raise ConfigError(
            f"the chat template saved with {folder.adapter} is not the one that data.template: {config.data.template} "
            f"gives for `{info.base}`; one of them was changed after training. Answers would be to other prompts "
            "than those trained on: put the template back, or train again"
        )
    unsloth.FastLanguageModel.for_inference(model)
    stop_ids = frozenset(info.stop_ids)
    settings = (config.model.length, config.data.train_on, config.data.on_long, stop_ids)
    day = config.data.date if asks_for_clock(tokenizer) else None
    renderer = Renderer(Rendering(tokenizer, *settings, date=day, thinking=config.data.thinking))
    return EvalModel(model, tokenizer, stop_ids, rows, _rendered(folder, rows, renderer), base.precision)


def _rendered(folder: RunFolder, rows: Sequence[Any], renderer: Any) -> list[Any]:
    """The rows as the model reads them.

    Raises:
        IntegrityError: one of them cannot be; when the run was trained, all could.
    """
    rendered = []
    for number, row in enumerate(rows, start=1):
        try:
            rendered.append(renderer(row)[0])
        except RejectedRow as error:
            place = folder.path / "data" / "held_out.jsonl"
            raise IntegrityError(f"{place}, row {number}: {REASONS[error.reason]}; {COPY_RUN}") from None
    return rendered


def _changed(folder: RunFolder, overrides: Sequence[str]) -> Config:
    for text in overrides:
        if not text.startswith("evaluation."):
            raise ConfigError(f"--set {text}: a finished run keeps its settings; only evaluation.* can be changed")
    return read_config(folder, overrides)


def _answered(tuned: EvalModel, asked: Asked, config: Config, folder: RunFolder, batches: Batches) -> Any:
    """What both models say to the questions, or to some of them where no answer decides."""
    from qdora_fast.evaluation.heldout import choose_rows, of_both
    from qdora_fast.evaluation.task import Answered, ask

    settings = asked.chosen.settings
    questions = [asked.questions[i] for i in choose_rows([each.row for each in asked.questions], asked.chosen.written)]
    options = _options(config, folder) if settings.metric == "choice" else ()

    def measure(side: str) -> Any:
        with messages.answering(len(questions), side) as on_answer:
            how = (tuned.model, tuned.tokenizer, questions, settings, tuned.stop_ids)
            return ask(*how, options=options, on_answer=on_answer, batches=batches)

    return Answered(questions, of_both(tuned.model, measure))


def _options(config: Config, folder: RunFolder) -> Sequence[str]:
    from qdora_fast.evaluation.choices import options_of

    return config.evaluation.choices or options_of(folder.read_rows("data/train.jsonl", ROW_SHAPE))


def _answer_lines(
    questions: Sequence[Any],
    answered: Any,
    right: Sequence[tuple[float, float]],
    losses: Any,
    by_hash: Mapping[str, int],
) -> Any:
    """A line for each question; answers and how right they are stay null where none was asked for, or none decides."""
    replies = zip(answered.replies.base, answered.replies.tuned, strict=True)
    said = dict(zip((id(question) for question in answered.questions), replies, strict=True))
    judged = dict(zip(said, right, strict=True)) if right else {}
    for question in questions:
        meta = question.row["meta"]
        number = by_hash[meta["hash"]]
        base, tuned = said.get(id(question), (None, None))
        base_right, tuned_right = judged.get(id(question), (None, None))
        yield {
            "question": question.shown,
            "reference": question.reference,
            "base": base and base.text,
            "tuned": tuned and tuned.text,
            "base_right": base_right,
            "tuned_right": tuned_right,
            "base_loss": losses.base[number].mean,
            "tuned_loss": losses.tuned[number].mean,
            "base_finished": base and base.finished,
            "tuned_finished": tuned and tuned.finished,
            "place": meta["source"],
            "hash": meta["hash"],
        }


def _completions(
    tuned: EvalModel, answered: Any, config: Config, chosen: Any, folder: RunFolder, batches: Batches
) -> dict[str, Any] | None:
    """Answers for a person to read: some of the held-out ones, and general prompts that show what was forgotten."""
    from qdora_fast.evaluation.generation import encode, generate
    from qdora_fast.evaluation.heldout import of_both
    from qdora_fast.evaluation.report.completions import GENERAL, choose_prompts, completion, write

    settings = chosen.settings
    if not settings.completions or settings.metric == "choice":
        return None
    mode = Vocabulary(tuned.tokenizer, tuned.stop_ids, date=config.data.date).in_mode(read_run_info(folder).thinking)
    prompts = encode(tuned.tokenizer, [mode.render(messages, add_generation_prompt=True) for messages in GENERAL])
    most = max(chosen.new_tokens, GENERAL_TOKENS) if config.evaluation.max_new_tokens == "auto" else chosen.new_tokens

    def measure(side: str) -> Any:
        with messages.answering(len(prompts), f"{side}, general prompts") as on_answer:
            asked = (prompts, most, settings.batch_size, tuned.stop_ids, on_answer, batches)
            return generate(tuned.model, tuned.tokenizer, *asked)

    general = of_both(tuned.model, measure)
    shown = [
        completion(f"general-{number}", messages, messages[-1]["content"], None, general, number - 1)
        for number, messages in enumerate(GENERAL, 1)
    ]
    for index in choose_prompts(answered.questions, most=settings.completions, seed=config.train.seed):
        question = answered.questions[index]
        prompt = question.row["messages"][:-1]
        row = question.row["meta"]["hash"]
        shown.append(completion(row, prompt, question.shown, question.reference, answered.replies, index))
    about = f"{config.adapter.method} on {Path(read_run_info(folder).base).name}"
    written = write(shown, folder.evaluation, name=folder.path.name, about=about)
    return {"n": len(shown), "path": str(written.path.relative_to(folder.path)), "sha256": written.sha256}


def _benchmarks(tuned: EvalModel, config: Config, folder: RunFolder, batches: Batches) -> dict[str, Any]:
    """`mmlu` and `benchmarks` of the record."""
    settings = config.evaluation
    if not (settings.mmlu.enabled or settings.benchmarks):
        return {"mmlu": None, "benchmarks": None}
    from qdora_fast.evaluation.mmlu.mmlu import measure

    info, packages = read_run_info(folder), folder.read_json("environment.json", {"packages": dict})["packages"]
    identity = {
        "base": base_fingerprint(info.base, info.revision),
        "quantized": config.adapter.quantized,
        "precision": tuned.precision,
        "packages": {name: packages.get(name) for name in ("torch", "transformers", "bitsandbytes", "unsloth")},
    }
    with messages.asking_benchmark() as on_request:
        measured = measure(
            tuned.model,
            tuned.tokenizer,
            settings.mmlu,
            settings.benchmarks,
            identity=identity,
            cache=cache_folder() / "benchmarks",
            batch_size=settings.batch_size,
            on_request=on_request,
            batches=batches,
        )
    return {"mmlu": measured.mmlu, "benchmarks": measured.benchmarks}
