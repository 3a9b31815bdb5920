"""What `qdora-fast plan` does: plan a run, print the plan, write its page, and fail where the run does not fit.

The base's config.json gives sizes, the config and the card give the rest; rows are only glanced at and no weight is
read. Results go to standard output, so that a plan can be piped; with `--json` nothing but one JSON object does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qdora_fast.config import Config, presets
from qdora_fast.config.loader import load_config
from qdora_fast.config.recorded import read_config
from qdora_fast.models.accepted import require_accepted
from qdora_fast.models.few_bits import layers_in_16bit, require_usable
from qdora_fast.models.targets import choose_targets
from qdora_fast.planning.advice import Advice, Facts, advise
from qdora_fast.planning.auto.kinds import RowLengths
from qdora_fast.planning.base_facts import facts_of
from qdora_fast.planning.cards import GIB, Card, Machine, this_machine
from qdora_fast.planning.history import Shape, earlier_evaluation, earlier_peak, earlier_speed, shape_of
from qdora_fast.planning.memory.architecture import Sizes
from qdora_fast.planning.memory.base import BaseConfig, base_config, sizes_of
from qdora_fast.planning.memory.estimate import Estimate, Part, estimate
from qdora_fast.planning.memory.fit import Fit, best_fit, fits, longest_length, margin, most_answers
from qdora_fast.planning.memory.job import job_of
from qdora_fast.planning.page import write_page
from qdora_fast.planning.plan import Plan, optimizer_steps
from qdora_fast.planning.rows import Measured, RowFacts, glance
from qdora_fast.planning.text import lines, preset_table, what_to_do
from qdora_fast.recipes.auto import job_settings, resolve, with_length
from qdora_fast.system import hardware
from qdora_fast.system.errors import ConfigError, DoesNotFit
from qdora_fast.system.paths import local_path
from qdora_fast.system.run_folder import RunFolder

USUAL_CARD = 24.0
"""GiB of the card that is planned for where there is none."""

Say = Callable[[str], None]
"""Prints a line on standard output."""


def show_plan(
    named: str | None, overrides: Sequence[str], *, card: Card | None, html: Path | None, as_json: bool, say: Say
) -> None:
    """Plan the config `named`, by path or as a preset, and print the plan.

    Raises:
        DoesNotFit: after everything was printed.
        ConfigError: no config was named, or it is wrong.
    """
    if named is None:
        raise ConfigError("name a config or a preset (`qdora-fast presets` lists them), or ask for --presets")
    path = presets.find_config(named)
    plan = make_plan(load_config(path, overrides), path.stem, card=card)
    for line in [json.dumps(plan.as_dict(), ensure_ascii=False)] if as_json else lines(plan):
        say(line)
    if html is not None:
        write_page(plan, html)
    if not plan.fits:
        raise DoesNotFit(what_to_do(plan))


def show_preset_plans(*, card: Card | None, as_json: bool, say: Say) -> None:
    """Print what every preset needs on the card it is written for (or on `card`), and the longest rows that fit."""
    plans = preset_plans(card)
    if as_json:
        say(json.dumps({"presets": [plan.as_dict() for plan in plans]}, ensure_ascii=False))
        return
    for line in preset_table(plans):
        say(line)
    sources = sorted({plan.base_source for plan in plans})
    say(f"\nSizes from {'; '.join(sources)}.")


def preset_plans(card: Card | None = None) -> list[Plan]:
    """A plan for every shipped preset, on the card it is written for (or on `card`)."""
    return [
        make_plan(load_config(preset.path), preset.name, card=card or Card.of_gib(preset.memory_gib))
        for preset in presets.list_presets()
        if preset.memory_gib
    ]


def shape_of_config(config: Config) -> Shape:
    """What decides the cost of a step in a run with this config."""
    return shape_of(config.model, config.adapter, config.data, config.train, config.engine)


def shape_of_run(folder: RunFolder) -> Shape:
    """The same of a run that was started here.

    Raises:
        ConfigError: its config cannot be read.
    """
    return shape_of_config(read_config(folder))


def make_plan(config: Config, name: str, *, card: Card | None = None) -> Plan:
    """Plan a run.

    Args:
        name: of the config; its runs are looked up for a measured speed, and a preset's card is used without a GPU.
        card: to plan for; None: this machine's, else the preset's, else a 24 GiB one.

    Raises:
        CannotEstimate: an architecture that is not counted.
        ConfigError: no config.json, or a base or target that `train` refuses, too.
    """
    base = base_config(config.model.name, config.model.revision)
    sizes = sizes_of(base.values, base.name, config.model.revision)
    machine = choose_machine(config, name, card)
    seen = glance(config.data)
    lengths = None if seen is None else RowLengths(np.array(seen.lengths), sampled=True)
    config, limited = _limited(config, sizes.longest, None if seen is None else seen.lengths)
    _require_trainable(config, base, sizes)
    config, resolved = resolve(config, sizes, machine, lengths)
    rows = None if seen is None else seen.facts(config.data, config.model.length)
    job = job_of(job_settings(config), sizes, length=config.model.length, on_gpu=machine.on_gpu)
    need = estimate(job, machine.card)
    steps = optimizer_steps(config.train, config.data, rows, length=config.model.length, on_gpu=machine.on_gpu)
    better, longest = best_fit(job, machine.card), longest_length(job, machine.card)
    runs, name_of_runs = Path(config.run.dir), config.run.name or name
    shape = shape_of_config(config)
    return Plan(
        name=name,
        model=config.model,
        adapter=config.adapter,
        train=config.train,
        engine=config.engine,
        resolved=resolved,
        machine=machine,
        limited=limited,
        base_source=base.source,
        facts=facts_of(config.model.name, config.model.revision, tied=sizes.tied),
        estimate=need,
        fits=fits(need, machine.card),
        margin=margin(machine.card),
        longest=longest,
        better=better,
        answers=most_answers(job, machine.card),
        rows=rows,
        steps=steps,
        speed=earlier_speed(runs, name_of_runs, shape, shape_of_run),
        evaluated=_evaluated(config, seen),
        evaluation=earlier_evaluation(
            runs, name_of_runs, shape, shape_of_run, config.evaluation.model_dump(mode="json")
        ),
        measured=earlier_peak(runs, name_of_runs, shape, shape_of_run),
        disk=_disk(config, need),
        free_disk=int(hardware.free_disk_gib(runs.resolve()) * GIB),
        advice=_advice(config, machine, need, rows, steps, better, longest),
    )


def _require_trainable(config: Config, base: BaseConfig, sizes: Sizes) -> None:
    """Refuse what `train` refuses by the base's config.json alone; see `loading.check_base`."""
    model, adapter = config.model, config.adapter
    require_usable(model.name, base.values, model, adapter, merge_base=config.export.merge_base)
    targets = choose_targets(sizes.architecture, adapter)
    if sizes.architecture.empty is not None:  # the table's families are accepted
        require_accepted(sizes.architecture, targets, adapter)
        layers_in_16bit(model.name, base.values, targets.modules)


