"""The model card: what a stranger who finds the adapter or the merged model must know, in the hub's own format.

Written from the run's files with huggingface_hub, which knows the header's keys. The card says what was measured and
what was not, and repeats the limits; it never claims a benchmark score, because what is measured here is a subset or a
difference. Nothing of this machine goes into it: of a local path only the last name, and no rows of the data, which
may be private. The licence is the user's to choose, so the card reminds of it instead of guessing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

from qdora_fast.config import RunSettings
from qdora_fast.config.code import with_code, without_folder
from qdora_fast.config.yaml import write_yaml
from qdora_fast.data.clean.rejects import REASONS
from qdora_fast.evaluation.report.before_after import before_after, kind_of
from qdora_fast.evaluation.report.markdown import code, escaped, fenced
from qdora_fast.evaluation.report.run_parts import (
    RunParts,
    base_name,
    base_on_hub,
    is_hub_id,
    part,
    public_name,
)
from qdora_fast.system.pages import is_number

Kind = Literal["adapter", "merged_16bit", "merged_4bit_forced"]

LIBRARIES = {"adapter": "peft", "merged_16bit": "transformers", "merged_4bit_forced": "transformers"}
RELATIONS = {"adapter": "adapter", "merged_16bit": "finetune", "merged_4bit_forced": "quantized"}
TITLES = {
    "adapter": "An adapter for",
    "merged_16bit": "A merged 16-bit model, tuned from",
    "merged_4bit_forced": "A merged model in 4-bit NF4, tuned from",
}
PATHS = (
    *("model.name", "model.base_16bit", "data.path", "data.held_out_path", "data.template", "data.quality.model"),
    "evaluation.mmlu.path",
)
"""Settings that may hold a path of this machine; `run` is left out whole, and sources are looked through."""

NOT_BETTER = {
    "worse": "It does its task worse than its base.",
    "no evidence": "There is no evidence that it does its task better than its base.",
}
LICENCE = (
    "> **No licence is set.** Before you publish this, add `license:` to the header above. The licence of the",
    "> base and the terms of the training data bind what you may choose.",
)
USES = {
    "adapter": """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

# "." is this folder; its name on the hub does as well
model, tokenizer = AutoPeftModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
answer = pipeline("text-generation", model, tokenizer=tokenizer)
print(answer([{"role": "user", "content": "Hello!"}], max_new_tokens=128)[0]["generated_text"][-1]["content"])
""",
    "merged_16bit": """\
from transformers import pipeline

