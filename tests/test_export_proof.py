"""One run, exported as it is and then tampered with in every way: each proof names what is wrong.

The run is the session's demo run; evidence is recorded once. What PEFT's merge and the fresh process find is tested in
test_proof and test_behaviour; here it is that their findings, and those on tokens, fail an export.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_checkpoints import edit

from qdora_fast.errors import ConfigError, ProofError
from qdora_fast.export_proof import Evidence
from qdora_fast.merged_export import _record_saved, export_merged
from qdora_fast.run_folder import RunFolder


@pytest.fixture(scope="module")
def evidence(demo_run: RunFolder) -> Evidence:
    """What the demo's trained model and its base say."""
    return _record_saved(demo_run, demo_run.config())


@pytest.fixture
def exported(demo_run: RunFolder, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that exports a copy of the run, to be tampered with before."""
    folder = RunFolder(shutil.copytree(demo_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))

    def export(evidence: Evidence, change: Callable[[RunFolder], Any] = lambda run: None, run: Any = folder,
               **asked: Any) -> Any:  # fmt: skip
        change(run)
        choices = {"merge_base": "dequant4", "out": tmp_path / "out", "overwrite": False}
        return export_merged(run, evidence, console=Console(quiet=True), **choices | asked)

    return export


def test_the_table_of_checks(exported: Any, evidence: Evidence, tmp_path: Path) -> None:
    proof = exported(evidence)["proof"]
    assert proof["passed"] and proof["held_out"] and proof["warnings"] == []
    assert [check["name"] for check in proof["checks"]] == ["base", "weights", "kl_to_trained", "top1", "tokens"]
    assert proof["survival"]["kept"] == pytest.approx(1, abs=0.01)
    assert json.loads((tmp_path / "out/export.json").read_text())["proof"]["checks"][-1]["words"] == (
        "chat template, BOS, EOS, PAD, stop tokens and the tokens of 3 rows as trained"
    )


def test_a_relative_of_the_base_fails_the_export(exported: Any, evidence: Evidence, tmp_path: Path) -> None:
    """So near to the base that its answers do not tell: noise of one percent of each weight's spread."""

    def swap(run: RunFolder) -> None:
        made = run.read_json("model.json")
        base = Path(shutil.copytree(made["base"], tmp_path / "base"))
        generator = torch.Generator().manual_seed(0)

        def add(tensors: dict[str, torch.Tensor]) -> None:
            for tensor in tensors.values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * tensor.std() * 0.01)

        edit(base, add)
        run.write_json("model.json", made | {"base": str(base)})

    with pytest.raises(ProofError, match="the base is not the one trained on: .* differs in"):
        exported(evidence, swap, merge_base="original16")
    proof = json.loads((tmp_path / "out.unproven/export.json").read_text())["proof"]
    assert [check["name"] for check in proof["checks"] if not check["passed"]] == ["base"]


def _change_template(run: RunFolder) -> None:
    template = run.adapter / "chat_template.jinja"
    template.write_text(template.read_text().replace("### Response:", "### Answer:"))


def _change_eos(run: RunFolder) -> None:
    file = run.adapter / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "<pad>"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [(_change_template, "the chat template is not the one trained with"), (_change_eos, "EOS is token")],
    ids=["template", "EOS"],
)
def test_other_tokens_than_trained_fail_the_export(exported: Any, evidence: Evidence, change: Any, said: str) -> None:
    with pytest.raises(ProofError, match=said):
        exported(evidence, change)


def test_a_stop_token_that_the_base_forgot_is_added_and_said(exported: Any, evidence: Evidence, tmp_path: Path) -> None:
    """Training took the tokenizer's EOS for a stop token; the base's generation config stops at another one."""

    def forget(run: RunFolder) -> None:
        made = run.read_json("model.json")
        base = Path(shutil.copytree(made["base"], tmp_path / "base"))
        config = json.loads((base / "generation_config.json").read_text())
        (base / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
        run.write_json("model.json", made | {"base": str(base), "stop_ids": sorted({5, *made["stop_ids"]})})
        recorded = run.read_json("data/tokens.json")
        run.write_json("data/tokens.json", recorded | {"stop_ids": sorted({5, *recorded["stop_ids"]})})

    words = exported(evidence, forget)["proof"]["checks"][-1]["words"]
    assert "the generation config now stops at" in words
    kept = json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"]
    assert 5 in kept and len(kept) == 2


def test_an_export_that_died_in_its_proof_is_not_merged_again(
    exported: Any, evidence: Evidence, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from qdora_fast import merged_export

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(merged_export, "prove", die)
        with pytest.raises(KeyboardInterrupt):
            exported(evidence)
    assert (tmp_path / "out.unproven/model.safetensors").is_file() and not (tmp_path / "out").exists()
    report = exported(evidence, lambda run: (run.path / "data/tokens.json").unlink())
    assert report["resumed_shards"] == 1
    assert "tokens not compared: this run has no record" in report["proof"]["checks"][-1]["words"]
    assert not (tmp_path / "out/finished.json").exists() and not (tmp_path / "out.unproven").exists()


def test_an_export_never_replaces_what_it_is_made_of(exported: Any, evidence: Evidence, demo_run: RunFolder) -> None:
    base = Path(demo_run.read_json("model.json")["base"])
    for place in (base, demo_run.adapter, demo_run.path):
        with pytest.raises(ConfigError, match="is an input of this merge"):
            exported(evidence, overwrite=True, run=demo_run, out=place)


def test_nothing_is_taken_from_an_export_that_failed_its_proof(exported: Any, evidence: Evidence) -> None:
    stranger = replace(evidence, tuned=evidence.base)
    with pytest.raises(ProofError, match="not the model that was trained"):
        exported(stranger)
    assert exported(evidence)["resumed_shards"] == 0
