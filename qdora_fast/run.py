"""The recipe: the only place where the whole path from a config to a proven model is spelled out.

Read `train` from top to bottom; each line is one module's work, and what it decided is shown
as it happens. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qdora_fast import show
from qdora_fast.backend import captured_prints, open_backend
from qdora_fast.config import Config
from qdora_fast.config_file import load_config, make_config
from qdora_fast.hardware import describe as describe_machine
from qdora_fast.presets import find_config
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
    settings, name = _settings(config, sections)
    return run_recipe(settings, name=name, resume=resume, console=show.new_console())


def run_recipe(config: Config, *, name: str, resume: bool, console: Console) -> RunFolder:
    """Config → rows → base → tokens → adapter → fused layers → training → adapter/ → comparison → export."""
    prepared, base_name = prepare_run(config, console)
    from qdora_fast.model import attach, fuse_layers, load_base
    from qdora_fast.trainer import choose_precision

    folder = RunFolder.resumable(config, name) if resume else RunFolder.create(config, name)
    checkpoint = folder.checkpoints()[-1] if resume else None
    show.started(console, folder, checkpoint)
    folder.write_json("environment.json", describe_machine())
    folder.write_rows("data/train.jsonl", prepared.train)
    folder.write_rows("data/held_out.jsonl", prepared.held_out)

    base = load_base(base_name, config, precision=choose_precision(config.train))
    tokens = render_run(prepared, base.tokenizer, base.stop_ids, config, console)
    _describe_run(folder, config, base_name, base, prepared, tokens)

    model = attach(base, config.adapter, config.train)
    show.adapter(console, config.adapter, base.targets, model)
    report = fuse_layers(model, config.engine)
    show.engine(console, report)
    folder.write_json("engine.json", report.as_dict())
    _fit(model, base, config, folder, tokens, checkpoint, console)
    _save_adapter(model, base.tokenizer, folder)

    comparison = compare_held_out(model, base, config, folder, tokens.held_out, console)
    if config.export.at_end != "none":
        from qdora_fast.behaviour import release_memory
        from qdora_fast.export import export_merged, merged_folder, record_trained

        evidence = record_trained(model, folder)
        del model, base  # the proof opens the merged model beside nothing else
        release_memory()
        out = merged_folder(folder, config.export.merge_base)
        export_merged(folder, evidence, merge_base=config.export.merge_base, out=out, overwrite=resume, console=console)
    show.finished(console, folder, config, comparison)
    return folder


@dataclass(frozen=True)
class Tokens:
    """Both sides of the data as the model sees them."""

    train: Any
    held_out: Any | None
    template: Any


def prepare_run(config: Config, console: Console) -> tuple[Any, str]:
    """The part that fails fast: rows read and split, the base found and checked, no weights read."""
    from qdora_fast.data import prepare
    from qdora_fast.model import check_base, locate_base
    from qdora_fast.trainer import check_tracker

    check_tracker(config.train)
    prepared = prepare(config.data, seed=config.train.seed)
    open_backend()
    with show.demo_base(console) as on_step:
        base_name = locate_base(config.model, on_step)
    check_base(base_name, config)
    return prepared, base_name


def render_run(prepared: Any, tokenizer: Any, stop_ids: frozenset[int], config: Config, console: Console) -> Tokens:
    """Choose the template, turn both sides into tokens and masks, and show the preflight page."""
    from qdora_fast.data import choose_template, render

    template = choose_template(tokenizer, config.data.template)

    def tokens_of(rows: Any) -> Any:
        return render(
            rows,
            tokenizer,
            max_length=config.model.max_length,
            train_on=config.data.train_on,
            on_long=config.data.on_long,
            stop_ids=stop_ids,
        )

    tokens = Tokens(tokens_of(prepared.train), tokens_of(prepared.held_out) if prepared.held_out else None, template)
    show.preflight(console, prepared.report, tokens.train.report, template)
    return tokens


def dry_run(config: Config, *, console: Console) -> None:
    """Everything short of reading the base's weights: settings, rows, tokens, masks, targets."""
    prepared, base_name = prepare_run(config, console)
    from transformers import AutoTokenizer

    from qdora_fast.model import check_base

    tokenizer = AutoTokenizer.from_pretrained(base_name, revision=config.model.revision)
    render_run(prepared, tokenizer, frozenset({tokenizer.eos_token_id}), config, console)
    show.dry_run(console, check_base(base_name, config))


