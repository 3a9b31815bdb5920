"""Is an exported folder the model that was trained? All that is asked of it, as one table of checks.

Proven, tightly; a check that fails fails the export:

    adapter             what was saved is what was trained, bit for bit
    base                the named base is the one that was trained on                       `base_sample.py`
    config              config.json is the base's, but for what the recipe changes
    weights             every stored value is PEFT's merge, all others are the base's       `weights.py`
    trained_function    the trained model computes PEFT's function of the saved adapter     `outputs.py`
    exported_function   the folder, opened by plain readers, computes PEFT's merge          `outputs.py`
    tokens              text becomes the tokens that were trained on                        `token_identity.py`

Measured and reported: how far the exported function is from the trained one (`distance.py`), which decides
`merge_base: auto` and, for an export in 4 bits alone, whether enough of the gain is left.

`fresh_process.py` has a case examined in a process of its own, where nothing of the training stack has replaced parts
of Transformers or PEFT. `examine` is what that process does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qdora_fast.exports.merge.merge import merged_config
from qdora_fast.exports.merge.merged_model import MergedModel
from qdora_fast.exports.verify import base_sample
from qdora_fast.exports.verify.distance import Distance
from qdora_fast.exports.verify.outputs import Models, OutputProof, OutputRecorder, judge
from qdora_fast.exports.verify.recording import Recording, Rows
from qdora_fast.exports.verify.token_identity import describe_folder, differences
from qdora_fast.exports.verify.weights import WeightProof, prove_weights
from qdora_fast.models.few_bits import few_bits_in
from qdora_fast.models.out_of_memory import release_memory
from qdora_fast.system.errors import first_line
from qdora_fast.system.json_files import read_object

OnPhase = Callable[[str], None]
"""Told what is being done now."""


@dataclass(frozen=True)
class Evidence:
    """What the trained model and its base say about the proof rows; plain tensors, the models are gone."""

    rows: Rows
    tuned: Recording
    base: Recording
    sample: base_sample.Sample
    """Of the base's weights as training held them, see `base_sample.py`."""
    adapter_faults: tuple[str, ...] = ()
    """Trained tensors that are not in the saved adapter as they are in the model, in words."""


@dataclass(frozen=True)
class Case:
    """An exported folder and all that it is held against."""

    models: Models
    evidence: Evidence
    held_out: bool
    """The rows of the evidence were not trained on."""
    tokens: Mapping[str, Any] | None
    """The run's record of its tokens; None where it has none."""
    added_stops: Sequence[int] = ()
    """Stop tokens that the export added to the base's generation config."""
    auto: bool = False
    """`merge_base: auto`: stop as soon as the other base turns out to be the better one."""


def examine(case: Case, on_phase: OnPhase = lambda phase: None, *, device: str | None = None) -> dict[str, Any]:
    """Compare an exported model with the run that it comes from. Needs no part of the training stack.

    Args:
        device: where to compute; None: on a GPU if there is one and it has the room, else on the CPU.

    Returns:
        For export.json: passed, kl, top1, checks with a sentence each, warnings, distance and all measurements. For a
        case with `auto` where the 4-bit base is the better one: `instead`, the reason, and `distance` alone.
    """
    try:
        outputs, distance = _run_where_it_fits(case, on_phase, device)
    except UnreadableError as error:
        return _failed("opens", f"{case.models.exported} cannot be opened with plain Transformers: {error}")
    if outputs is None:
        return {"instead": distance.costs, "distance": distance.to_dict()}
    models, evidence = case.models, case.evidence
    on_phase("comparing all weights with PEFT's merge")
    weights = prove_weights(models.base, models.adapter, models.exported, models.recipe)
    on_phase("comparing base and tokens")
    base = base_sample.compare(
        evidence.sample, models.base, models.precision, packed_elsewhere=few_bits_in(models.trained_base) is not None
    )
    found = describe_folder(models.exported, case.tokens) if case.tokens else None
    checks = [
        _adapter_check(evidence),
        {"name": "base", "passed": base.passed, "words": base.words},
        _config_check(models),
        _weights_check(weights),
        *outputs.checks,
        *([_gain_check(distance)] if models.recipe.nf4 else []),
        _tokens_check(case.tokens, found, case.added_stops),
    ]
    return {
        "passed": all(check["passed"] for check in checks),
        "kl": distance.kl,
        "top1": distance.top1,
        "checks": checks,
        "warnings": [distance.warning] if models.recipe.nf4 and distance.warning else [],
        "distance": distance.to_dict(),
        "weights": weights.to_dict(),
        "outputs": outputs.to_dict(),
        "held_out": case.held_out,
    }


