"""What is loaded is what was asked for: real NF4, the right layers, the right method; else refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from loaded_models import checked_base, loaded_base

from qdora_fast.models.loading import attach, parameter_report
from qdora_fast.system.errors import ConfigError, RefusedError


def _load(config):
    base = loaded_base(config)
    return base, attach(base, config.adapter, config.train)


@pytest.mark.parametrize("method", ["qdora", "dora", "qlora", "lora"])
def test_one_word_gives_the_method(tiny_config, method: str) -> None:
    from bitsandbytes.nn import Linear4bit

    base, model = _load(tiny_config(adapter={"method": method}))
    assert len(base.targets.modules) == 14
    layer = model.get_submodule(f"base_model.model.{base.targets.modules[0]}")
    assert isinstance(layer.base_layer, Linear4bit) == (method in ("qdora", "qlora"))
    assert bool(base.quantized_modules) == (method in ("qdora", "qlora"))
    assert not any("lm_head" in name for name in base.quantized_modules)
    report = parameter_report(model)
    assert bool(report.magnitude) == (method in ("qdora", "dora"))
    assert report.lora_a > 0
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_options_of_the_adapter_reach_it(tiny_config) -> None:
    settings = {"target_modules": ["q_proj", "down_proj"], "layers": "1", "rslora": True, "dropout": 0.1}
    _, model = _load(tiny_config(adapter=settings))
    peft = model.peft_config["default"]
    assert set(peft.target_modules) == {"q_proj", "down_proj"}
    assert (list(peft.layers_to_transform), peft.use_rslora, peft.lora_dropout) == ([1], True, 0.1)
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    assert layer.scaling["default"] == pytest.approx(8 / 4**0.5)


def test_a_tied_head_is_not_trained_whole(tiny_config, tiny_base: Path) -> None:
    with pytest.raises(RefusedError, match="shares its weights"):
        checked_base(tiny_config(adapter={"modules_to_save": ["lm_head"]}), str(tiny_base))


def test_train_mode_and_eval_mode_agree(tiny_config) -> None:
    """bitsandbytes repacks 4-bit weights in eval mode on some CPUs; DoRA's norm then read garbage."""
    _, model = _load(tiny_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        trained = model.train()(input_ids=ids).logits
        evaluated = model.eval()(input_ids=ids).logits
        again = model.train()(input_ids=ids).logits
    torch.testing.assert_close(evaluated, trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, trained, rtol=0, atol=0)


def test_every_4bit_layer_has_the_repacking_switched_off(tiny_config) -> None:
    from bitsandbytes.nn import Linear4bit

    base, _ = _load(tiny_config())
    layers = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_a_dora_model_refuses_to_be_saved_as_lora(tiny_config, tmp_path: Path) -> None:
    _, model = _load(tiny_config())
    with pytest.raises(RefusedError, match="merged_16bit"):
        model.save_pretrained_merged(str(tmp_path / "out"), save_method="lora")
    without = {k: v for k, v in model.state_dict().items() if "magnitude" not in k}
    with pytest.raises(RefusedError, match="magnitudes"):
        model.save_pretrained(str(tmp_path / "out"), state_dict=without)
    assert not (tmp_path / "out").exists()


def test_a_missing_base_is_one_clear_error(tiny_config) -> None:
    with pytest.raises(ConfigError, match=r"model.name: cannot read the config of `no/such-model`"):
        checked_base(tiny_config(), "no/such-model")


def test_a_4bit_base_needs_to_say_where_its_16bit_weights_are(tiny_base: Path, tiny_config, tmp_path: Path) -> None:
    folder = tmp_path / "four"
    shutil.copytree(tiny_base, folder)
    described = json.loads((folder / "config.json").read_text())
    described["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(RefusedError, match="model.base_16bit"):
        checked_base(tiny_config(export={"merge_base": "original16"}), str(folder))
    assert checked_base(tiny_config(), str(folder)).modules  # auto: merged into its 4-bit weights
    with pytest.raises(RefusedError, match="needs a 16-bit base"):
        checked_base(tiny_config(adapter={"method": "dora"}), str(folder))
    assert checked_base(tiny_config(export={"merge_base": "dequant4"}), str(folder)).modules
    settings = {"model": {"base_16bit": str(tiny_base)}, "export": {"merge_base": "original16"}}
    assert checked_base(tiny_config(**settings), str(folder)).modules
