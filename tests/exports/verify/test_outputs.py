"""The two comparisons with PEFT's function, on small models: right ones within rounding, wrong ones far outside.

Every test has a live model (PEFT's own layers on a base in NF4 or 16 bits), its saved adapter and its merge.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import adapt, edit, linears, load, load_in_4bit, made_rows, save_base

from qdora_fast.exports.merge.base import MergeRecipe
from qdora_fast.exports.merge.merge import merge
from qdora_fast.exports.verify.outputs import EXACT_KL, Models, OutputProof, OutputRecorder, judge
from qdora_fast.exports.verify.recording import Recording, record

ROWS = made_rows(30, 12, 44)
UP = "model.layers.1.mlp.up_proj"


@dataclass
class Trained:
    """A trained model: what it says, and all that an export of it is made of."""

    live: Recording
    models: Models

    def proof(self, scratch: Path, **changed: Any) -> OutputProof:
        scratch.mkdir(exist_ok=True)
        recorder = OutputRecorder(replace(self.models, **changed), ROWS, device="cpu", scratch=scratch)
        return judge(self.live, recorder.trained(), recorder.rounding(), recorder.merged(), recorder.exported())


def train(
    folder: Path,
    *,
    quantized: bool = True,
    recipe: MergeRecipe | None = None,
    family: str = "llama",
    precision: torch.dtype = torch.float32,
    **lora: Any,
) -> Trained:
    """A model as training leaves it, and its export by `recipe`."""
    base = save_base(folder / "base", family=family)
    model = load_in_4bit(base, precision) if quantized else load(base).to(precision)
    layers = frozenset(linears(model)) if quantized else frozenset[str]()
    live = adapt(model, **{"use_dora": True, "b_std": 0.2, **lora})
    for name, parameter in live.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    live.save_pretrained(folder / "adapter")
    said = record(live, ROWS)
    chosen = replace(recipe or MergeRecipe(), quantized_modules=layers or None, trained_dtype=precision)
    merge(base, folder / "adapter", folder / "out", chosen)
    models = Models(folder / "out", folder / "adapter", base, chosen, base, layers, precision)
    return Trained(said, models)


def failed(proof: OutputProof) -> list[str]:
    return [check["name"] for check in proof.checks if not check["passed"]]


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"recipe": MergeRecipe("dequant4")},
        {"recipe": MergeRecipe(nf4=True)},
        {"family": "qwen2", "use_rslora": True},
        {"use_dora": False},
        {"target_modules": ["q_proj", "down_proj"]},
        {"quantized": False},
        {"quantized": False, "use_dora": False, "moved": 0.0, "b_std": 1e-5},
    ],
    ids=["qdora", "dequant4", "nf4", "biases", "qlora", "two layers", "dora", "a light lora"],
)
def test_a_right_export_passes_by_a_wide_margin(case: dict[str, Any], tmp_path: Path) -> None:
    proof = train(tmp_path, **case).proof(tmp_path / "scratch")
    assert failed(proof) == []
    assert proof.rounding is None and proof.trained.mean_kl < EXACT_KL / 20 and proof.exported.mean_kl < EXACT_KL / 20
    assert json.loads(json.dumps(proof.to_dict()))["exported"]["positions"] == proof.exported.positions


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantized", [True, False])
def test_16_bit_training_is_held_to_the_error_of_pefts_own_function(
    precision: torch.dtype, quantized: bool, tmp_path: Path
) -> None:
    trained = train(tmp_path, precision=precision, quantized=quantized)
    proof = trained.proof(tmp_path / "scratch")
    assert failed(proof) == [] and proof.rounding is not None and proof.rounding.mean_kl > 0
    assert proof.limits["trained_function"] >= EXACT_KL == proof.limits["exported_function"]
    assert proof.rounding.mean_kl < 1e-3
    edit(trained.models.adapter, lambda tensors: [t.mul_(1.5) for key, t in tensors.items() if "vector" in key])
    assert failed(trained.proof(tmp_path / "scratch")) == ["trained_function", "exported_function"]


def test_an_adapter_that_is_not_what_the_model_computes_fails(tmp_path: Path) -> None:
    """The export is PEFT's merge of the file, but the file is not the model: one magnitude is 2 % off."""
    trained = train(tmp_path)
    key = f"base_model.model.{UP}.lora_magnitude_vector"
    edit(trained.models.adapter, lambda tensors: tensors[key].mul_(1.02))
    merge(trained.models.base, trained.models.adapter, trained.models.exported, trained.models.recipe, overwrite=True)
    assert failed(trained.proof(tmp_path / "scratch")) == ["trained_function"]


@pytest.mark.parametrize("recipe", [MergeRecipe(), MergeRecipe(nf4=True)], ids=["16 bits", "nf4"])
def test_a_folder_with_other_weights_fails(recipe: MergeRecipe, tmp_path: Path) -> None:
    trained = train(tmp_path, recipe=recipe)

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        names = [name for name in tensors if name.startswith(UP)]
        for name in names:
            if "quant_map" not in name and "quant_state" not in name:
                tensors[name] = tensors[name].flip(0).contiguous()

    edit(trained.models.exported, swap)
    assert failed(trained.proof(tmp_path / "scratch")) == ["exported_function"]


@pytest.mark.parametrize(
    "change", [{"rope_theta": 500.0}, {"rms_norm_eps": 0.1}, {"num_attention_heads": 2, "head_dim": 32}], ids=str
)
def test_a_config_under_which_the_same_weights_compute_something_else_fails(
    change: dict[str, Any], tmp_path: Path
) -> None:
    """Both sides of the second comparison read it, so the first has to tell."""
    trained = train(tmp_path)
    file = trained.models.exported / "config.json"
    config = json.loads(file.read_text())
    for name, value in change.items():
        if name == "rope_theta":
            config["rope_parameters"] = {**config.get("rope_parameters", {"rope_type": "default"}), name: value}
        config[name] = value
    if "head_dim" in change:
        config["num_key_value_heads"] = 1
    file.write_text(json.dumps(config))
    assert failed(trained.proof(tmp_path / "scratch")) == ["trained_function"]


def test_another_base_than_the_trained_one_fails_where_training_was_not_on_it(tmp_path: Path) -> None:
    trained = train(tmp_path)
    other = Path(shutil.copytree(trained.models.base, tmp_path / "other"))
    edit(other, lambda tensors: [t.mul_(1.05) for name, t in tensors.items() if "o_proj" in name])
    assert failed(trained.proof(tmp_path / "scratch", trained_base=other)) == ["trained_function"]
    assert failed(trained.proof(tmp_path / "scratch", base=other)) == ["exported_function"]


def test_rows_of_zeros_stay_zero(tmp_path: Path) -> None:
    """PEFT divides such a row by its norm; the merge and the trained layers leave it zero."""
    trained = train(tmp_path, quantized=False)
    edit(trained.models.base, lambda tensors: [tensors[n][5].zero_() for n in tensors if n == f"{UP}.weight"])
    edit(trained.models.adapter, lambda tensors: tensors[f"base_model.model.{UP}.lora_B.weight"][5].zero_())
    merge(trained.models.base, trained.models.adapter, trained.models.exported, trained.models.recipe, overwrite=True)
    proof = trained.proof(tmp_path / "scratch")
    assert proof.exported.mean_kl < EXACT_KL
    assert proof.trained.mean_kl > EXACT_KL  # the live model was of the base before
