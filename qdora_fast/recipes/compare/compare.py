"""Methods against each other: `qdora-fast compare`. The same rows, steps, batches and questions for every arm.

    compare(config) → arms → rows prepared once → one training a trial → figures over seeds → table, record, page

The seed of the config decides which rows are held out, and they stay the same; the seeds of the trials (the config's
and those that follow it) decide how an adapter starts and in which order rows come. Each finished trial is a small file
below `trials/`, so that a comparison that was stopped, or is asked again with more arms or seeds, resumes where it was.
What this does not do: run trials side by side, or search for settings besides the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.code import FORMATTER, METRIC, without_folder
from qdora_fast.config.own_code import allow_own_code, by_content, require_code_allowed
from qdora_fast.config.presets import settings_of
from qdora_fast.recipes import messages
from qdora_fast.recipes.compare import figures, table, words
from qdora_fast.recipes.compare.arms import Arm, Trial, choose_arms, choose_rates, choose_trials, settings_for
from qdora_fast.recipes.data import confirm, find_base, ready_data, with_quality
from qdora_fast.recipes.evaluate import check_questions
from qdora_fast.recipes.fit import recipe_of
from qdora_fast.system import console
from qdora_fast.system.atomic import staged_file
from qdora_fast.system.errors import ConfigError, OutOfMemory, QdoraError
from qdora_fast.system.hardware import describe as describe_machine
from qdora_fast.system.json_files import read_object
from qdora_fast.system.run_folder import write_json
from qdora_fast.training.memory_cap import cap_memory

NOT_SHARED = {
    "adapter": {"method"},
    "train": {"learning_rate", "loraplus_ratio", "early_stopping", "tracker", "eval_steps", "save_steps"},
    "evaluation": {"benchmarks", "completions", "mmlu", "more_metrics"},
    "data": {"cache", "workers"},
}
"""Settings that differ between trials or change none."""


def compare(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    methods: Sequence[str] = ("lora", "qlora", "dora", "qdora"),
    ratios: Sequence[float] = (1.0, 16.0),
    seeds: int = 5,
    learning_rates: Sequence[float] = (),
    full_learning_rates: Sequence[float] = (),
    target: float | None = None,
    name: str | None = None,
    out: Path | None = None,
    own_code: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Train every arm with every seed, compare them on the held-out rows, and say what holds and what does not.

    Args:
        config: name of a preset, path of a YAML file, a dictionary of sections, or a Config.
        methods: of lora, qlora, dora, qdora and full (full fine-tuning of the 16-bit base's blocks).
        ratios: LoRA+ ratios; 1 is off.
        learning_rates: to try for each arm, of which the best is reported; empty: the config's alone.
        full_learning_rates: the same for `full`; empty: a tenth of the others.
        target: held-out loss for the steps-to-target column; None: where the first arm's median run ends.
        out: folder to write; None: `<run.dir>/<name>-compare`.
        own_code: files of code that may run where the config names them; `--own-code` of the command line.

    Returns:
        The record that is also written to comparison.json; comparison.html is its page.

    Raises:
        ConfigError: an unknown method, ratio or rate; no held-out rows; a folder with results of other settings.
        QdoraError: whatever preparing rows or loading the base may raise.
    """
    settings, given = settings_of(config, {})
    name = settings.run.name or name or given
    arms = choose_arms(methods, ratios)
    rates = choose_rates(settings, learning_rates, full_learning_rates)
    trials = choose_trials(arms, rates, settings.train.seed, seeds)
    folder = out or Path(settings.run.dir) / f"{name}-compare"
    with allow_own_code(own_code):
        require_code_allowed(settings, FORMATTER, METRIC)
        material = _prepare(settings, trials)
        _claim(folder, settings, material.prepared.report.hash)
        results = _run(trials, material, folder)
        record = {"name": name, "path": str(folder)} | _record(settings, arms, trials, results, material, target)
    write_json(folder / "comparison.json", record)
    table.show(record)
    from qdora_fast.recipes.compare.plot import comparison_page

    page = folder / "comparison.html"
    page.write_text(comparison_page(record), encoding="utf-8")
    console.print(f"\nplot          {page}\nrecord        {folder / 'comparison.json'}")
    return record


def _prepare(config: Config, trials: Sequence[Trial]) -> Any:
    """Everything shared by the trials, with what can be refused refused before the first of them."""
    from qdora_fast.evaluation.heldout import choose_rows
    from qdora_fast.models.loading import check_base, load_base
    from qdora_fast.recipes.compare.trial import Material
    from qdora_fast.training.trainer import choose_precision

    name = find_base(config)
    settings = {one.adapter.method: one for one in (settings_for(config, trial) for trial in trials)}
    for one in settings.values():
        check_base(name, one.model, one.adapter, merge_base=one.export.merge_base)
    targets = check_base(name, config.model, config.adapter, merge_base=config.export.merge_base)  # by any method
    cap_memory(config.train.vram)
    ready = ready_data(config, name)
    config = ready.config
    precision = choose_precision(config.train)
    base = load_base(name, config.model, config.adapter, config.train, targets=targets, precision=precision)
    ready = with_quality(confirm(ready, base, config), config, base)
    held_out = choose_rows(ready.prepared.held_out, config.evaluation.max_rows)
    if not held_out:
        raise ConfigError(
            "compare needs held-out rows: set data.held_out or data.held_out_path, and evaluation.max_rows above 0"
        )
    asked = check_questions([ready.prepared.held_out[number] for number in held_out], base.tokenizer, config)
    messages.asking(asked)
    config = config.model_copy(update={"evaluation": asked.chosen.settings})
    recipe = recipe_of(config, ready, precision)
    return Material(config, name, targets, recipe, ready.prepared, held_out, _options(config, ready.prepared))


