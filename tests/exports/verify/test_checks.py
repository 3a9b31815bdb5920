"""One run, exported as it is and then tampered with in every way: each proof names what is wrong.

The run is the session's demo run; evidence is recorded once. What each check finds is tested in test_proof,
test_output_proof and test_base_sample; here it is that their findings, and those on tokens, fail an export.
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
from tiny_checkpoints import edit, tensors_of

from qdora_fast.config.recorded import read_config
from qdora_fast.exports.merge.merge import merge
from qdora_fast.exports.merge.shards import LEDGER
from qdora_fast.exports.merged import export_merged
from qdora_fast.exports.verify.case import record_saved
from qdora_fast.exports.verify.checks import Case, Evidence, examine
from qdora_fast.models.run_info import read_run_info
from qdora_fast.recipes.report import trained_model
from qdora_fast.system.errors import ConfigError, ProofError
from qdora_fast.system.run_folder import RunFolder


@pytest.fixture(scope="module")
def evidence(demo_run: RunFolder) -> Evidence:
    """What the demo's trained model and its base say."""
    return record_saved(demo_run, trained_model(demo_run, read_config(demo_run)))


@pytest.fixture
def exported(demo_run: RunFolder, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that exports a copy of the run, to be tampered with before."""
    folder = RunFolder(shutil.copytree(demo_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))

    def export(
        evidence: Evidence, change: Callable[[RunFolder], Any] = lambda run: None, run: Any = folder, **asked: Any
    ) -> Any:
        change(run)
        choices = {"merge_base": "dequant4", "out": tmp_path / "out", "overwrite": False}
        return export_merged(run, evidence, **choices | asked)

    return export


def test_the_table_of_checks(exported: Any, evidence: Evidence, tmp_path: Path) -> None:
    proof = exported(evidence)["proof"]
    assert proof["passed"] and proof["held_out"] and proof["warnings"] == []
    assert [check["name"] for check in proof["checks"]] == [
        *("adapter", "base", "config", "weights", "trained_function", "exported_function", "tokens")
    ]
    assert proof["distance"]["kept"] == pytest.approx(1, abs=0.01)
    assert json.loads((tmp_path / "out/export.json").read_text())["proof"]["checks"][-1]["words"] == (
        "chat template, BOS, EOS, PAD, stop tokens and the tokens of 3 rows as trained"
    )


def test_a_relative_of_the_base_fails_the_export(exported: Any, evidence: Evidence, tmp_path: Path) -> None:
    """So near to the base that its answers do not tell: noise of a thousandth of each weight's spread."""

    def swap(run: RunFolder) -> None:
        made = run.read_json("model.json")
        base = Path(shutil.copytree(read_run_info(run).base, tmp_path / "base"))
        generator = torch.Generator().manual_seed(0)

        def add(tensors: dict[str, torch.Tensor]) -> None:
            for tensor in tensors.values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * tensor.std() * 0.001)

        edit(base, add)
        run.write_json("model.json", made | {"base": str(base)})

    with pytest.raises(ProofError, match="the base is not the one trained on: .* differs in"):
        exported(evidence, swap, merge_base="original16")
    proof = json.loads((tmp_path / "out.unproven/export.json").read_text())["proof"]
    failed = [check["name"] for check in proof["checks"] if not check["passed"]]
    assert "base" in failed and "weights" not in failed  # the merge into that base is right


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
        base = Path(shutil.copytree(read_run_info(run).base, tmp_path / "base"))
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
    from qdora_fast.exports import merged

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(merged, "_prove", die)
        with pytest.raises(KeyboardInterrupt):
            exported(evidence)
    assert (tmp_path / "out.unproven/model.safetensors").is_file() and not (tmp_path / "out").exists()
    report = exported(evidence, lambda run: (run.path / "data/tokens.json").unlink())
    assert report["resumed_shards"] == 1
    assert "tokens not compared: this run has no record" in report["proof"]["checks"][-1]["words"]
    assert not (tmp_path / "out" / LEDGER).exists() and not (tmp_path / "out.unproven").exists()


def test_an_export_never_replaces_what_it_is_made_of(exported: Any, evidence: Evidence, demo_run: RunFolder) -> None:
    base = Path(read_run_info(demo_run).base)
    for place in (base, demo_run.adapter, demo_run.path):
        with pytest.raises(ConfigError, match="is an input of this merge"):
            exported(evidence, overwrite=True, run=demo_run, out=place)