# "." is this folder; its name on the hub does as well
answer = pipeline("text-generation", ".")
print(answer([{"role": "user", "content": "Hello!"}], max_new_tokens=128)[0]["generated_text"][-1]["content"])
""",
}
USES["merged_4bit_forced"] = USES["merged_16bit"]


def model_card(parts: RunParts, *, kind: Kind) -> str:
    """The README.md of a run's adapter or merged model. What the run does not know is said to be unknown.

    Args:
        kind: which of the two it lies beside.
    """
    from huggingface_hub import ModelCard

    sections = (
        _introduction(parts, kind),
        LICENCE,
        ["## How to use it", "", *fenced(USES[kind].rstrip(), "python"), *_use_notes(parts, kind)],
        ["## Training data", "", *_data(parts)],
        ["## Results", "", *_results(parts)],
        ["## Limits", "", *(f"- {line}" for line in _limits(parts, kind))],
        ["## Reproduction", "", *_reproduction(parts)],
    )
    body = "\n\n".join("\n".join(lines).strip() for lines in sections)
    card: str = ModelCard(f"---\n{_header(parts, kind)}\n---\n\n{body}\n").content
    return card.encode(errors="replace").decode()


def _header(parts: RunParts, kind: Kind) -> str:
    from huggingface_hub import ModelCardData

    settings, on_hub = parts.settings, base_on_hub(parts)
    method = [settings.adapter.method] if settings else []
    family = ["dora" if settings.adapter.decomposed else "lora"] if settings else []
    header: str = ModelCardData(
        base_model=on_hub,
        base_model_relation=RELATIONS[kind] if on_hub else None,
        library_name=LIBRARIES[kind],
        pipeline_tag="text-generation",
        datasets=_hub_datasets(parts) or None,
        tags=list(dict.fromkeys(["qdora_fast", *method, *family, "unsloth", "sft"])),
    ).to_yaml()
    return header


def _introduction(parts: RunParts, kind: Kind) -> list[str]:
    settings, base = parts.settings, escaped(base_name(parts))
    lines = [f"# {escaped(parts.name)}", ""]
    revision = parts.model.get("revision") or (settings.model.revision if settings else None)
    lines += [f"{TITLES[kind]} {base}" + (f" at revision `{code(revision)}`" if revision else "") + "."]
    if settings:
        adapter = settings.adapter
        on = "a base held in 4-bit NF4" if adapter.quantized else "a 16-bit base"
        name = "DoRA (magnitude and direction are trained apart)" if adapter.decomposed else "LoRA"
        scale = "alpha / sqrt(r)" if adapter.rslora else "alpha / r"
        lines += ["", f"- method: `{adapter.method}`, {name} on {on}"]
        lines += [f"- rank r = {adapter.r}, alpha = {adapter.alpha:g}, scale {scale}, dropout {adapter.dropout:g}"]
    targets, precision = parts.model.get("targets"), parts.model.get("precision")
    if isinstance(targets, list):
        lines += [f"- {len(targets)} adapted layers: {_names(targets)}"]
    if precision or parts.model.get("template"):
        template, computed = code(parts.model.get("template") or "unknown"), escaped(precision or "unknown")
        lines += [f"- trained in {computed}, with the chat template `{template}`, which lies beside the weights"]
    if sentence := part(parts.data, "thinking").get("sentence"):
        lines += [f"- thinking {escaped(sentence)}"]
    export = next((each for each in parts.exports if each["folder"] == kind), None)
    if export:
        into = "the original 16-bit weights" if export.get("merge_base") == "original16" else "the 4-bit weights"
        proven = "checked to be the model that was trained" if part(export, "proof").get("passed") else "not proven"
        lines += [f"- merged into {into}; {proven} (see `export.json`)"]
    return lines


def _use_notes(parts: RunParts, kind: Kind) -> list[str]:
    if kind != "adapter" or base_on_hub(parts):
        return []
    return [
        "",
        "The base is not on the hub: `base_model_name_or_path` in `adapter_config.json` must name where it lies.",
    ]


def _data(parts: RunParts) -> Iterator[str]:
    data, settings = parts.data, parts.settings
    if settings:
        yield f"- sources: {', '.join(escaped(public_name(source.path)) for source in settings.data.mixture)}"
    if not data:
        yield "- not recorded"
        return
    yield (
        f"- {_count(data, 'rows_in')} rows read, {_count(data, 'kept')} kept: {_count(data, 'train')} to train on, "
        + (f"{_count(data, 'held_out')} held out")
    )
    known = REASONS | part(data, "reasons")
    counted = [(why, number) for why, number in part(data, "dropped").items() if is_number(number)]
    dropped = sorted(counted, key=lambda item: -item[1])
    yield "- dropped: " + ("; ".join(f"{number:,} {escaped(known.get(why, why))}" for why, number in dropped) or "none")
    yield f"- held out: {_held_out(parts)}"
    duplicates = part(data, "duplicates")
    if duplicates:
        yield f"- {_count(duplicates, 'exact')} exact and {_count(duplicates, 'near')} near-duplicates were removed"
    yield f"- version of the rows and their settings (SHA-256): `{code(data.get('hash') or 'unknown')}`"
    review = parts.data_review()
    yield (
        f"- {escaped(review['sentence'])}"
        if review and review.get("sentence")
        else "- rows read by a person: review pending"
    )


def _hub_datasets(parts: RunParts) -> list[str]:
    """Sources that were read from the hub: a folder's or file's rows are listed under its files' names instead."""
    listed = parts.data.get("sources")
    local = [each.get("path") for each in (listed if isinstance(listed, list) else []) if _has_files(each)]
    paths = dict.fromkeys(source.path for source in parts.settings.data.mixture) if parts.settings else {}
    return [path for path in paths if is_hub_id(path) and path not in local]


def _has_files(source: Any) -> bool:
    files = source.get("files") if isinstance(source, dict) else None
    pieces = [each for each in files if isinstance(each, list) and each] if isinstance(files, list) else []
    return any(piece[0] != source["path"] for piece in pieces if "path" in source)


def _held_out(parts: RunParts) -> str:
    if parts.settings is None:
        return "unknown"
    settings, split = parts.settings.data, part(parts.data, "split")
    if settings.held_out_path:
        return "rows from a file of their own"
    if settings.held_out == 0:
        return "none"
    together = f", rows with the same `{code(split['group'])}` together" if split.get("group") else ""
    share = f"at least {settings.held_out:.0%} of the prompts, by a hash{together}"
    return f"{share}; near-duplicates of them were not trained on"


