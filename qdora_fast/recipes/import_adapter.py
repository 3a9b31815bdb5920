"""An adapter that was trained elsewhere (PEFT, Unsloth, LLaMA-Factory, Axolotl): checked, and made into a run's folder.

`export`, `chat` and `evaluate` work on runs, so an adapter from elsewhere becomes one, as far as that is honest: its
files as they are, its chat template and end token, what can be learned of its base. Checked is what PEFT lets pass:
DoRA without magnitudes (PEFT makes fresh ones, with a warning, and runs another model), layers that the config names
and the file lacks, NaN, ranks that do not fit, another base. How it was trained is unknown: the data, and for a base in
16 bits whether training held it in 4. An export needs rows for its proof; without rows of the task they are general
prompts. A folder that `export --to adapter` made says more, and is compared with its manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.code import FORMATTER
from qdora_fast.config.loader import make_config
from qdora_fast.config.own_code import allow_own_code, require_code_allowed
from qdora_fast.config.recorded import create_run, write_config
from qdora_fast.data.tokenize.chat_text import render_chat, templates_of
from qdora_fast.exports.adapter_fit import Fit, fit
from qdora_fast.models.adapter import CONFIG_NAME, WEIGHTS_NAME, Adapter, read_adapter
from qdora_fast.models.backend import open_backend
from qdora_fast.models.few_bits import few_bits_in
from qdora_fast.models.run_info import RunInfo, write_run_info
from qdora_fast.models.weights import WeightFolder
from qdora_fast.recipes import messages
from qdora_fast.recipes.data import find_base, ready_data, with_date, write_data
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.hardware import describe as describe_machine
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import NAME as MANIFEST
from qdora_fast.system.manifest import problems, read_manifest, sha256_of
from qdora_fast.system.paths import local_path, refuse_links_out
from qdora_fast.system.remote_code import code_of, remote_code_allowed
from qdora_fast.system.run_folder import RunFolder, write_json

UNKNOWN_DATA = "unknown"
"""data.path of a run whose rows nobody named."""


def import_adapter(
    source: str | Path,
    *,
    base: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    own_code: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Check the adapter in a folder and make a run of it.

    Args:
        source: folder with adapter_config.json and adapter_model.safetensors.
        base: hub id or folder of the base; None: the one that the adapter names.
        data: rows that the adapter was not trained on, as for `data.path`; for the proof of exports and for `evaluate`.
        overrides: settings of the run's config, as `adapter.method=qdora` or `data.template=chatml`.
        own_code: files of code that may run where `overrides` names them; `--own-code` of the command line.

    Returns:
        A report: path (of the run), method, r, alpha, layers, base, ...

    Raises:
        ConfigError: no adapter there, weights in a pickle, a kind that cannot be merged, or the base is not reachable.
        IntegrityError: it is incomplete or corrupt, or does not fit its base.
        RefusedError: the base or the layers are of a kind that is refused for training, too.
    """
    folder = local_path(source)
    open_backend()
    adapter = _read(folder)
    stated = _stated_method(folder)
    config = make_config(_settings(adapter, base, data, stated), overrides)
    with allow_own_code(own_code):
        if config.data.path != UNKNOWN_DATA:
            require_code_allowed(config, FORMATTER)
        return _make_run(adapter, config, bool(stated) or _sets_method(overrides), folder)


def _make_run(adapter: Adapter, config: Config, known: bool, folder: Path) -> dict[str, Any]:
    """Compare the adapter with its base, and make the run.

    Args:
        known: the method was not guessed.
    """
    messages.adapter_found(adapter, config)
    base_name = find_base(config)
    match = fit(adapter, base_name, config.model, config.adapter, merge_base=config.export.merge_base)
    messages.adapter_fits(match.shapes_compared, guess=None if known else config.adapter.method)
    run = create_run(config, folder.resolve().name)
    try:
        report = _fill(run, adapter, config, base_name, match)
    except BaseException:
        shutil.rmtree(run.path)
        raise
    messages.adapter_imported(report)
    return report


def _sets_method(overrides: Sequence[str]) -> bool:
    return any(text.startswith("adapter.method=") for text in overrides)


def _read(folder: Path) -> Adapter:
    """The complete adapter. The usual loss, DoRA without magnitudes, has a message of its own."""
    if (folder / "config.yaml").is_file() and (folder / "adapter").is_dir():
        raise ConfigError(f"{folder} is a run already; export, chat and evaluate take it as it is")
    if folder.is_dir():
        refuse_links_out(folder)
    if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file():
        names = WeightFolder(folder, single=WEIGHTS_NAME).infos
        lost = not any("lora_magnitude_vector" in name for name in names)
        if lost and read_object(folder / CONFIG_NAME).get("use_dora"):
            raise IntegrityError(
                f"{folder}: {CONFIG_NAME} says use_dora: true, but the file holds A and B without any magnitude. Such "
                "saves come from Unsloth's save_lora and from filtered state_dicts; PEFT loads them with a warning and "
                "runs another model. Save the trained model once more with PEFT's save_pretrained, or take an earlier "
                "checkpoint"
            )
    return read_adapter(folder)