def _options(config: Config, prepared: Any) -> Sequence[str]:
    if config.evaluation.metric != "choice":
        return ()
    from qdora_fast.evaluation.choices import options_of

    return config.evaluation.choices or options_of(prepared.train)


REMOVE = "remove it, and its trials are trained again"


def _claim(folder: Path, config: Config, data: str) -> None:
    """Make the folder this comparison's own, or make sure that what lies there is of the same settings and rows.

    Raises:
        ConfigError: it is not; the settings that differ are named.
    """
    shared = _shared(config) | {"rows": data}
    path = folder / "settings.json"
    if not path.is_file() or not any((folder / "trials").glob("*.json")):
        write_json(path, shared)
        return
    before = read_object(path, fix=REMOVE)
    differing = [key for key in {**before, **shared} if before.get(key) != shared.get(key)]
    if differing:
        listed = "; ".join(f"{key}: {before.get(key)} then, {shared.get(key)} now" for key in differing)
        raise ConfigError(f"{folder} holds trials with other settings ({listed}); name another --out or remove it")


def _shared(config: Config) -> dict[str, Any]:
    """Every setting that all trials have in common, by its full name."""
    sections = by_content(config.model_dump(mode="json", exclude={"run", "export"}))
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in values.items()
        if key not in NOT_SHARED.get(section, ())
    }


def _run(trials: Sequence[Trial], material: Any, folder: Path) -> list[dict[str, Any]]:
    """The results of all trials; what an earlier comparison finished is read, the rest is trained.

    Raises:
        QdoraError: a trial does not fit into the GPU's memory.
    """
    import torch

    from qdora_fast.models.out_of_memory import release_memory
    from qdora_fast.recipes.compare.trial import run_trial

    results = []
    for number, trial in enumerate(trials, 1):
        path = folder / "trials" / f"{trial.name}.json"
        if path.is_file():
            results.append(read_object(path, fix=REMOVE))
            continue
        try:
            results.append(run_trial(trial, material))
        except (torch.OutOfMemoryError, OutOfMemory):
            raise QdoraError(
                f"{trial.arm.spoken} does not fit into this GPU's memory; leave {trial.arm.method} out of --methods or "
                "lower train.batch_size or model.max_length. What is finished stays: the same command resumes from here"
            ) from None
        with staged_file(path) as unfinished:
            write_json(unfinished, results[-1])
        release_memory()
        console.print(f"{number:>4}/{len(trials)}  {_told(trial, results[-1], _score_name(material.config))}")
        for note in results[-1]["notes"]:
            console.print(f"{'':>4} {note}")
    return results


def _told(trial: Trial, result: Mapping[str, Any], score_name: str) -> str:
    loss = "diverged" if result["loss"] is None else f"held-out loss {result['loss']:.4f}"
    score = f", {score_name} {sum(result['scores']) / len(result['scores']):.1%}" if result["scores"] else ""
    return (
        f"{trial.arm.spoken}, rate {trial.learning_rate:g}, seed {trial.seed}: {loss}{score}, {result['seconds']:.0f} s"
    )


def _score_name(config: Config) -> str:
    """What the mean of the scores is called: accuracy, or the metric's name."""
    from qdora_fast.evaluation.metrics import find_metric
    from qdora_fast.evaluation.task import judging

    name = judging(config.evaluation)
    return find_metric(name, pattern=config.evaluation.pattern).info.score_name if name else "score"


def _record(
    config: Config,
    arms: Sequence[Arm],
    trials: Sequence[Trial],
    results: Sequence[dict[str, Any]],
    material: Any,
    target: float | None,
) -> dict[str, Any]:
    """The comparison as JSON: settings, figures of each arm, differences in numbers and words, and every trial."""
    import torch

    chosen = figures.of_arms(arms, results)
    first = arms[0]
    loss = target if target is not None else figures.default_target(chosen[first.name])
    score_name = _score_name(material.config)
    report = material.prepared.report
    described = {}
    for arm in arms:
        tried = figures.choose_rate([result for result in results if result["arm"] == arm.name])[1]
        described[arm.name] = figures.describe_arm(arm, chosen[arm.name], loss, tried)
    compared = figures.differences(arms, chosen)
    machine = describe_machine()
    gpu = torch.cuda.is_available()
    return {
        "schema_version": 1,
        "kind": "comparison",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "config": config.model_dump(mode="json"),
        "base": material.base_name if config.model.name != "demo" else "demo",
        "dataset": {
            "hash": report.hash,
            "train": report.train,
            "held_out": report.held_out,
            "asked": len(material.held_out),
        },
        "seeds": list(dict.fromkeys(trial.seed for trial in trials)),
        "steps": material.steps,
        "metric": without_folder(material.config.evaluation.metric),
        "score_name": score_name,
        "target": {"loss": loss, "from": "given" if target is not None else f"where {first.spoken}'s median run ends"},
        "clock": f"on {machine['cpu']}, {torch.get_num_threads()} threads" if not gpu else "on the GPU",
        "memory_counts": MEMORY_GPU if gpu else MEMORY_CPU,
        "arms": described,
        "differences": [one | {"words": words.sentence(one, score_name)} for one in compared],
        "trials": list(results),
    }


MEMORY_GPU = "the allocator's peak while training"
MEMORY_CPU = (
    "weights as they are held, trained parameters, their gradients, optimizer state and weights that the engine keeps, "
    "added up; no activations"
)