def _results(parts: RunParts) -> Iterator[str]:
    lines = list(before_after(parts.evaluation))
    if not lines:
        yield "Not measured."
        return
    task = part(parts.evaluation, "task")
    if task.get("words"):
        yield f"**By the run's own evaluation:** {escaped(task['words'])}"
        yield ""
    yield "| | rows | base | tuned | difference | 95 % interval |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for line in lines:
        cells = (line.name, line.n, line.base, line.tuned, line.change, line.interval)
        yield "| " + " | ".join(escaped(cell) for cell in cells) + " |"
    yield ""
    yield "Base and tuned model read and answered the same rows, greedily; the base is the same loaded model without"
    yield "the adapter, at the same quantisation."
    yield ""
    yield f"Not measured: {_not_measured(parts)}."


def _not_measured(parts: RunParts) -> str:
    mmlu = part(parts.evaluation, "mmlu")
    task = part(parts.evaluation, "task")
    missing = [] if task else ["accuracy on the held-out rows"]
    if kind_of(task) == "loss":
        missing.append("whether its answers are right (measured is how well it predicts the references)")
    missing += [] if mmlu else ["what was forgotten (MMLU)"]
    missing += ["MMLU as a whole (a fixed subset was asked)"] if mmlu and mmlu.get("questions") != "full" else []
    return ", ".join([*missing, "safety, bias, other languages and tasks than those of the training rows"])


def _limits(parts: RunParts, kind: Kind) -> Iterator[str]:
    settings = parts.settings
    if settings and settings.adapter.quantized:
        yield "Training saw the base in 4-bit NF4; on 16-bit weights the answers may differ slightly."
    if kind == "merged_4bit_forced":
        export = next((each for each in parts.exports if each["folder"] == kind), {})
        kept = part(part(export, "proof"), "distance").get("kept")
        share = f"{kept:.0%}" if is_number(kept) else "an unknown share"
        yield f"Rounded to 4 bits: {share} of what tuning gained on held-out rows is left. No input for GGUF or AWQ."
    if settings and settings.adapter.decomposed and kind == "adapter":
        yield "Servers often take no DoRA adapter, or drop its magnitudes: deploy the merged model there."
    task = part(parts.evaluation, "task")
    if str(task.get("verdict")) in NOT_BETTER:
        yield NOT_BETTER[str(task["verdict"])]
    mmlu = part(parts.evaluation, "mmlu")
    if mmlu.get("status") in ("warn", "fail"):
        yield escaped(mmlu.get("words") or "MMLU fell")
    review = parts.review()
    if review is None:
        yield "Answers read by a person: review pending."
    else:
        yield f"Answers read by a person: {escaped(review.get('reviewer'))} says {escaped(review.get('verdict'))}."
    yield "It repeats what is wrong in its rows, and it was not tested for other uses than theirs."


def _reproduction(parts: RunParts) -> Iterator[str]:
    evaluation = parts.evaluation
    training = part(evaluation, "training")
    for name, key in (("steps", "steps"), ("SHA-256 of the adapter's weights", "adapter_sha256")):
        if training.get(key):
            yield f"- {name}: `{code(training[key])}`"
    packages = part(parts.environment, "packages")
    if packages:
        yield "- packages: " + ", ".join(f"{escaped(name)} {escaped(each)}" for name, each in packages.items() if each)
    gpus = parts.environment.get("gpus")
    names = [str(each.get("name")) for each in gpus if isinstance(each, dict)] if isinstance(gpus, list) else []
    yield f"- hardware: {escaped(', '.join(names) or 'CPU')}" if parts.environment else "- hardware: unknown"
    if parts.settings:
        yield from ("", "<details><summary>The whole config</summary>", "")
        yield from fenced(public_config(parts.settings.every), "yaml")
        yield from ("", "</details>")


def public_config(settings: Mapping[str, Any]) -> str:
    """All sections as YAML, with names in place of paths, and without where files went."""
    public: dict[str, Any] = json.loads(json.dumps({**settings, "run": RunSettings().model_dump()}))
    sources = public["data"]["sources"]
    named = [(source, "path") for source in sources]
    for setting in PATHS:
        *sections, key = setting.split(".")
        named.append((reduce(dict.__getitem__, sections, public), key))
    for section, key in named:
        section[key] = section[key] and public_name(section[key])
    return write_yaml(with_code(public, lambda _setting, _keys, text: without_folder(text))).rstrip()


def _names(targets: Sequence[Any]) -> str:
    """The kinds of layers: q_proj, k_proj, ..."""
    return ", ".join(f"`{code(each)}`" for each in dict.fromkeys(str(name).rsplit(".", 1)[-1] for name in targets))


def _count(section: Mapping[str, Any], key: str) -> str:
    value = section.get(key)
    return f"{value:,}" if is_number(value) else "an unknown number of"
