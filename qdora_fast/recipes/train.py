"""The recipe of a run, from a config to a proven model.

Read `run_recipe` from top to bottom: each line is one module's work, and what it decided is shown as it happens.
Nothing is computed here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from qdora_fast.config import Config
from qdora_fast.config.code import FORMATTER, of_evaluation
from qdora_fast.config.own_code import allow_own_code, require_code_allowed
from qdora_fast.config.recorded import code_elsewhere, create_run, keep_code, newest_run, read_config
from qdora_fast.data.dataset import Prepared
from qdora_fast.exports.verify import token_identity
from qdora_fast.models.backend import open_backend
from qdora_fast.models.run_info import RunInfo, write_run_info
from qdora_fast.models.targets import Targets
from qdora_fast.recipes import messages
from qdora_fast.recipes.auto import adopt
from qdora_fast.recipes.data import (
    Ready,
    confirm,
    find_base,
    read_review,
    ready_data,
    record_review,
    with_quality,
    write_data,
)
from qdora_fast.recipes.ending import final_scores, notifying
from qdora_fast.recipes.evaluate import (
    EvalModel,
    check_benchmarks,
    check_questions,
    evaluate_model,
    refuse_regression,
    write_report,
)
from qdora_fast.recipes.fit import fit, identity_of, recipe_of
from qdora_fast.recipes.given import settings_given
from qdora_fast.recipes.resume import NEW, Start, resume_if_unfinished, resume_run
from qdora_fast.recipes.run import Run
from qdora_fast.recipes.watch import beside_training
from qdora_fast.system import console, distributed
from qdora_fast.system.disk import disk_errors
from qdora_fast.system.errors import ConfigError, without_frames
from qdora_fast.system.hardware import describe as describe_machine
from qdora_fast.system.manifest import write_manifest
from qdora_fast.system.remote_code import code_of, remote_code_allowed
from qdora_fast.system.run_folder import FINISHED, RunFolder
from qdora_fast.system.run_lock import locked
from qdora_fast.system.webhook import addresses
from qdora_fast.training.callbacks import OnStep
from qdora_fast.training.memory_cap import cap_memory
from qdora_fast.training.resume import require_same
from qdora_fast.training.trainer import Recipe, choose_precision


def train(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    resume: bool | Literal["auto"] = False,
    own_code: Sequence[str | Path] = (),
    on_step: OnStep | None = None,
    watch: bool = False,
    **sections: Any,
) -> Run:
    """Fine-tune, compare with the base on held-out rows, export and prove the export.

    Args:
        config: name of a preset, path of a YAML file, a dictionary of sections, or a Config.
        resume: from the newest complete checkpoint of the run of the same name; "auto": if that run was stopped.
        own_code: files of code that may run where the config names them; `--own-code` of the command line.
        on_step: called after each optimizer step with a dictionary: step, steps (of the whole run), epoch, loss,
            learning_rate, grad_norm and what else the trainer logs. An exception in it ends the run as Ctrl-C does: a
            checkpoint is saved, and the exception is raised.
        watch: serve the run's page on this machine while it trains, and print its address.
        **sections: settings that replace the config's, for instance train={"epochs": 1}. Rows in memory are
            data={"rows": ...}, beside them data={"held_out_rows": ...}: a list of dictionaries, a DataFrame of pandas
            or polars, a pyarrow.Table or a datasets.Dataset.

    Returns:
        The run's folder; `run.adapter` and `run.path / "merged_16bit"` are what it made.

    Raises:
        QdoraError: every foreseen failure, with the place and the fix in its message. One of the evaluation is raised
            when everything else is done.
    """
    if on_step is not None and not callable(on_step):
        raise ConfigError(f"on_step: got a {type(on_step).__name__}; give a function that takes a dictionary")
    settings, name = settings_given(config, sections)
    with allow_own_code(own_code):
        return Run(run_recipe(settings, name=name, resume=resume, on_step=on_step, watch=watch).path)


def run_recipe(
    config: Config,
    *,
    name: str,
    resume: bool | Literal["auto"] = False,
    reviewed: Path | None = None,
    on_step: OnStep | None = None,
    watch: bool = False,
) -> RunFolder:
    """Rows and tokens, then everything else in one run's folder, which nobody else may use meanwhile.

    Runs in every process of a run; the first speaks, writes, compares and exports for all.
    """
    train = config.train
    distributed.accumulation_per_rank(train.rows_per_step if train.batch_size == "auto" else train.accumulation)
    disk = disk_errors(
        Path(config.run.dir),
        saved=lambda: "what was finished before is complete",
        again="run the same command again with --auto-resume",
    )
    with distributed.process_group(), notifying(config, name) as ending, disk:
        config, start = distributed.broadcast(_begin(config, name, resume) if distributed.is_main() else (config, NEW))
        ready, targets = _prepared(config, start.folder)
        config = ready.config
        recipe = recipe_of(config, ready, choose_precision(config.train))
        start = distributed.broadcast(_start(config, ready, recipe, name, start) if distributed.is_main() else NEW)
        folder = start.folder
        assert folder is not None, "the first process has chosen or made one"
        ending.folder = folder
        with locked(folder.path) if distributed.is_main() else nullcontext(), _page(folder, watch):
            config = distributed.broadcast(keep_code(folder, config) if distributed.is_main() else config)
            messages.started(folder, start)
            messages.code_elsewhere(code_elsewhere(folder, config))
            how = (start.checkpoint, reviewed, on_step)
            model, base, ready = _trained(config, folder, ready, recipe, targets, *how)
            if distributed.is_main():
                _save_adapter(model, base.tokenizer, folder)
                found = _evaluate(model, base, config, folder, ready.prepared)
                evidence = _evidence(model, config, folder)
                del model, base  # the proof opens the merged model beside nothing else
                try:
                    _export(evidence, config, folder, start.checkpoint is not None)
                finally:
                    _summarise(config, folder)
                messages.finished(folder)
                refuse_regression(_done(found))
    return folder


def _page(folder: RunFolder, watch: bool) -> AbstractContextManager[None]:
    """The page of the run while it goes on, where it is asked for."""
    return beside_training(folder) if watch and distributed.is_main() else nullcontext()


def _begin(config: Config, name: str, resume: bool | Literal["auto"]) -> tuple[Config, Start]:
    """Which run to resume, if any, and the settings: with the numbers of that run where they say `auto`."""
    earlier = newest_run(config, name) if resume else None
    as_before = adopt(config, read_config(earlier)) if earlier else config
    start = NEW
    if resume:
        start = resume_if_unfinished(as_before, name) if resume == "auto" else resume_run(as_before, name)
    return (as_before if start.folder else config), start


def _prepared(config: Config, resumed: RunFolder | None) -> tuple[Ready, Targets]:
    """`prepare_run`. The first process prepares and decides what `auto` becomes; the others do as it did."""
    first = prepare_run(config, resumed) if distributed.is_main() else None
    config = distributed.broadcast(first[0].config if first else config)
    return first or prepare_run(config, resumed)


def _start(config: Config, ready: Ready, recipe: Recipe, name: str, start: Start) -> Start:
    """Where this run begins: in a new folder, or at a checkpoint that is of this very run."""
    if start.checkpoint is not None and not config.data.quality.enabled:  # else the rows are not chosen yet
        require_same(start.checkpoint, identity_of(config, ready, recipe), ready.base_name)
    return start if start.folder else replace(start, folder=create_run(config, name))


def _trained(
    config: Config,
    folder: RunFolder,
    ready: Ready,
    recipe: Recipe,
    targets: Targets,
    checkpoint: Path | None,
    reviewed: Path | None,
    on_step: OnStep | None,
) -> tuple[Any, Any, Ready]:
    """Base → adapter → fused layers → training. Returns the model, its base, and the rows as they were used."""
    from qdora_fast.models.loading import attach, fuse_layers, load_base
    from qdora_fast.models.new_tokens import with_tokens

    judged = config.data.quality.enabled  # a review is then about rows that are not chosen yet
    review = read_review(ready.prepared, reviewed, config) if reviewed and not judged else None
    if capped := cap_memory(config.train.vram):
        console.note(capped)
    base = load_base(
        ready.base_name, config.model, config.adapter, config.train, targets=targets, precision=recipe.precision
    )
    base = with_tokens(base, config.adapter.trainable_tokens)
    rows = ready.prepared
    with distributed.main_process_first():
        ready = with_quality(confirm(ready, base, config), config, base)
    if ready.prepared is not rows:  # other rows may mean other steps
        recipe = recipe_of(config, ready, recipe.precision)
    messages.quality(ready)
    review = read_review(ready.prepared, reviewed, config) if reviewed and judged else review
    if distributed.is_main():
        _describe_run(folder, config, base, ready, review)

    model = attach(base, config.adapter, config.train)
    messages.adapter(config.adapter, base.targets, model)
    messages.trained_tokens(base)
    report = fuse_layers(model, config.engine)
    messages.engine(report)
    if distributed.is_main():
        folder.write_json("engine.json", report.as_dict())
    if config.adapter.init_adapter and checkpoint is None:
        from qdora_fast.training.warm_start import warm_start

        console.note(warm_start(model, config.adapter))
    fit(model, base, config, folder, ready, recipe, checkpoint, on_step)
    return model, base, ready


def _evidence(model: Any, config: Config, folder: RunFolder) -> Any:
    """What the trained model says about the proof rows; None where nothing is exported."""
    if config.export.at_end == "none":
        return None
    from qdora_fast.exports.verify.case import record_trained

    return record_trained(model, folder)


def _export(evidence: Any, config: Config, folder: RunFolder, again: bool) -> None:
    """The merged model and its proof, where the config wants one; then the report."""
    try:
        if evidence is not None:
            from qdora_fast.exports.merged import export_merged, merged_folder
            from qdora_fast.models.out_of_memory import release_memory

            release_memory()
            base, merge_base = config.model.base_16bit, config.export.merge_base
            out = merged_folder(folder, merge_base)
            export_merged(folder, evidence, merge_base=merge_base, base_16bit=base, out=out, overwrite=again)
    finally:  # a proof that failed is in the report, too
        write_report(folder)
    folder.write_json(FINISHED, {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def _summarise(config: Config, folder: RunFolder) -> None:
    """Final scores for the experiment trackers."""
    if not config.train.trackers:
        return
    from qdora_fast.training.trackers import log_summary

    steps = [int(path.name.rpartition("-")[2]) for path in folder.checkpoints()]
    what = (config.model_dump(mode="json"), final_scores(folder), max(steps, default=0))
    for problem in log_summary(folder, config.train.trackers, *what):
        console.note(problem)


def prepare_run(config: Config, resumed: RunFolder | None = None) -> tuple[Ready, Targets]:
    """The part that fails fast: the base found and checked, rows prepared, split and tokenised, no weights read.

    Returns:
        The rows, and the layers that get an adapter.
    """
    from qdora_fast.models.loading import check_base
    from qdora_fast.training.trainer import check_tracker

    check_tracker(config.train)
    addresses(config.run.notify)
    require_code_allowed(config, FORMATTER, *of_evaluation(config))  # before hours of training, not after them
    open_backend()
    base_name = find_base(config, resumed)
    targets = check_base(base_name, config.model, config.adapter, merge_base=config.export.merge_base)
    messages.own_code(base_name, code_of(base_name, config.model.revision), runs=remote_code_allowed())
    ready = ready_data(config, base_name)
    messages.preflight(ready)
    if config.evaluation.max_rows:
        check_benchmarks(config)
        asked = check_questions(ready.prepared.held_out, ready.rendering.tokenizer, ready.config)
        if ready.prepared.held_out:
            messages.asking(asked)
    return ready, targets


def dry_run(config: Config) -> None:
    """Everything short of reading the base's weights: settings, rows, tokens, masks, targets."""
    _, targets = prepare_run(config)
    messages.dry_run(targets)