def _evaluated(config: Config, seen: Measured | None) -> int:
    """Held-out rows that are asked; all that may be asked, where the rows were not looked at."""
    data, most = config.data, config.evaluation.max_rows
    if data.held_out_path or (seen is None and data.held_out):
        return most
    return min(most, round(seen.rows * data.held_out)) if seen else 0


def choose_machine(config: Config, name: str, card: Card | None) -> Machine:
    """The card to plan for, or the CPU for the demo: the named one, this machine's, `train.vram`'s, the preset's."""
    if card is not None:
        return Machine(card, True, "named by --card")
    here, vram = this_machine(config.train.vram), config.train.vram
    if here.on_gpu or (config.model.name == "demo" and vram is None):
        return here
    if vram is not None:
        return Machine(Card.of_gib(vram), True, "train.vram")
    written_for = next((preset.memory_gib for preset in presets.list_presets() if preset.name == name), None)
    if written_for:
        return Machine(Card.of_gib(written_for), True, "no GPU here: the card this preset is written for")
    return Machine(Card.of_gib(USUAL_CARD), True, "no GPU here: --card names another")


def _limited(config: Config, limit: int | None, lengths: Sequence[int] | None) -> tuple[Config, str]:
    """The config with no longer rows than the base was made for, and what `train` does about the length asked for."""
    asked = config.model.max_length
    if asked == "auto" or limit is None or asked <= limit:
        return config, ""
    text = f"model.max_length {asked:,} is more than the {limit:,} tokens that the model was made for"
    if lengths is None:
        text += "; `train` refuses rows that are longer"
    elif share := sum(length > limit for length in lengths) / len(lengths):
        text += (
            f", and about {share:.0%} of the rows are longer, which `train` refuses: --set model.max_length={limit} "
            "drops or cuts them"
        )
    else:
        text += f": {limit:,} are taken, no row seems to be longer"
    return with_length(config, limit), text


def _advice(
    config: Config,
    machine: Machine,
    need: Estimate,
    rows: RowFacts | None,
    steps: int | None,
    better: Fit | None,
    longest: int,
) -> tuple[Advice, ...]:
    job, card = need.job, machine.card
    it_fits = fits(need, card)
    smaller = None
    if better and not it_fits and better.length == job.length and better.batch_size < job.batch_size:
        smaller = better.batch_size, better.gradient_accumulation
    facts = Facts(
        rows=None if rows is None else rows.rows,
        steps=steps,
        too_long=None if rows is None else rows.too_long,
        fits=it_fits,
        dense_fits=machine.on_gpu and job.quantized and fits(estimate(replace(job, quantized=False), card), card),
        smaller=smaller,
        longest=longest,
        parameters=job.sizes.parameters,
    )
    return tuple(advise(facts, config.model, config.adapter, config.data, config.train))


def _disk(config: Config, need: Estimate) -> tuple[Part, ...]:
    """What is written or downloaded: a base that lies in a local folder is there already."""
    local = local_path(config.model.name).is_dir()
    return tuple(part for part in need.disk if not (local and part.name == "base"))
