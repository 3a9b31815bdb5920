"""What one evaluation measured, in a form that is checked before it is written: the line an auditor reads.

`Evaluation` is the schema. Unknown or missing keys are errors here, not questions later; `schema_version` grows when
a key changes its meaning. Figures that were not measured are null, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qdora_fast.config import AdapterSettings
from qdora_fast.models.run_info import read_run_info
from qdora_fast.system.manifest import sha256_of, value_hash
from qdora_fast.system.run_folder import RunFolder


class EvaluationResult(dict[str, Any]):
    """An evaluation as in evaluation/evaluation.json, which a notebook shows as a table."""

    def __repr__(self) -> str:
        """Of which run, and what decides, in two lines."""
        from qdora_fast.evaluation.report.pages import verdict_of

        return f"Evaluation of {self.get('run')}, with {', '.join(self)}\n  {verdict_of(self)}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from qdora_fast.evaluation.report.pages import evaluation_card

        return evaluation_card(self)


SIDES = ("train", "held_out")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dataset(_Part):
    """Which rows: version hashes, counts, and how many contents lie on both sides (0, or something is wrong)."""

    hash: str
    content_hash: str
    settings_hash: str
    train: int
    held_out: int
    sha256_train: str
    sha256_held_out: str
    overlap: int


class Training(_Part):
    """Which model: how it was trained, on what base, and the hash of what was learned."""

    config: dict[str, Any]
    config_sha256: str
    base: str
    revision: str | None
    quantized: bool
    method: str
    adapter_sha256: str
    steps: int | None
    final_loss: float | None


class Evaluation(_Part):
    """One evaluation of one run."""

    schema_version: Literal[1] = 1
    id: str
    run: str
    versions: dict[str, str | None]
    machine: dict[str, Any]
    dataset: Dataset
    training: Training
    task: dict[str, Any] | None
    heldout_loss: dict[str, Any] | None
    mmlu: dict[str, Any] | None
    benchmarks: dict[str, Any] | None = None
    """By name; earlier versions kept them in `tasks` of `mmlu`."""
    completions: dict[str, Any] | None
    timing: dict[str, Any] | None = None
    """Rows, written tokens and seconds of both models together, without MMLU: what the next plan goes by."""


def make_record(
    folder: RunFolder, settings: Mapping[str, Any], adapter: AdapterSettings, **measured: Any
) -> dict[str, Any]:
    """The checked record of one evaluation: what was measured, and everything that it was measured on.

    Args:
        settings: all sections of the run's config, as JSON.
        measured: task, heldout_loss, mmlu, benchmarks, completions and timing; None for what was not measured.
    """
    from qdora_fast.models.adapter import WEIGHTS_NAME

    info = read_run_info(folder)
    data = folder.read_json("data/report.json", {"hash": str, "content_hash": str, "settings_hash": str})
    machine = folder.read_json("environment.json", {"packages": dict})
    row_shape = {"meta": {"hash": str}}
    train, held_out = (
        [row["meta"]["hash"] for row in folder.read_rows(f"data/{side}.jsonl", row_shape)] for side in SIDES
    )
    steps, final = _training_end(folder)
    return Evaluation(
        id=datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ"),
        run=folder.path.name,
        versions=machine["packages"],
        machine={key: value for key, value in machine.items() if key != "packages"},
        dataset=Dataset(
            hash=data["hash"],
            content_hash=data["content_hash"],
            settings_hash=data["settings_hash"],
            train=len(train),
            held_out=len(held_out),
            sha256_train=sha256_of(folder.data / "train.jsonl"),
            sha256_held_out=sha256_of(folder.data / "held_out.jsonl"),
            overlap=len(set(train) & set(held_out)),
        ),
        training=Training(
            config=dict(settings),
            config_sha256=value_hash(settings),
            base=info.base,
            revision=info.revision,
            quantized=adapter.quantized,
            method=adapter.method,
            adapter_sha256=sha256_of(folder.adapter / WEIGHTS_NAME),
            steps=steps,
            final_loss=final,
        ),
        **measured,
    ).model_dump(mode="json")


def _training_end(folder: RunFolder) -> tuple[int | None, float | None]:
    """The last step of the run, and the last training loss that was logged."""
    lines = folder.read_rows("metrics.jsonl", {"step?": int})
    losses = [line["loss"] for line in lines if "loss" in line]
    steps = [line["step"] for line in lines if "step" in line]
    return (max(steps) if steps else None), (losses[-1] if losses else None)
