"""What `qdora-fast init` does: write a config to edit, for these rows and this card.

The card chooses the base and the batch as the presets do, the rows are glanced at (format, number, length), and the
rules of thumb that `plan` prints are applied where they concern time and memory. Or another trainer's config is taken
over, key by key. Nothing is downloaded and no weight is read; what comes out is loaded once, so it is valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdora_fast.config import Config, presets
from qdora_fast.config.foreign import translate
from qdora_fast.config.foreign.translation import Translation
from qdora_fast.config.loader import make_config
from qdora_fast.config.yaml import read_yaml, write_commented
from qdora_fast.data.read.detection import Detection
from qdora_fast.data.read.sources import is_local, open_source
from qdora_fast.planning.cards import Card
from qdora_fast.planning.plan import Plan
from qdora_fast.planning.text import verdict
from qdora_fast.recipes.plan import make_plan
from qdora_fast.system import console, hardware
from qdora_fast.system.atomic import staged_file
from qdora_fast.system.errors import ConfigError, QdoraError, first_line
from qdora_fast.system.hardware import Gpu
from qdora_fast.system.paths import typed

SHOWN = {
    "model": ("name", "max_length"),
    "data": ("path", "held_out"),
    "adapter": ("method", "r", "alpha"),
    "train": ("learning_rate", "epochs", "batch_size", "effective_batch"),
    "evaluation": ("metric",),
    "export": ("at_end",),
}
"""Settings that stand in every config, whatever their value: what people change first."""

COMMENTS = {
    "model.max_length": "longest row in tokens; memory grows with it. auto: as long as the rows need",
    "data.held_out": "never trained on; base and tuned model are compared on it",
    "adapter.method": "or qlora, dora, lora",
    "adapter.r": "more can learn more, and takes more memory; 8 to 64",
    "adapter.alpha": "usual: r, or twice as much",
    "train.batch_size": "speed and memory; not what is learned",
    "train.effective_batch": "rows (packed sequences) per optimizer step",
    "evaluation.metric": "chosen from the held-out answers, and said",
    "export.at_end": "the model to deploy, proven; none: the adapter alone",
}
APPLIED = {
    "model.max_length": "the longest rows that fit",
    "train.batch_size": "smaller pieces of the same effective batch fit",
    "train.gradient_checkpointing": "keeps one input per block, and that on the host",
    "train.epochs": "few rows need to be seen more often; many seldom gain from it",
    "train.learning_rate": "half the usual 2e-4: a small set, or a large model",
    "train.early_stopping": "small sets overfit early; keeps the best checkpoint",
    "train.packing": "rows so few and short would fill a handful of sequences",
    "train.effective_batch": "small, so that few rows make more steps",
}
"""Advice of the plan that is applied: memory and pace. What concerns the method is left to the user."""
MOST_ROUNDS = 3
"""One piece of advice can make another one superfluous, or due."""
SLACK_GIB = 2
"""A card that is sold with 24 GB reports as little as 22.5 GiB."""
SMALL_CARDS = ("smollm3-3b-24gb", "smollm2-135m")
"""Presets whose bases are tried where the card is smaller than the presets are written for."""


def init(
    out: Path,
    *,
    data: str | None,
    card: Card | None,
    model: str | None,
    source: Path | None,
    overrides: Sequence[str],
    overwrite: bool,
) -> Path:
    """Write `out`, and say what was decided and what to type next.

    Args:
        data: file, folder or hub id of the rows; None: `source` names them.
        card: to train on; None: this machine's, else the CPU and its tiny base.
        model: a base instead of the one that suits the card.
        source: a config of another trainer to take over.

    Raises:
        ConfigError: `out` is there, no rows are named, or a value is wrong.
        DataError: the rows cannot be read, or their format is not recognised.
    """
    _require_free(out, overwrite)
    foreign = translate(source) if source else None
    tree, why = (dict(foreign.settings), f"taken over from {source}") if foreign else _from_preset(card, model)
    if model and foreign:
        tree.setdefault("model", {})["name"] = model
    if data:
        tree["data"] = {**tree.get("data", {}), "path": data} | ({"sources": []} if foreign else {})
    config = make_config(tree, overrides)
    seen = _look(config)
    plan = _planned(config, out.stem, card)
    notes = dict(COMMENTS) if foreign is None else {}
    if plan and foreign is None:
        config, plan, applied = _with_advice(config, plan, out.stem, card, overrides)
        notes |= applied
    notes |= _notes(config, seen, plan, why)
    _write(out, config, notes, _head(out, config, plan, source))
    _say(out, config, seen, plan, why, foreign, card)
    return out


def _from_preset(card: Card | None, model: str | None) -> tuple[dict[str, Any], str]:
    """Settings for the base that suits the card, or for a base that is named, and why."""
    gpus = hardware.gpus() if card is None else [Gpu(card.name, card.memory / 2**30, None, "")]
    if model is not None:
        return _for_base(model, gpus)
    if not gpus:
        demo = read_yaml(presets.find_config("demo"))[0]
        why = "no GPU here, so the embedded tiny base; --card 24 writes for a 24 GB card"
        return {"model": demo["model"], "train": demo["train"]}, why
    try:
        path, _ = presets.choose_preset(gpus)
    except ConfigError:
        path = _smaller(gpus[0])
    return _without_rows(read_yaml(path)[0]), f"as in the preset {path.stem}"


def _for_base(model: str, gpus: Sequence[Gpu]) -> tuple[dict[str, Any], str]:
    """The settings of a preset for this base: of those that are written for no larger card the largest, with the fewest
    settings of its own. Without one a batch size that is found."""
    most = gpus[0].memory_gib + SLACK_GIB if gpus else 0.0
    written = [(preset, read_yaml(preset.path)[0]) for preset in presets.list_presets()]
    suited = [
        (preset, tree)
        for preset, tree in written
        if tree["model"]["name"].lower() == model.lower() and (preset.memory_gib or 0) <= most
    ]
    if not suited:
        return {"model": {"name": model}, "train": {"batch_size": "auto", "effective_batch": 16}}, "named by --model"
    preset, tree = min(suited, key=lambda each: (-(each[0].memory_gib or 0), len(each[1]), each[0].name))
    return _without_rows(tree), f"as in the preset {preset.name}"


def _smaller(gpu: Gpu) -> Path:
    """The first base of SMALL_CARDS that fits on a card for which no preset is written."""
    card = Card.of_gib(gpu.memory_gib, gpu.name)
    for name in SMALL_CARDS:
        path = presets.find_config(name)
        tree = _without_rows(read_yaml(path)[0]) | {"data": {"path": "demo"}}
        tree["train"] = {**tree.get("train", {}), "batch_size": 1, "effective_batch": 16}
        if make_plan(make_config(tree), name, card=card).fits:
            return path
    raise ConfigError(f"no preset fits into {gpu.memory_gib:.1f} GiB; name a smaller base with --model")


def _without_rows(tree: dict[str, Any]) -> dict[str, Any]:
    """A preset without its own rows; filters that it sets for them stay."""
    data = {key: value for key, value in tree.get("data", {}).items() if key not in ("path", "max_rows")}
    return {**tree, "data": data}


def _look(config: Config) -> Detection | None:
    """The format of the rows, where they are on this machine."""
    found: Detection | None = None
    for source in config.data.mixture:
        if is_local(source.path) and source.formatter is None:
            found = open_source(source).detection
    return found


def _planned(config: Config, name: str, card: Card | None) -> Plan | None:
    """The plan; None, and why, where it cannot be made here: a base that is not on this machine."""
    try:
        return make_plan(config, name, card=card)
    except QdoraError as error:
        console.line("memory", f"not planned: {first_line(error)}")
        return None


def _with_advice(
    config: Config, plan: Plan, name_of_run: str, card: Card | None, overrides: Sequence[str]
) -> tuple[Config, Plan, dict[str, str]]:
    """The config with what the plan advises on pace and memory, but for what the user set; and why, by setting."""
    by_user = {text.partition("=")[0].strip() for text in overrides}
    notes: dict[str, str] = {}
    for _ in range(MOST_ROUNDS):
        advised = [
            advice.change for advice in plan.advice if advice.change.partition("=")[0] in APPLIED.keys() - by_user
        ]
        fresh = [change for change in advised if change.partition("=")[0] not in notes]
        if not fresh:
            break
        notes |= {name: APPLIED[name] for change in fresh if (name := change.partition("=")[0])}
        changes = [each for change in fresh for each in change.split(" --set ")]
        config = make_config(config.model_dump(exclude_unset=True), changes)
        plan = make_plan(config, name_of_run, card=card)
    return config, plan, notes


def _notes(config: Config, seen: Detection | None, plan: Plan | None, why: str) -> dict[str, str]:
    """Comments that come from these rows and this card."""
    notes = {"model.name": why}
    rows = plan.rows if plan else None
    if rows and seen:
        about = "" if rows.exact else "about "
        notes["data.path"] = (
            f"{about}{rows.rows:,} rows to train on, read as {seen.name}; half have up to {rows.median_tokens:,} tokens"
        )
    elif seen:
        notes["data.path"] = f"read as {seen.name}"
    if config.train.epochs == 2.0 and config.train.max_steps is None:
        notes.setdefault("train.epochs", "passes over the rows")
    notes.setdefault("train.learning_rate", "peak, of A and B")
    return notes


def _tree(config: Config) -> dict[str, dict[str, Any]]:
    """What is written: the settings of SHOWN, and all others that are not at their default."""
    everything, changed = config.model_dump(mode="json"), config.model_dump(mode="json", exclude_defaults=True)
    train = everything["train"]
    if train["effective_batch"] is None and train["gradient_accumulation"] is None and train["batch_size"] != "auto":
        train["effective_batch"] = config.train.micro_batch * config.train.accumulation
    shown = {}
    for section in (*SHOWN, *(section for section in everything if section not in SHOWN)):
        first = [key for key in SHOWN.get(section, ()) if everything[section][key] is not None]
        others = [key for key in changed.get(section, {}) if key not in first]
        kept = {key: _plain(changed.get(section, {}).get(key, everything[section][key])) for key in (*first, *others)}
        if kept:
            shown[section] = kept
    if train["max_steps"] is not None:
        shown["train"].pop("epochs", None)
    return shown


def _plain(value: Any) -> Any:
    """16 for 16.0, also within."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _head(out: Path, config: Config, plan: Plan | None, source: Path | None) -> str:
    where = f", for {plan.machine.card.name}" if plan and plan.machine.on_gpu else ", on the CPU" if plan else ""
    origin = f", taken over from {source.name}" if source else ""
    return (
        f"# {config.adapter.method} of {config.model.name}{where}{origin}\n"
        f"#     qdora-fast train {typed(out)}\n"
        "# Every setting: docs/reference/settings.md, or `qdora-fast presets --schema`\n\n"
    )


