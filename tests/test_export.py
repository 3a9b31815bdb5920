"""Exports of real runs: proven when right, refused when they would be wrong, failed when tampered with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qdora_fast import export as exporting
from qdora_fast.config_file import dump_config
from qdora_fast.errors import ConfigError, IntegrityError, ProofError, RefusedError
from qdora_fast.export import export
from qdora_fast.run import train
from qdora_fast.run_folder import RunFolder


@pytest.fixture
def run(tiny_config) -> Any:
    """A function that trains a few steps by a method and returns the run."""

    def make(method: str = "qdora", whole: Sequence[str] = (), **sections: Any) -> RunFolder:
        return train(tiny_config(adapter={"method": method, "modules_to_save": list(whole)}, **sections))

    return make


@pytest.mark.parametrize("method", ["qdora", "dora"])
def test_a_lora_only_export_of_a_dora_run_is_refused_with_the_right_choices(run, method: str) -> None:
    made = run(method)
    with pytest.raises(RefusedError, match=r"drops the magnitude.*merged_16bit.*adapter") as caught:
        export(made.path, to="lora")
    assert caught.value.exit_code == 2
    assert not (made.path / "lora").exists()


def test_a_lora_run_may_be_saved_as_lora(run, tmp_path: Path) -> None:
    report = export(run("qlora"), to="lora", out=tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    assert report["format"] == "lora"


@pytest.mark.parametrize("method", ["qdora", "dora", "qlora", "lora"])
def test_every_method_exports_a_proven_model_that_plain_transformers_opens(run, method: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = run(method)
    report = export(made)
    assert report["proof"]["passed"]
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


def test_a_head_trained_whole_is_exported_with_the_adapter(run, tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    untied = AutoModelForCausalLM.from_pretrained(tiny_base)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    untied.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "untied")

    made = run(model={"name": str(tmp_path / "untied")}, whole=["lm_head"])
    report = export(made)
    assert report["proof"]["passed"]
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "untied", Path(report["path"])))
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_dequant4_reproduces_the_trained_model(run) -> None:
    report = export(run(), merge_base="dequant4")
    assert report["proof"]["kl"] < 1e-3
    assert Path(report["path"]).name == "merged_16bit-dequant4"
    with pytest.raises(RefusedError, match="has no 4-bit base"):
        export(run("dora"), merge_base="dequant4")


def test_an_existing_export_is_not_overwritten_unless_asked(run) -> None:
    made = run()
    export(made)
    with pytest.raises(ConfigError, match="already exists"):
        export(made)
    assert export(made, overwrite=True)["proof"]["passed"]


def test_a_complete_adapter_is_copied_and_loads_in_plain_peft(run, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = run()
    export(made, to="adapter", out=tmp_path / "a")
    base = AutoModelForCausalLM.from_pretrained(made.read_json("model.json")["base"])
    model = PeftModel.from_pretrained(base, tmp_path / "a")
    assert sum("lora_magnitude_vector" in name for name, _ in model.named_parameters()) == 14


def _drop_magnitudes(made: RunFolder) -> None:
    from safetensors.torch import load_file, save_file

    file = made.adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "magnitude" not in k}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("to", ["merged_16bit", "adapter"])
def test_an_adapter_without_magnitudes_is_never_exported(run, to: str) -> None:
    made = run()
    _drop_magnitudes(made)
    with pytest.raises(IntegrityError, match="lora_magnitude_vector: missing"):
        export(made, to=to)
    assert not (made.path / "merged_16bit").exists()


def test_another_base_fails_the_proof(run, tiny_base: Path, tmp_path: Path) -> None:
    """Same shapes, other weights: the merge goes through, and the behaviour gives it away."""
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    file = other / "model.safetensors"
    torch.manual_seed(1)
    save_file({k: v + 0.05 * torch.randn_like(v) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    made = run()
    config = made.config()
    swapped = config.model_copy(update={"model": config.model.model_copy(update={"base_16bit": str(other)})})
    made.config_file.write_text(dump_config(swapped))
    with pytest.raises(ProofError, match="not the model that was trained") as caught:
        export(made)
    assert caught.value.exit_code == 42
    assert not (made.path / "merged_16bit").exists()
    assert not json.loads((made.path / "merged_16bit.unproven" / "export.json").read_text())["proof"]["passed"]


def test_a_merge_gone_wrong_fails_the_proof(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer left unmerged, as a bug of ours would: caught by PEFT's own merge."""
    import qdora_fast.merge as merging

    real = merging.merged_rows
    skipped: list[int] = []

    def forgetful(weight, module, start):
        if not skipped or skipped[0] == id(module):
            skipped.append(id(module))
            return weight
        return real(weight, module, start)

    made = run()
    monkeypatch.setattr(merging, "merged_rows", forgetful)
    with pytest.raises(ProofError, match="still the base's weights"):
        export(made)
    assert skipped


def test_a_full_disk_is_told_before_anything_is_written(run, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    from qdora_fast.errors import DiskSpaceError

    made = run()
    evidence = exporting._record_saved(made, made.config())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskSpaceError, match="are needed") as caught:
        from rich.console import Console

        out = made.path / "m"
        exporting.export_merged(
            made, evidence, merge_base="original16", out=out, overwrite=False, console=Console(quiet=True)
        )
    assert caught.value.exit_code == 11
    assert not list(made.path.glob("m*safetensors")) + list(made.path.glob("m.*"))


def test_an_unknown_format_names_the_known_ones(run) -> None:
    with pytest.raises(ConfigError, match="merged_16bit, adapter, lora"):
        export(run(), to="merged_8bit")