def _evaluate(
    model: Any, base: Any, config: Config, folder: RunFolder, prepared: Prepared
) -> dict[str, Any] | Exception:
    """Base against tuned on the held-out rows; {} where nothing is held out or it is switched off. What ends it does
    not end the run: it is said, and returned without the frames that hold the model."""
    if not prepared.held_out_examples or config.evaluation.max_rows == 0:
        return {}
    try:
        open_backend().FastLanguageModel.for_inference(model)
        tuned = EvalModel(
            model, base.tokenizer, base.stop_ids, prepared.held_out, prepared.held_out_examples, base.precision
        )
        return evaluate_model(tuned, config, folder)
    except Exception as error:  # noqa: BLE001 - training is over; it is raised when everything else is done
        messages.not_evaluated(folder, error)
        return without_frames(error)


def _done(found: dict[str, Any] | Exception) -> dict[str, Any]:
    """The evaluation.

    Raises:
        Exception: the one that ended it, now that everything else is done.
    """
    if isinstance(found, Exception):
        raise found
    return found


def _save_adapter(model: Any, tokenizer: Any, folder: RunFolder) -> None:
    from qdora_fast.models.adapter import save_adapter

    save_adapter(model, folder.adapter)
    tokenizer.save_pretrained(folder.adapter)
    write_manifest(folder.adapter, {"kind": "adapter"}, leave_out=["README.md"])  # the card is written anew