def _stated_method(folder: Path) -> str | None:
    """The method, where one of our own exports says it.

    Raises:
        IntegrityError: its files are not as they were written.
    """
    if not (folder / MANIFEST).is_file():
        return None
    changed = problems(folder)
    if changed:
        raise IntegrityError(f"{folder} is not as it was exported: {changed[0]}; copy it again")
    method = read_manifest(folder)["about"].get("method")
    return method if isinstance(method, str) else None


def _settings(adapter: Adapter, base: str | None, data: str | None, stated: str | None) -> dict[str, Any]:
    """The config that says what this adapter is."""
    named = base or adapter.config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{adapter.folder / CONFIG_NAME} names no base; give it by --base")
    if base is None and Path(named).is_absolute() and not Path(named).is_dir():
        raise ConfigError(f"the adapter names its base by a path of another machine ({named}); give it by --base")
    folder = local_path(named)
    packed = (folder / "config.json").is_file() and few_bits_in(folder) is not None
    in_4bit = packed or "4bit" in named.lower().replace("-", "")
    return {
        "model": {"name": named},
        "adapter": {
            "method": stated or f"{'q' if in_4bit else ''}{'dora' if adapter.use_dora else 'lora'}",
            "r": adapter.r,
            "alpha": adapter.alpha,
            "dropout": adapter.config.get("lora_dropout") or 0.0,
            "rslora": bool(adapter.config.get("use_rslora")),
            "target_modules": list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in adapter.modules)),
            "modules_to_save": adapter.config.get("modules_to_save") or [],
        },
        "data": {"path": data or UNKNOWN_DATA, "held_out": 0},
    }


def _fill(run: RunFolder, adapter: Adapter, config: Config, base: str, match: Fit) -> dict[str, Any]:
    """Write everything that a run's folder has and that is known here."""
    from qdora_fast.models.tokenizer import load_tokenizer
    from qdora_fast.training.trainer import choose_precision

    tokenizer, stop_ids = load_tokenizer(base, config.model.revision)
    config = _with_tokens(adapter, config, tokenizer, base)
    config, template, assumed = _with_template(run, adapter, config, tokenizer)
    config = with_date(config, tokenizer)
    write_config(run, config)
    run.write_json("environment.json", describe_machine())
    run.adapter.mkdir()  # the adapter's own two files and the tokenizer; nothing else of that folder is taken over
    shutil.copyfile(adapter.folder / WEIGHTS_NAME, run.adapter / WEIGHTS_NAME)
    write_json(run.adapter / CONFIG_NAME, adapter.config | {"base_model_name_or_path": base})
    tokenizer.save_pretrained(run.adapter)
    info = RunInfo(
        base=base,
        revision=config.model.revision,
        method=config.adapter.method,
        targets=[layer for layer in match.linears if layer in adapter.modules],
        quantized_modules=[*match.linears, *match.elsewhere] if config.adapter.quantized else [],
        precision=choose_precision(config.train),
        template=template,
        stop_ids=sorted({*stop_ids, tokenizer.eos_token_id}),
        own_code=code_of(base, config.model.revision) if remote_code_allowed() else (),
        imported={"peft_version": adapter.config.get("peft_version")},
    )
    write_run_info(run, info)
    return {
        "path": str(run.path),
        "method": config.adapter.method,
        "use_dora": adapter.use_dora,
        "r": adapter.r,
        "alpha": adapter.alpha,
        "rslora": config.adapter.rslora,
        "layers": len(adapter.modules),
        "modules_to_save": sorted(adapter.saved_modules),
        "trained_tokens": config.adapter.trainable_tokens,
        "base": base,
        "shapes_compared": match.shapes_compared,
        "template": template,
        "template_assumed": assumed,
        "rows": _write_rows(run, config, base, tokenizer),
        "sha256": sha256_of(run.adapter / WEIGHTS_NAME),
    }


