"""A DoRA model that refuses to be saved without its magnitudes, on PEFT alone and on Unsloth's own models."""

from __future__ import annotations

import copy
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from tiny_checkpoints import adapt, edit, load, save_base

from qdora_fast.engine import install
from qdora_fast.models.adapter import WEIGHTS_NAME, assert_complete
from qdora_fast.models.adapter_guard import complete_in_memory, guard_saves, unsaved
from qdora_fast.system.errors import IntegrityError, RefusedError

NAMES_THE_CHOICES = r"`merged_16bit` to deploy it, or `adapter` to train it further"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def dora(base: Path) -> Any:
    """A guarded DoRA model."""
    model = adapt(load(base), use_dora=True)
    guard_saves(model)
    return model


def without_magnitudes(model: Any) -> dict[str, torch.Tensor]:
    """What savers for inference engines keep."""
    return {key: value for key, value in model.state_dict().items() if ".lora_A." in key or ".lora_B." in key}


def drop_magnitude(model: Any) -> None:
    """Take the magnitude of one layer out of the model."""
    del model.base_model.model.model.layers[1].mlp.up_proj.lora_magnitude_vector["default"]


def test_whole_saves_go_through(dora: Any, tmp_path: Path) -> None:
    dora.save_pretrained(tmp_path / "one")
    dora.save_pretrained(tmp_path / "two", state_dict=dora.state_dict())
    for folder in ("one", "two"):
        assert_complete(tmp_path / folder, decomposed=True)


def test_a_state_dict_without_magnitudes_is_refused(dora: Any, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"14 of 14 DoRA layers[\s\S]*" + NAMES_THE_CHOICES):
        dora.save_pretrained(str(tmp_path / "bad"), state_dict=without_magnitudes(dora))
    assert not (tmp_path / "bad").exists()


def test_a_model_that_lost_magnitudes_is_refused(dora: Any, tmp_path: Path) -> None:
    drop_magnitude(dora)
    with pytest.raises(RefusedError, match=r"1 of 14 DoRA layers.*first base_model.model.model.layers.1.mlp.up_proj"):
        dora.save_pretrained(str(tmp_path / "bad"))
    with pytest.raises(IntegrityError, match=r"model.layers.1.mlp.up_proj.lora_magnitude_vector: missing"):
        complete_in_memory(dora)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("lora_A", torch.nan),
        ("lora_B", torch.inf),
        ("lora_magnitude_vector", -1.0),
        ("lora_magnitude_vector", 0.0),
        ("lora_magnitude_vector", torch.nan),
    ],
)
def test_broken_values_in_memory_are_named(dora: Any, part: str, value: float) -> None:
    complete_in_memory(dora)
    weight = getattr(dora.base_model.model.model.layers[0].self_attn.q_proj, part)["default"].weight
    weight.data.view(-1)[3] = value
    with pytest.raises(IntegrityError, match=rf"model.layers.0.self_attn.q_proj.{part}"):
        complete_in_memory(dora)


def test_plain_lora_is_left_alone(base: Path, tmp_path: Path) -> None:
    lora = adapt(load(base))
    before = dict(vars(lora))
    assert guard_saves(lora) == ()
    assert vars(lora) == before
    lora.save_pretrained(tmp_path / "lora", state_dict=without_magnitudes(lora))
    complete_in_memory(lora)


def test_guarding_twice_is_the_same_as_once(dora: Any, tmp_path: Path) -> None:
    guarded = vars(dora)["save_pretrained"]
    assert guard_saves(dora) == ("save_pretrained",)
    assert vars(dora)["save_pretrained"] is guarded
    dora.save_pretrained(tmp_path / "saved")
    assert_complete(tmp_path / "saved", decomposed=True)


