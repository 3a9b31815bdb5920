"""The one-liner for other people's training scripts: any PEFT model, settings checked, one report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qdora_fast
from qdora_fast.system.errors import ConfigError


def _model(method: str = "dora", *, seed: int = 0) -> Any:
    """What a script of their own makes: nothing of ours in it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 8))
    return get_peft_model(base, LoraConfig(r=4, target_modules=["0", "2"], use_dora=method == "dora"))


def _trained(model: Any, steps: int = 5) -> list[float]:
    losses = []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    x, y = (torch.randn(16, n, generator=torch.Generator().manual_seed(n)) for n in (48, 8))
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", ["dora", "lora"])
def test_a_script_trains_the_same_with_one_more_line(method: str) -> None:
    expected = _trained(_model(method))
    model = _model(method)
    report = qdora_fast.fuse(model, quiet=True)
    assert (report.layers, report.skipped) == (2, {})
    assert _trained(model) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]


def test_unfuse_gives_the_model_back() -> None:
    model = _model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    classes = [type(module) for module in model.modules()]
    qdora_fast.fuse(model, quiet=True)
    assert [type(module) for module in model.modules()] != classes
    qdora_fast.unfuse(model)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    qdora_fast.unfuse(model)  # nothing to do is no error


def test_the_report_is_printed_once_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    qdora_fast.fuse(_model())
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("torch: 2 of 2 layers fused") == 1


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert qdora_fast.fuse(_model(), quiet=True).layers == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"impl": "cuda"}, "impl"),
        ({"resident": -1}, "resident"),
        ({"form": "both"}, "form"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"impl": "cuda", "form": "both"}, "impl.*form"),  # every problem at once
    ],
)
def test_wrong_settings_are_the_users_error(settings: dict[str, Any], said: str) -> None:
    model = _model()
    with pytest.raises(ConfigError, match=rf"qdora_fast.fuse: .*{said}"):
        qdora_fast.fuse(model, **settings)
    assert not any(hasattr(module, "fused") for module in model.modules())


def test_settings_reach_the_engine() -> None:
    assert qdora_fast.fuse(_model(), quiet=True, impl="off").impl == "off"
    assert qdora_fast.fuse(_model(), quiet=True, impl="reference").impl == "reference"
    assert qdora_fast.fuse(_model(), quiet=True, resident="off").resident_layers == 0
    assert qdora_fast.fuse(_model(), quiet=True, resident=1.0).resident_layers == 2


def test_a_model_without_adapters_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="no LoRA layers"):
        qdora_fast.fuse(nn.Sequential(nn.Linear(4, 4)), quiet=True)


def test_require_is_the_users_error_when_something_is_left_to_peft() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 4)), LoraConfig(r=2, target_modules=["0", "1"])
    )
    with pytest.raises(ConfigError, match=r"engine.require: .*Embedding"):
        qdora_fast.fuse(model, quiet=True, require=True)
    assert qdora_fast.fuse(model, quiet=True).layers == 1


def test_the_adapter_saves_and_loads_as_pefts(tmp_path: Path) -> None:
    from peft import PeftModel

    model = _model()
    qdora_fast.fuse(model, quiet=True)
    _trained(model)
    x = torch.randn(4, 48)
    expected = model(x)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(_model().unload(), str(tmp_path))
    torch.testing.assert_close(opened(x), expected, rtol=1e-5, atol=1e-6)


def test_it_is_public_and_its_import_is_light() -> None:
    assert qdora_fast.fuse.__module__ == "qdora_fast.recipes.fuse" and callable(qdora_fast.unfuse)
    import subprocess

    code = "import qdora_fast, sys; assert not {'torch', 'peft', 'unsloth'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
