"""The adapter for others: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.errors import IntegrityError, RefusedError
from qdora_fast.export import export
from qdora_fast.run_folder import RunFolder


@pytest.mark.parametrize("method", ["qdora", "dora"])
def test_a_lora_only_export_of_a_dora_run_is_refused_with_the_right_choices(short_run, method: str) -> None:
    made = short_run(method)
    with pytest.raises(RefusedError, match=r"drops the magnitude.*merged_16bit.*adapter") as caught:
        export(made.path, to="lora")
    assert caught.value.exit_code == 2
    assert not (made.path / "lora").exists()


def test_a_lora_run_may_be_saved_as_lora(short_run, tmp_path: Path) -> None:
    report = export(short_run("qlora"), to="lora", out=tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    assert report["format"] == "lora"


def test_a_complete_adapter_is_copied_and_loads_in_plain_peft(short_run, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = short_run()
    export(made, to="adapter", out=tmp_path / "a")
    base = AutoModelForCausalLM.from_pretrained(made.read_json("model.json")["base"])
    model = PeftModel.from_pretrained(base, tmp_path / "a")
    assert sum("lora_magnitude_vector" in name for name, _ in model.named_parameters()) == 14


def _drop_magnitudes(made: RunFolder) -> None:
    from safetensors.torch import load_file, save_file

    file = made.adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "magnitude" not in k}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("to", ["merged_16bit", "adapter"])
def test_an_adapter_without_magnitudes_is_never_exported(short_run, to: str) -> None:
    made = short_run()
    _drop_magnitudes(made)
    with pytest.raises(IntegrityError, match="lora_magnitude_vector: missing"):
        export(made, to=to)
    assert not (made.path / "merged_16bit").exists()