def test_a_copy_guards_and_saves_itself(dora: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(dora)
    drop_magnitude(dora)
    twin.save_pretrained(tmp_path / "twin")
    assert_complete(tmp_path / "twin", decomposed=True)


def test_methods_bound_to_the_instance_are_guarded(dora: Any) -> None:
    """`save_lora` and GGML saves exist on Unsloth's GPU models only; bound there just as here."""
    called: list[str] = []

    def save_pretrained_gguf(self: Any, folder: str, tokenizer: Any = None, save_method: str = "merged") -> None:
        called.append(save_method)

    for name in ("save_lora", "save_pretrained_ggml", "push_to_hub_ggml"):
        setattr(dora, name, lambda *args, **kwargs: called.append("lossy"))
    dora.save_pretrained_gguf = MethodType(save_pretrained_gguf, dora)
    assert len(guard_saves(dora)) == 5
    for name in ("save_lora", "save_pretrained_ggml", "push_to_hub_ggml"):
        with pytest.raises(RefusedError, match=name + r"[\s\S]*" + NAMES_THE_CHOICES):
            getattr(dora, name)("folder")
    for call in ({"save_method": "LoRA"}, {"save_method": "lora"}):
        with pytest.raises(RefusedError):
            dora.save_pretrained_gguf("folder", **call)
    with pytest.raises(RefusedError):
        dora.save_pretrained_gguf("folder", None, "lora")
    dora.save_pretrained_gguf("folder", save_method="q8_0")
    dora.save_pretrained_gguf("folder")
    assert called == ["q8_0", "merged"]


def test_a_real_unsloth_model_refuses_lora_saves(base: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from unsloth import FastLanguageModel

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(95)} | {"<eos>": 95}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(base)
    model, tokenizer = FastLanguageModel.from_pretrained(str(base), max_seq_length=64, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(model, r=4, use_dora=True, target_modules=["q_proj"])
    assert set(guard_saves(model)) >= {"save_pretrained", "save_pretrained_merged", "push_to_hub_merged"}
    with pytest.raises(RefusedError, match=NAMES_THE_CHOICES):
        model.save_pretrained_merged(str(tmp_path / "bad"), tokenizer, save_method="lora")
    with pytest.raises(RefusedError, match=NAMES_THE_CHOICES):
        model.push_to_hub_merged("someone/model", tokenizer, "lora")
    with pytest.raises(RefusedError, match=NAMES_THE_CHOICES):
        model.save_pretrained(str(tmp_path / "bad"), state_dict=without_magnitudes(model))
    assert not (tmp_path / "bad").exists()
    model.save_pretrained(str(tmp_path / "good"))
    assert_complete(
        tmp_path / "good", decomposed=True, expected_modules=[f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    )


def test_what_was_saved_is_held_against_what_is_trained(dora: Any, tmp_path: Path) -> None:
    file = tmp_path / "adapter" / WEIGHTS_NAME
    dora.save_pretrained(tmp_path / "adapter")
    assert unsaved(dora, file) == []
    name = "base_model.model.model.layers.1.mlp.up_proj"
    with torch.no_grad():  # a step that comes after the save
        dora.get_submodule(f"{name}.lora_A.default").weight[0, 0] += 1e-6
    assert unsaved(dora, file) == [f"{name}.lora_A.weight: saved with other values than were trained"]
    edit(tmp_path / "adapter", lambda tensors: tensors.update({"strange": tensors.pop(f"{name}.lora_A.weight")}))
    assert unsaved(dora, file) == [f"{name}.lora_A.weight: trained, but not saved", "strange: saved, but not trained"]


def test_an_untrained_layer_read_from_a_file_keeps_the_magnitudes_of_the_file(dora: Any, tmp_path: Path) -> None:
    """They are the norms as the machine that trained computed them, which differ from this one's in the last bits."""
    for module in dora.modules():
        if getattr(module, "lora_magnitude_vector", None):
            module.lora_B["default"].weight.data.zero_()
            norms = module.get_base_layer().weight.data.norm(dim=1)
            module.lora_magnitude_vector["default"].weight.data = torch.nextafter(norms, 2 * norms)
    install(dora, saved=True)
    dora.save_pretrained(tmp_path / "adapter")
    install(dora, saved=True)
    assert unsaved(dora, tmp_path / "adapter" / WEIGHTS_NAME) == []
    install(dora)
    assert len(unsaved(dora, tmp_path / "adapter" / WEIGHTS_NAME)) == 14
