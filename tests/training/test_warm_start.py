"""A new run can start from a trained adapter's weights, and from nothing else of it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from qdora_fast.recipes.train import train
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def test_a_run_starts_where_another_ended(tiny_config, capsys) -> None:
    first = train(tiny_config())
    still = train(tiny_config(adapter={"init_adapter": str(first.path)}, train={"learning_rate": 1e-12}))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*map(_values, (first, still)), strict=True))
    fresh = train(tiny_config(train={"learning_rate": 1e-12}))
    assert not all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*map(_values, (first, fresh)), strict=True))
    said = capsys.readouterr().err
    assert "starts from the weights of" in said
    assert "start anew" in said


def _values(run: RunFolder) -> list[torch.Tensor]:
    return [value for _, value in sorted(_weights(run).items())]


def test_another_form_is_refused_and_each_difference_named(tiny_config) -> None:
    first = train(tiny_config(adapter={"method": "qlora"}))
    other = tiny_config(adapter={"init_adapter": str(first.adapter), "alpha": 16})
    with pytest.raises(ConfigError, match=r"DoRA: False there, True here; alpha: 8\.0 there, 16"):
        train(other)
    narrower = {"method": "qlora", "target_modules": ["q_proj"], "init_adapter": str(first.adapter)}
    with pytest.raises(ConfigError, match="adapted layers: 14 there, 2 here"):
        train(tiny_config(adapter=narrower))
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        train(tiny_config(adapter={"init_adapter": str(first.path / "data")}))
