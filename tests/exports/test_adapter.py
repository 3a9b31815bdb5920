"""The adapter for others: whole, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qdora_fast import unfuse
from qdora_fast.config.loader import load_config
from qdora_fast.config.recorded import read_config
from qdora_fast.models.loading import load_trained
from qdora_fast.recipes.export import export
from qdora_fast.system.errors import IntegrityError, RefusedError
from qdora_fast.system.manifest import problems, read_manifest, write_manifest
from qdora_fast.system.run_folder import RunFolder


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


PLAIN_PEFT = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

base, adapter, rows, out = sys.argv[1:]
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                         bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=nf4)
for module in model.modules():  # else bitsandbytes repacks weights on some CPUs, and PEFT's DoRA reads garbage
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.inference_mode():
    said = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in json.load(open(rows))["rows"]]
torch.save(said, out)
assert not {name.split(".")[0] for name in sys.modules} & {"unsloth", "qdora_fast"}
"""


def test_plain_peft_in_a_fresh_process_computes_what_was_trained(demo_run: RunFolder, tmp_path: Path) -> None:
    """The 4-bit base and the exported adapter, with nothing of ours: the same logits, to the bit."""
    made, rows = demo_run.read_json("model.json"), demo_run.path / "data" / "proof_rows.json"
    export(demo_run, to="adapter", out=tmp_path / "adapter")
    arguments = [made["base"], str(tmp_path / "adapter"), str(rows), str(tmp_path / "logits.pt")]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", PLAIN_PEFT, *arguments], check=True, env=alone, cwd=tmp_path)
    theirs = torch.load(tmp_path / "logits.pt")

    config = read_config(demo_run)
    _, model = load_trained(
        made["base"],
        demo_run.adapter,
        config.model,
        config.adapter,
        config.train,
        config.engine,
        precision="fp32",
    )

    def said() -> list[torch.Tensor]:
        with torch.inference_mode():
            ids = [torch.tensor([row["input_ids"]]) for row in demo_run.read_json("data/proof_rows.json")["rows"]]
            return [model(input_ids=each).logits[0] for each in ids]

    fused = said()
    unfuse(model)
    assert all(torch.equal(ours, plain) for ours, plain in zip(said(), theirs, strict=True))
    torch.testing.assert_close(fused, theirs, atol=1e-4, rtol=1e-4)  # our layers add in another order


def test_a_copy_explains_itself_and_notices_what_has_changed(short_run, tmp_path: Path) -> None:
    made = short_run()
    report = export(made, to="adapter", out=tmp_path / "a")
    assert problems(tmp_path / "a") == []
    files = read_manifest(tmp_path / "a")["files"]
    assert {"adapter_model.safetensors", "adapter_config.json", "config.yaml", "tokenizer.json"} <= set(files)
    assert files["adapter_model.safetensors"]["sha256"] == report["sha256"]
    config = load_config(tmp_path / "a" / "config.yaml")
    assert config.adapter == read_config(made).adapter
    assert config.model.name == Path(read_config(made).model.name).name  # a name, not a place on this machine

    export(made, to="adapter")  # where it lies
    assert problems(made.adapter) == []
    (made.adapter / "README.md").write_text("edited")
    export(made, to="adapter")
    weights = bytearray((made.adapter / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (made.adapter / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError, match="has changed since it was exported"):
        export(made, to="adapter")


def _drop_magnitudes(made: RunFolder) -> None:
    from safetensors.torch import load_file, save_file

    file = made.adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "magnitude" not in k}, file, metadata={"format": "pt"})
    write_manifest(made.adapter, read_manifest(made.adapter)["about"])  # as if it had been saved so


@pytest.mark.parametrize("to", ["merged_16bit", "adapter"])
def test_an_adapter_without_magnitudes_is_never_exported(short_run, to: str) -> None:
    made = short_run()
    _drop_magnitudes(made)
    with pytest.raises(IntegrityError, match="lora_magnitude_vector: missing"):
        export(made, to=to)
    assert not (made.path / "merged_16bit").exists()