def _run_where_it_fits(case: Case, on_phase: OnPhase, device: str | None) -> tuple[OutputProof | None, Distance]:
    """`_run_models` on the device asked for, else on a GPU if there is one; on the CPU where its memory runs out."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return _run_models(case, on_phase, chosen)
    except torch.OutOfMemoryError:
        if chosen == "cpu":
            raise
    release_memory()  # after the handler, whose frames hold the tensors
    return _run_models(case, on_phase, "cpu")


def _run_models(case: Case, on_phase: OnPhase, device: str) -> tuple[OutputProof | None, Distance]:
    """All that is run over rows; None instead of a proof where `merge_base: auto` takes the other base."""
    models, evidence = case.models, case.evidence
    with tempfile.TemporaryDirectory(prefix=".proof-", dir=models.exported.parent) as scratch:
        on_phase("running the exported model")
        try:
            recorder = OutputRecorder(models, evidence.rows, device=device, scratch=Path(scratch))
            exported = recorder.exported()
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise UnreadableError(first_line(error)) from error
        on_phase("running PEFT's function of the adapter")
        trained = recorder.trained()
        distance = Distance.measure(evidence.base, trained, exported, held_out=case.held_out)
        if case.auto and distance.costs:
            return None, distance
        rounding = recorder.rounding()
        on_phase("running PEFT's merge")
        return judge(evidence.tuned, trained, rounding, recorder.merged(), exported), distance


class UnreadableError(Exception):
    """Plain Transformers cannot open or run the folder; the message has its words."""


def _failed(name: str, words: str) -> dict[str, Any]:
    """A proof that ended at its first check."""
    return {
        "passed": False,
        "kl": None,
        "top1": None,
        "checks": [{"name": name, "passed": False, "words": words}],
        "warnings": [],
    }


def _adapter_check(evidence: Evidence) -> dict[str, Any]:
    faults = evidence.adapter_faults
    text = "; ".join(faults[:5]) or "the saved adapter is the trained one, bit for bit"
    return {"name": "adapter", "passed": not faults, "words": text}


def _config_check(models: Models) -> dict[str, Any]:
    """A changed constant (an epsilon, a rotary base) moves outputs less than a limit on them can tell."""
    model = MergedModel(models.base, models.adapter, models.recipe)
    expected = json.loads(json.dumps(merged_config(model)))
    found = read_object(models.exported / "config.json")
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    grown = any(model.infos[name] != model.weights.infos[name] for name in model.tokens)
    right = "config.json is the base's" + (f", for {model.update.vocabulary} tokens" if grown else "")
    text = f"config.json differs from the base's in {', '.join(wrong[:5])}" if wrong else right
    return {"name": "config", "passed": not wrong, "words": text}


def _weights_check(weights: WeightProof) -> dict[str, Any]:
    text = f"{weights.layers} merged layers are PEFT's merge, {weights.values:,} values one by one"
    if weights.packed:
        text += f"; {weights.packed} weights are their NF4, bit for bit"
    if weights.tokens:
        text += f"; {weights.tokens} rows of trained tokens are PEFT's, all other rows the base's"
    text += f"; {weights.untouched} other tensors identical to the base's"
    return {
        "name": "weights",
        "passed": weights.passed,
        "words": text if weights.passed else "; ".join(weights.faults[:5]),
    }


def _gain_check(distance: Distance) -> dict[str, Any]:
    if distance.kept is None:
        why = "tuning gained nothing there" if distance.held_out else "no rows were held out"
        return {"name": "gain_kept", "passed": True, "words": f"share of the gain kept: not judged, {why}"}
    verdict = "nearer the base than the trained model: " if distance.lost_gain else ""
    return {"name": "gain_kept", "passed": not distance.lost_gain, "words": verdict + distance.words}


def _tokens_check(
    recorded: Mapping[str, Any] | None, found: Mapping[str, Any] | None, added: Sequence[int]
) -> dict[str, Any]:
    if recorded is None or found is None:
        return {"name": "tokens", "passed": True, "words": "tokens not compared: this run has no record of them"}
    wrong = differences(recorded, found)
    text = f"chat template, BOS, EOS, PAD, stop tokens and the tokens of {len(recorded['tokens'])} rows as trained"
    text += f"; the generation config now stops at {list(added)}, too, as training taught" if added else ""
    return {"name": "tokens", "passed": not wrong, "words": "; ".join(wrong) or text}
