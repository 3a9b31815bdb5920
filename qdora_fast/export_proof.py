"""Is an exported folder the model that was trained? All that is asked of it, as one table of checks.

The base (`base_sample.py`), weights (`proof.py`), answers in a fresh process (`behaviour.py`,
`plain_reader.py`), what is left of the gain (`survival.py`), and tokens (`token_identity.py`). A
failed check fails the export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.run_folder import RunFolder


@dataclass(frozen=True)
class Evidence:
    """What the trained model and its base say about the proof rows; plain tensors, the models are gone."""

    rows: Sequence[Mapping[str, Sequence[int]]]
    tuned: Any
    base: Any
    sample: Mapping[str, Any]
    """Of the base's weights as training held them, see `base_sample.py`."""


def prove(
    folder: RunFolder, config: Config, evidence: Evidence, exported: Path, base: Path, recipe: Any
) -> dict[str, Any]:
    """Compare an exported model with the run that it comes from.

    Args:
        evidence: from `merged_export.record_trained`.
        exported: the folder that was built.
        base, recipe: what it was built from, and how.

    Returns:
        For export.json: passed, kl, top1, checks with a sentence each, warnings, and all measurements.
    """
    from qdora_fast import base_sample
    from qdora_fast.behaviour import compare, judge
    from qdora_fast.plain_reader import open_in_new_process
    from qdora_fast.proof import prove_weights
    from qdora_fast.survival import Survival
    from qdora_fast.token_identity import RECORD, complete_stop_ids

    added = complete_stop_ids(exported, folder.read_json("model.json")["stop_ids"])
    same_base = base_sample.compare(evidence.sample, base, recipe.trained_dtype)
    weights = prove_weights(base, folder.adapter, exported, recipe, seed=config.train.seed)

    recorded = folder.read_json(RECORD) if (folder.path / RECORD).is_file() else None
    quantized = config.adapter.quantized
    noisy = recipe.merge_base == "original16" and (quantized or recipe.nf4)
    others = [base] if noisy else []
    opened = open_in_new_process(
        [exported, *others], evidence.rows, in_4bit=() if quantized else others, tokens=recorded
    )
    noise = compare(evidence.base, opened.recordings[1]) if noisy else None
    merged, to_base = compare(evidence.tuned, opened.recordings[0]), compare(evidence.tuned, evidence.base)
    behaviour = judge(recipe.merge_base, merged, to_base, noise, packed=recipe.nf4, trained_in_4bit=quantized)
    held_out = folder.read_json("data/proof_rows.json")["held_out"]
    survival = Survival(evidence.base.loss, evidence.tuned.loss, opened.recordings[0].loss, held_out)

    checks = [{"name": "base", "passed": same_base.passed, "words": same_base.words}, _weights_check(weights)]
    for check in behaviour.checks:
        words = f"{check.words}: {check.value:.3g} (limit {check.limit:.3g})"
        checks.append({"name": check.name, "passed": check.passed, "words": words})
    if recipe.nf4:
        checks.append({"name": "gain_kept", "passed": survival.passed, "words": survival.words})
    checks.append(_tokens_check(recorded, opened.tokens, added))
    return {
        "passed": all(check["passed"] for check in checks),
        "kl": merged.mean_kl,
        "top1": merged.top1,
        "checks": checks,
        "warnings": [survival.warning] if recipe.nf4 and survival.warning else [],
        "weights": weights.to_dict(),
        "behaviour": behaviour.to_dict(),
        "survival": survival.to_dict(),
        "held_out": held_out,
    }


def _weights_check(weights: Any) -> dict[str, Any]:
    said = f"{weights.layers} merged layers equal PEFT's merge (worst error {weights.worst_error:.3%})"
    if weights.packed:
        said += f"; {weights.packed} weights are their NF4, bit for bit"
    said += f"; {weights.untouched} other tensors identical to the base's"
    return {
        "name": "weights",
        "passed": weights.passed,
        "words": said if weights.passed else "; ".join(weights.faults[:5]),
    }


def _tokens_check(
    recorded: Mapping[str, Any] | None, found: Mapping[str, Any] | None, added: Sequence[int]
) -> dict[str, Any]:
    from qdora_fast.token_identity import differences

    if recorded is None or found is None:
        return {"name": "tokens", "passed": True, "words": "tokens not compared: this run has no record of them"}
    wrong = differences(recorded, found)
    said = f"chat template, BOS, EOS, PAD, stop tokens and the tokens of {len(recorded['tokens'])} rows as trained"
    said += f"; the generation config now stops at {added}, too, as training taught" if added else ""
    return {"name": "tokens", "passed": not wrong, "words": "; ".join(wrong) or said}