def _write(out: Path, config: Config, notes: Mapping[str, str], head: str) -> None:
    text = head + write_commented(_tree(config), notes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(out) as staged:
        staged.write_text(text, encoding="utf-8")


def _require_free(out: Path, overwrite: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: name the config to write, for instance my.yaml")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} is there already; another name, or --overwrite")


def _say(
    out: Path,
    config: Config,
    seen: Detection | None,
    plan: Plan | None,
    why: str,
    foreign: Translation | None,
    card: Card | None,
) -> None:
    """What was decided, what could not be taken over, and the next command."""
    console.line("base", f"{config.model.name} ({why})")
    if seen:
        console.line("rows", f"read as {seen.name}: {seen.why}")
    if foreign:
        console.lines("taken over", foreign.notes)
        if foreign.decided:
            console.line("no setting", f"decided here by itself: {', '.join(foreign.decided)}")
        console.lines("left behind", foreign.left)
    if plan:
        console.line("memory", verdict(plan))
    console.line("wrote", str(out))
    named = f" --card {plan.machine.card.memory / 2**30:g}" if plan and card else ""
    console.print()
    console.print(f"look at it    qdora-fast plan {typed(out)}{named}")
    console.print(f"the rows      qdora-fast data {typed(out)}")
    console.print(f"train         qdora-fast train {typed(out)}")