def _with_tokens(adapter: Adapter, config: Config, tokenizer: Any, base: str) -> Config:
    """Give the base's tokenizer the tokens that were added to it and trained; the config then names all that were.

    Raises:
        IntegrityError: it is not known what they are called, or others were added before them.
    """
    from qdora_fast.models.new_tokens import add_tokens
    from qdora_fast.models.tokenizer import embedding_count, read_tokenizer

    ids = sorted({number for tokens in adapter.tokens.values() for number in tokens.ids})
    if not ids:
        return config
    brought = read_tokenizer(str(adapter.folder)) if list(adapter.folder.glob("tokenizer*")) else tokenizer
    names = brought.convert_ids_to_tokens(ids)
    unknown = [number for number, name in zip(ids, names, strict=True) if name is None]
    known = [name for name in names if name is not None]
    rows = embedding_count(base, config.model.revision) or len(tokenizer)
    found = add_tokens(tokenizer, known, rows=rows) if not unknown else ()
    if list(found) != ids:
        odd = unknown[0] if unknown else next(one for one, other in zip(ids, found, strict=True) if one != other)
        raise IntegrityError(
            f"{adapter.folder}: rows of token {odd} were trained, which the base's tokenizer does not have under that "
            "id; save the tokenizer that was trained with into the adapter's folder"
        )
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"trainable_tokens": known})})


def _with_template(run: RunFolder, adapter: Adapter, config: Config, tokenizer: Any) -> tuple[Config, str, bool]:
    """Set the adapter's end token and chat template on the base's tokenizer; `data.template` wins where it is set.

    Returns:
        The config, the template's name, and whether nobody said that it is the one. A template that `auto` does not
        give is kept as a file of the run, so that `evaluate` renders by it.
    """
    from qdora_fast.data import choose_template

    brought = _brought_tokenizer(adapter, tokenizer) if list(adapter.folder.glob("tokenizer*")) else None
    if brought is not None and brought.eos_token in tokenizer.get_vocab():
        tokenizer.eos_token = brought.eos_token
    own = templates_of(brought) if brought is not None else {}
    asked = choose_template(tokenizer, config.data.template)
    if not own or config.data.template != "auto" or own == templates_of(tokenizer):
        return config, asked.name, not own and config.data.template == "auto"
    if "default" not in own:
        raise ConfigError(
            f"{adapter.folder}: its chat templates are named {', '.join(own)} and none is named default; write the "
            "one it was trained with into a .jinja file, and name that: --set data.template=FILE.jinja"
        )
    if len(own) > 1:
        console.note(f"of its chat templates {', '.join(own)}, which its base does not have, `default` alone is kept")
    file = run.path.resolve() / "chat_template.jinja"
    file.write_text(own["default"], encoding="utf-8")
    data = config.data.model_copy(update={"template": str(file)})
    return config.model_copy(update={"data": data}), choose_template(tokenizer, str(file)).name, False


def _brought_tokenizer(adapter: Adapter, tokenizer: Any) -> Any:
    """The tokenizer beside the adapter, if it means what the base's means.

    Raises:
        ConfigError: it cannot be read.
        IntegrityError: ids differ, or the chat template uses tokens that the base does not have.
    """
    from qdora_fast.models.tokenizer import read_tokenizer

    brought = read_tokenizer(str(adapter.folder))
    theirs, known = brought.get_vocab(), tokenizer.get_vocab()
    moved = [token for token, number in known.items() if theirs.get(token) != number]
    spoken = "".join(templates_of(brought).values())
    added = [token for token in theirs if token not in known and token in spoken]
    if moved or added:
        odd = f"{moved[0]!r} has another id" if moved else f"its chat template uses {added[0]!r}, which was added"
        raise IntegrityError(
            f"{adapter.folder}: its tokenizer is not its base's ({odd}). Name the base that was trained on by --base; "
            "of tokens that were added to it, those with trained rows can be taken over (PEFT's "
            "trainable_token_indices), and no others"
        )
    return brought


def _write_rows(run: RunFolder, config: Config, base: str, tokenizer: Any) -> int:
    """Rows for proofs and evaluation: those of `data.path`, all held out; else general prompts, for proofs alone."""
    if config.data.path == UNKNOWN_DATA:
        general = _general_rows(tokenizer, config.data.date)
        run.write_json("data/proof_rows.json", {"held_out": False, "rows": general[: config.export.proof_rows]})
        return 0
    prepared = ready_data(config, base, trains=False).prepared
    write_data(prepared, run.data, name=run.path.name, seed=config.train.seed)
    (run.data / "train.jsonl").replace(run.data / "held_out.jsonl")
    (run.data / "train.jsonl").touch()
    rows = prepared.tokens[: config.export.proof_rows]
    run.add_to_json("data/report.json", {"train": 0, "held_out": len(prepared.train)})
    run.write_json("data/proof_rows.json", {"held_out": True, "rows": rows})
    return len(prepared.train)


def _general_rows(tokenizer: Any, date: str | None) -> list[Mapping[str, Any]]:
    """Prompts of general kind, every token of which counts: two models that agree there are the same function."""
    from qdora_fast.evaluation.report.completions import GENERAL

    texts = [render_chat(tokenizer, each, add_generation_prompt=True, date=date) for each in GENERAL]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [{"input_ids": each, "labels": each} for each in ids]