def _describe_run(folder: RunFolder, config: Config, base: Any, ready: Ready, review: Any | None) -> None:
    """Machine, rows, model.json and the rows of the proof: what export, chat and evaluation need to know later."""
    from qdora_fast.exports.verify import base_sample

    (folder.path / FINISHED).unlink(missing_ok=True)
    folder.write_json("environment.json", describe_machine())
    if ready.resolved is not None:
        folder.write_json("fit.json", ready.resolved.as_dict())
    write_data(ready.prepared, folder.data, name=folder.path.name, seed=config.train.seed, review=review)
    if review is not None:
        record_review(folder.path, review)
    thinking = ready.prepared.report.thinking
    info = RunInfo(
        base=ready.base_name,
        revision=base.revision,
        method=config.adapter.method,
        targets=base.targets.modules,
        quantized_modules=base.quantized_modules,
        precision=base.precision,
        template=ready.rendering.template.name if ready.rendering.template else None,
        stop_ids=sorted(base.stop_ids),
        own_code=code_of(ready.base_name, base.revision) if remote_code_allowed() else (),
        thinking=thinking.asked if thinking else None,
    )
    write_run_info(folder, info)
    base_sample.keep(base.model, base.targets.modules, folder.path)
    prepared = ready.prepared
    held_out = prepared.held_out_examples
    source = held_out or prepared.tokens
    folder.write_json(
        token_identity.RECORD, token_identity.describe(ready.rendering, prepared.train[: token_identity.ROWS])
    )
    folder.write_json("data/proof_rows.json", {"held_out": bool(held_out), "rows": source[: config.export.proof_rows]})