def compare_held_out(
    model: Any, base: Any, config: Config, folder: RunFolder, held_out: Any, console: Console
) -> Any | None:
    """Base against tuned on the held-out rows, written to evaluation/; None when switched off."""
    from qdora_fast.evaluation.heldout import compare, make_questions

    if held_out is None or config.evaluation.max_rows == 0:
        return None
    open_backend().FastLanguageModel.for_inference(model)
    settings = config.evaluation
    questions = make_questions(
        held_out.rows, base.tokenizer, most=settings.max_rows, max_length=config.model.max_length
    )
    with show.answering(console, 2 * len(questions)) as on_answer:
        comparison = compare(
            model,
            base.tokenizer,
            questions,
            held_out.examples[: settings.max_rows],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            stop_ids=base.stop_ids,
            on_answer=on_answer,
        )
    folder.write_json("evaluation/held_out.json", comparison.figures())
    folder.write_rows("evaluation/held_out_answers.jsonl", map(asdict, comparison.answers))
    return comparison


def _fit(
    model: Any, base: Any, config: Config, folder: RunFolder, tokens: Tokens, checkpoint: Path | None, console: Console
) -> None:
    from qdora_fast.callbacks import training_callbacks
    from qdora_fast.trainer import build_trainer, describe, make_recipe, sft_arguments, trained_groups

    report = tokens.train.report
    recipe = make_recipe(config.train, rows=report.kept, tokens=report.tokens, max_length=config.model.max_length)
    show.recipe(console, describe(recipe, config.train, trained_groups(model, config.train)))
    arguments = sft_arguments(
        config.train,
        recipe,
        folder=folder.path / "checkpoints",
        max_length=config.model.max_length,
        evaluates=tokens.held_out is not None,
    )
    callbacks = training_callbacks(
        metrics=folder.metrics,
        tokens_per_epoch=report.tokens,
        decomposed=config.adapter.decomposed,
        console=console,
    )
    datasets = (tokens.train.dataset(), tokens.held_out.dataset() if tokens.held_out else None)
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


def _describe_run(folder: RunFolder, config: Config, base_name: str, base: Any, prepared: Any, tokens: Tokens) -> None:
    """model.json and data/: what export, chat and evaluation need to know later."""
    folder.write_json(
        "model.json",
        {
            "base": base_name,
            "revision": base.revision,
            "method": config.adapter.method,
            "targets": base.targets.modules,
            "quantized_modules": base.quantized_modules,
            "precision": base.precision,
            "template": tokens.template.name,
            "stop_ids": sorted(base.stop_ids),
        },
    )
    folder.write_json("data/report.json", prepared.report.as_json())
    source = tokens.held_out or tokens.train
    folder.write_json(
        "data/proof_rows.json",
        {"held_out": tokens.held_out is not None, "rows": source.examples[: config.export.proof_rows]},
    )


def _settings(config: str | Path | Mapping[str, Any] | Config, sections: Mapping[str, Any]) -> tuple[Config, str]:
    """A valid Config with `sections` laid over it, and the run's default name."""
    if isinstance(config, Config):
        tree, name = config.model_dump(), "run"
    elif isinstance(config, Mapping):
        tree, name = dict(config), "run"
    else:
        path = find_config(str(config))
        tree, name = load_config(path).model_dump(), path.stem
    return make_config({key: {**tree.get(key, {}), **sections.get(key, {})} for key in {*tree, *sections}}), name
