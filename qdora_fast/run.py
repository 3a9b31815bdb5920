"""The recipe: the only place where the whole path from a config to a proven model is spelled out.

Read `train` from top to bottom; each line is one module's work, and what it decided is shown
as it happens. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from qdora_fast import show
from qdora_fast.backend import captured_prints, open_backend
from qdora_fast.config import Config
from qdora_fast.data.dataset import Prepared
from qdora_fast.evaluating import Subject, check_questions, evaluate_model, finish, refuse_regression
from qdora_fast.hardware import describe as describe_machine
from qdora_fast.preparing import (
    Ready,
    confirm,
    find_base,
    read_review,
    ready_data,
    record_review,
    with_quality,
    write_data,
)
from qdora_fast.presets import settings_of
from qdora_fast.run_folder import RunFolder


def train(config: str | Path | Mapping[str, Any] | Config, *, resume: bool = False, **sections: Any) -> RunFolder:
    """Fine-tune, compare with the base on held-out rows, export and prove the export.

    Args:
        config: name of a preset, path of a YAML file, a dictionary of sections, or a Config.
        resume: go on from the newest checkpoint of the run of the same name.
        **sections: settings that replace the config's, for instance train={"epochs": 1}.

    Returns:
        The run's folder; `run.adapter` and `run.path / "merged_16bit"` are what it made.

    Raises:
        QdoraError: every foreseen failure, with the place and the fix in its message.
    """
    settings, name = settings_of(config, sections)
    return run_recipe(settings, name=name, resume=resume, console=show.new_console())


def run_recipe(config: Config, *, name: str, resume: bool, console: Console, reviewed: Path | None = None) -> RunFolder:
    """Config → rows and tokens → base → adapter → fused layers → training → adapter/ → comparison → export."""
    ready = prepare_run(config, console)
    judged = config.data.quality.enabled  # the review is then about rows that are not chosen yet
    review = read_review(ready.prepared, reviewed, config) if reviewed and not judged else None
    from qdora_fast.model import attach, fuse_layers, load_base
    from qdora_fast.trainer import choose_precision

    folder = RunFolder.resumable(config, name) if resume else RunFolder.create(config, name)
    checkpoint = folder.checkpoints()[-1] if resume else None
    show.started(console, folder, checkpoint)
    folder.write_json("environment.json", describe_machine())

    base = load_base(ready.base_name, config, precision=choose_precision(config.train))
    ready = with_quality(confirm(ready, base, config, console), config, console, base)
    show.quality(console, ready)
    review = read_review(ready.prepared, reviewed, config) if reviewed and judged else review
    write_data(ready.prepared, folder.data, name=folder.path.name, seed=config.train.seed, review=review)
    if review is not None:
        record_review(folder.path, review, console)
    _describe_run(folder, config, base, ready)

    model = attach(base, config.adapter, config.train)
    show.adapter(console, config.adapter, base.targets, model)
    report = fuse_layers(model, config.engine)
    show.engine(console, report)
    folder.write_json("engine.json", report.as_dict())
    _fit(model, base, config, folder, ready.prepared, checkpoint, console)
    _save_adapter(model, base.tokenizer, folder)

    found = _evaluate(model, base, config, folder, ready.prepared, console)
    if config.export.at_end != "none":
        from qdora_fast.behaviour import release_memory
        from qdora_fast.export import export_merged, merged_folder, record_trained

        evidence = record_trained(model, folder)
        del model, base  # the proof opens the merged model beside nothing else
        release_memory()
        merge_base = config.export.merge_base
        out = merged_folder(folder, merge_base)
        try:
            export_merged(folder, evidence, merge_base=merge_base, out=out, overwrite=resume, console=console)
        finally:  # a proof that failed is in the report, too
            finish(folder)
    else:
        finish(folder)
    show.finished(console, folder)
    refuse_regression(found or {})
    return folder


def prepare_run(config: Config, console: Console) -> Ready:
    """The part that fails fast: the base found and checked, rows prepared, split and tokenised, no weights read."""
    from qdora_fast.model import check_base
    from qdora_fast.trainer import check_tracker

    check_tracker(config.train)
    open_backend()
    base_name = find_base(config, console)
    check_base(base_name, config)
    ready = ready_data(config, base_name, console)
    show.preflight(console, ready)
    if config.evaluation.max_rows:
        check_questions(list(ready.prepared.held_out), ready.rendering.tokenizer, config)
    return ready


def dry_run(config: Config, *, console: Console) -> None:
    """Everything short of reading the base's weights: settings, rows, tokens, masks, targets."""
    ready = prepare_run(config, console)
    from qdora_fast.model import check_base

    show.dry_run(console, check_base(ready.base_name, config))


def _evaluate(
    model: Any, base: Any, config: Config, folder: RunFolder, prepared: Prepared, console: Console
) -> dict[str, Any] | None:
    """Base against tuned on the held-out rows; None where nothing is held out or it is switched off."""
    if not prepared.held_out_examples or config.evaluation.max_rows == 0:
        return None
    open_backend().FastLanguageModel.for_inference(model)
    subject = Subject(
        model, base.tokenizer, base.stop_ids, prepared.held_out, prepared.held_out_examples, base.precision
    )
    return evaluate_model(subject, config, folder, console)


def _fit(
    model: Any,
    base: Any,
    config: Config,
    folder: RunFolder,
    prepared: Prepared,
    checkpoint: Path | None,
    console: Console,
) -> None:
    from qdora_fast.callbacks import training_callbacks
    from qdora_fast.trainer import build_trainer, describe, make_recipe, sft_arguments, trained_groups

    rows, tokens = prepared.report.per_epoch, prepared.train_tokens
    recipe = make_recipe(config.train, rows=rows, tokens=tokens, max_length=config.model.max_length)
    show.recipe(console, describe(recipe, config.train, trained_groups(model, config.train)))
    arguments = sft_arguments(
        config.train,
        recipe,
        folder=folder.path / "checkpoints",
        max_length=config.model.max_length,
        evaluates=bool(prepared.held_out_examples),
    )
    callbacks = training_callbacks(
        metrics=folder.metrics,
        tokens_per_epoch=tokens,
        decomposed=config.adapter.decomposed,
        console=console,
    )
    held_out = prepared.held_out_examples
    datasets = (prepared.tokens.dataset(), held_out.dataset() if held_out else None)
    trainer = build_trainer(
        model, base.tokenizer, datasets, config.train, recipe=recipe, arguments=arguments, callbacks=callbacks
    )
    with captured_prints():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    show.trained(console, trainer.state)
    show.engine_afterwards(console, model)


def _save_adapter(model: Any, tokenizer: Any, folder: RunFolder) -> None:
    from qdora_fast.adapter import save_adapter

    save_adapter(model, folder.adapter)
    tokenizer.save_pretrained(folder.adapter)


def _describe_run(folder: RunFolder, config: Config, base: Any, ready: Ready) -> None:
    """model.json and the rows of the proof: what export, chat and evaluation need to know later."""
    folder.write_json(
        "model.json",
        {
            "base": ready.base_name,
            "revision": base.revision,
            "method": config.adapter.method,
            "targets": base.targets.modules,
            "quantized_modules": base.quantized_modules,
            "precision": base.precision,
            "template": ready.rendering.template.name if ready.rendering.template else None,
            "stop_ids": sorted(base.stop_ids),
        },
    )
    held_out = ready.prepared.held_out_examples
    source = held_out or ready.prepared.tokens
    folder.write_json("data/proof_rows.json", {"held_out": bool(held_out), "rows": source[: config.export.proof_rows]})