def test_nothing_is_taken_from_an_export_that_failed_its_proof(exported: Any, evidence: Evidence) -> None:
    stranger = replace(evidence, tuned=evidence.base)
    with pytest.raises(ProofError, match="not the model that was trained"):
        exported(stranger)
    assert exported(evidence)["resumed_shards"] == 0


def test_an_adapter_that_was_not_saved_as_trained_fails_the_export(exported: Any, evidence: Evidence) -> None:
    """The live model and its file are compared while both are there; a difference reaches the proof."""
    behind = replace(evidence, adapter_faults=("model.layers.0.mlp.up_proj.lora_A.weight: trained, but not saved",))
    with pytest.raises(ProofError, match=r"lora_A\.weight: trained, but not saved"):
        exported(behind)


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_parameters", "tie_word_embeddings"])
def test_a_config_that_is_not_the_bases_fails_by_name(right_case: Case, tmp_path: Path, key: str) -> None:
    """However little it moves the outputs."""
    out = Path(shutil.copytree(right_case.models.exported, tmp_path / "out"))
    config = json.loads((out / "config.json").read_text())
    changed = {"rms_norm_eps": 1.1e-6, "rope_parameters": {**config["rope_parameters"], "rope_theta": 10001.0}}
    (out / "config.json").write_text(json.dumps(config | {key: changed.get(key, True), "added": 1}))
    if key == "tie_word_embeddings":
        (out / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != key}))
    proof = examine(replace(right_case, models=replace(right_case.models, exported=out)))
    (words,) = (check["words"] for check in proof["checks"] if check["name"] == "config" and not check["passed"])
    assert key in words


def test_auto_takes_the_16_bit_base_where_it_costs_nothing(exported: Any, evidence: Evidence) -> None:
    report = exported(evidence, merge_base="auto")
    assert report["merge_base"] == "original16" and report["proof"]["passed"]
    assert report["merge_base_reason"] == "they cost nothing that matters on these rows"


def test_auto_takes_the_4_bit_base_where_the_16_bit_one_costs_something(
    exported: Any, evidence: Evidence, tmp_path: Path
) -> None:
    """The 16-bit base is another one, which costs a lot; there is one folder in the end, and its proof tells of the
    base, too."""

    base = tmp_path / "base"

    def other_base(run: RunFolder) -> None:
        shutil.copytree(read_run_info(run).base, base)
        edit(base, lambda tensors: [t.copy_(t.flip(0)) for name, t in tensors.items() if "proj" in name])

    with pytest.raises(ProofError, match="the base is not the one trained on"):
        exported(evidence, other_base, merge_base="auto", base_16bit=str(base))
    report = json.loads((tmp_path / "out.unproven/export.json").read_text())
    assert report["merge_base"] == "dequant4"
    assert "would be" in report["merge_base_reason"] and "95 % CI" in report["merge_base_reason"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.unproven"]


def test_an_export_in_4_bits_without_the_gain_is_refused(right_case: Case, demo_run: RunFolder, tmp_path: Path) -> None:
    """The base itself in NF4, taken for the trained model in NF4."""
    adapter = Path(shutil.copytree(demo_run.adapter, tmp_path / "untrained"))
    weights = tensors_of(Path(right_case.models.base))

    def forget(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "lora_B" in name:
                tensors[name].zero_()
            elif "magnitude" in name:
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_magnitude_vector")
                tensors[name] = weights[f"{layer}.weight"].float().norm(dim=1)

    edit(adapter, forget)
    recipe = replace(right_case.models.recipe, nf4=True)
    merge(right_case.models.base, adapter, tmp_path / "out", recipe, tokenizer_from=demo_run.adapter)
    models = replace(right_case.models, exported=tmp_path / "out", recipe=recipe)
    proof = examine(replace(right_case, models=models))
    failed = {check["name"]: check["words"] for check in proof["checks"] if not check["passed"]}
    assert failed.keys() == {"weights", "exported_function", "gain_kept"} and not proof["passed"]
    assert "nearer the base than the trained model: 0% of the gain kept" in failed["gain_kept"].replace("-0%", "0%")
