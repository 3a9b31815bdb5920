"""Merged models of real runs: proven when right, failed when tampered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qdora_fast.config.loader import dump_config
from qdora_fast.config.recorded import read_config
from qdora_fast.exports import merged
from qdora_fast.exports.verify.case import record_saved
from qdora_fast.recipes.export import export
from qdora_fast.recipes.report import trained_model
from qdora_fast.system.errors import ConfigError, ProofError, RefusedError


@pytest.mark.parametrize("method", ["qdora", "dora", "qlora", "lora"])
def test_every_method_exports_a_proven_model_that_plain_transformers_opens(short_run, method: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = short_run(method)
    report = export(made)
    assert report["proof"]["passed"] and report["merge_base_reason"]
    assert report["proof"]["weights"]["layers"] == 14
    folder = Path(report["path"])
    assert json.loads((folder / "export.json").read_text())["proof"]["passed"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "### Instruction:" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert not list(made.path.glob("*.unproven")) + list(made.path.glob("*.incomplete"))


def test_a_head_trained_whole_is_exported_with_the_adapter(short_run, tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    untied = AutoModelForCausalLM.from_pretrained(tiny_base)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    untied.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "untied")

    made = short_run(model={"name": str(tmp_path / "untied")}, whole=["lm_head"])
    report = export(made)
    assert report["proof"]["passed"]
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "untied", Path(report["path"])))
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_dequant4_reproduces_the_trained_model(short_run) -> None:
    report = export(short_run(), merge_base="dequant4")
    assert report["proof"]["kl"] < 1e-3
    assert Path(report["path"]).name == "merged_16bit-dequant4"
    with pytest.raises(RefusedError, match="has no 4-bit base"):
        export(short_run("dora"), merge_base="dequant4")


def test_an_existing_export_is_not_overwritten_unless_asked(short_run) -> None:
    made = short_run()
    export(made)
    with pytest.raises(ConfigError, match="already exists"):
        export(made)
    assert export(made, overwrite=True)["proof"]["passed"]


def test_another_base_fails_the_proof(short_run, tiny_base: Path, tmp_path: Path) -> None:
    """Same shapes, other weights: the merge goes through, and the behaviour gives it away."""
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    file = other / "model.safetensors"
    torch.manual_seed(1)
    save_file({k: v + 0.05 * torch.randn_like(v) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    made = short_run()
    config = read_config(made)
    swapped = config.model_copy(update={"model": config.model.model_copy(update={"base_16bit": str(other)})})
    made.config_file.write_text(dump_config(swapped))
    with pytest.raises(ProofError, match="not the model that was trained") as caught:
        export(made)
    assert caught.value.exit_code == 42
    assert not (made.path / "merged_16bit").exists()
    assert not json.loads((made.path / "merged_16bit.unproven" / "export.json").read_text())["proof"]["passed"]


def test_a_merge_gone_wrong_fails_the_proof(short_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer left unmerged, as a bug of ours would: caught by PEFT's own merge."""
    import qdora_fast.exports.merge.merged_model as merging

    real = merging.merged_rows
    skipped: list[int] = []

    def forgetful(weight, module, start):
        if not skipped or skipped[0] == id(module):
            skipped.append(id(module))
            return weight
        return real(weight, module, start)

    made = short_run()
    monkeypatch.setattr(merging, "merged_rows", forgetful)
    with pytest.raises(ProofError, match="up_proj.*still the base's weights|still the base's weights"):
        export(made)
    assert skipped


def test_a_full_disk_is_told_before_anything_is_written(short_run, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    from qdora_fast.system.errors import DiskSpaceError

    made = short_run()
    evidence = record_saved(made, trained_model(made, read_config(made)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskSpaceError, match="are needed") as caught:
        out = made.path / "m"
        merged.export_merged(made, evidence, merge_base="original16", out=out, overwrite=False)
    assert caught.value.exit_code == 11
    assert not list(made.path.glob("m*safetensors")) + list(made.path.glob("m.*"))
