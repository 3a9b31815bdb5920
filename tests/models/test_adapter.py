"""Reading adapters: scales as PEFT has them, and every kind of damage refused by name."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from breadth import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_checkpoints import LINEARS, adapt, load, load_in_4bit, save_adapter_for, save_base

from qdora_fast.models import adapter_guard
from qdora_fast.models.adapter import (
    assert_complete,
    load_into,
    read_adapter,
    save_adapter,
)
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.manifest import sha256_of

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound DoRA adapter. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("whole")
    save_adapter_for(save_base(folder / "base"), folder / "adapter", use_dora=True)
    return folder / "adapter"


def change(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of an adapter with other settings in its config."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "lora_alpha": 12},
        {"r": 16, "use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 48, "o_proj": 3}},
        {"use_rslora": True, "rank_pattern": {"layers.0.*.v_proj": 4}},
    ],
)
def test_scales_ranks_and_tensors_are_peft_s(lora: dict[str, Any], tmp_path: Path) -> None:
    live = adapt(load(save_base(tmp_path / "base")), use_dora=True, **lora)
    live.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.use_dora and len(adapter.modules) == LINEARS
    for name, module in adapter.modules.items():
        layer = live.get_submodule(PREFIX + name)
        assert adapter.modules[name].scaling == pytest.approx(layer.scaling["default"])
        assert torch.equal(module.lora_a, layer.lora_A["default"].weight)
        assert torch.equal(module.lora_b, layer.lora_B["default"].weight)
        assert module.magnitude is not None
        assert torch.equal(module.magnitude, layer.lora_magnitude_vector["default"].weight)


def test_modules_trained_in_full_are_listed_and_read_by_rows(tmp_path: Path) -> None:
    live = adapt(load(save_base(tmp_path / "base")), modules_to_save=["lm_head"])
    live.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert not adapter.use_dora
    assert adapter.saved_modules == {"lm_head.weight": (96, 64)}
    trained = live.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(adapter.saved_rows("lm_head.weight", 3, 9), trained[3:9])


def test_a_whole_adapter_passes(whole: Path) -> None:
    modules = read_adapter(whole).modules
    assert_complete(whole, decomposed=True)
    assert_complete(whole, expected_modules=modules, decomposed=True)
    with pytest.raises(IntegrityError, match=r"lm_head: was trained but is not in the file"):
        assert_complete(whole, expected_modules=[*modules, "lm_head"], decomposed=True)
    with pytest.raises(IntegrityError, match=r"model.layers.0.mlp.down_proj: in the file but was not trained"):
        assert_complete(whole, expected_modules=modules.keys() - {"model.layers.0.mlp.down_proj"}, decomposed=True)
    with pytest.raises(IntegrityError, match="use_dora is True, but False was trained"):
        assert_complete(whole, decomposed=False)


def test_plain_lora_is_not_dora(tmp_path: Path) -> None:
    save_adapter_for(save_base(tmp_path / "base"), tmp_path / "adapter", use_dora=False)
    assert_complete(tmp_path / "adapter", decomposed=False)
    with pytest.raises(IntegrityError, match="use_dora is False, but True was trained"):
        assert_complete(tmp_path / "adapter", decomposed=True)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_one_damaged_tensor_is_named(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    bad = change(whole, tmp_path / "bad")
    tensors = load_file(bad / "adapter_model.safetensors")
    key = data.draw(st.sampled_from(sorted(tensors)))
    damage = data.draw(st.sampled_from(["gone", "nan", "inf", "shape", "empty", "negative", "zero"]))
    if damage == "gone":
        del tensors[key]
    elif damage == "shape":
        tensors[key] = tensors[key][:-1].clone()
    elif damage == "empty":
        tensors[key] = torch.empty(0)
    elif damage in ("negative", "zero"):
        key = key.split(".lora_")[0] + ".lora_magnitude_vector"
        tensors[key][data.draw(st.integers(0, len(tensors[key]) - 1))] *= -1 if damage == "negative" else 0
    else:
        flat = tensors[key].view(-1)
        flat[data.draw(st.integers(0, len(flat) - 1))] = float(damage)
    save_file(tensors, bad / "adapter_model.safetensors", metadata={"format": "pt"})
    layer = key.removeprefix(PREFIX).split(".lora_")[0]
    with pytest.raises(IntegrityError, match=layer):
        assert_complete(bad, decomposed=True)


def test_magnitudes_without_dora_and_dora_without_magnitudes(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="a magnitude, but the adapter says use_dora: false"):
        read_adapter(change(whole, tmp_path / "bad", use_dora=False))
    bad = change(whole, tmp_path / "bad")
    kept = {k: v for k, v in load_file(bad / "adapter_model.safetensors").items() if "magnitude" not in k}
    save_file(kept, bad / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=r"lora_magnitude_vector: missing[\s\S]*and 9 more"):
        assert_complete(bad, decomposed=True)


def test_the_checks_survive_python_o() -> None:
    """`python -O` removes asserts; starting one takes 8 s, so the source is read instead."""
    tree = ast.parse(Path(adapter_guard.__file__).read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("target_parameters", ["experts.w1"]),
        ("layer_replication", [[0, 1]]),
        ("use_qalora", True),
        ("peft_type", "LOHA"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(field: str, value: Any, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"`{field}: "):
        read_adapter(change(whole, tmp_path / "bad", **{field: value}))


def test_tensors_of_another_kind_are_refused(whole: Path, tmp_path: Path) -> None:
    for stray in ("base_model.model.model.embed_tokens.lora_embedding_A", "something.else"):
        bad = change(whole, tmp_path / "bad")
        tensors = load_file(bad / "adapter_model.safetensors")
        save_file(tensors | {stray: torch.zeros(2)}, bad / "adapter_model.safetensors")
        with pytest.raises(ConfigError, match=stray):
            read_adapter(bad)


def test_files_that_are_not_an_adapter(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the folder of a PEFT adapter"):
        read_adapter(tmp_path)
    bad = change(whole, tmp_path / "bad")
    (bad / "adapter_model.safetensors").write_bytes((whole / "adapter_model.safetensors").read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="not a complete safetensors file"):
        read_adapter(bad)
    (bad / "adapter_model.safetensors").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        read_adapter(bad)
    (bad / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickle"):
        read_adapter(bad)
    with pytest.raises(IntegrityError, match="says 3; config and weights are of two adapters"):
        read_adapter(change(whole, tmp_path / "bad", r=3))


def test_saving_gives_back_what_was_in_memory_in_fp32(tmp_path: Path) -> None:
    live = adapt(load_in_4bit(save_base(tmp_path / "base"), torch.bfloat16), use_dora=True)
    for name, parameter in live.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.bfloat16()
    folder = tmp_path / "run" / "adapter"
    save_adapter(live, folder)
    assert len(read_adapter(folder).modules) == LINEARS
    digest = sha256_of(folder / "adapter_model.safetensors")
    assert {t.dtype for t in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["adapter"]
    save_adapter(live, folder)  # an adapter may be replaced
    assert sha256_of(folder / "adapter_model.safetensors") == digest
    with pytest.raises(ConfigError, match="already exists"):
        save_adapter(live, tmp_path / "base")  # anything else may not


@pytest.mark.parametrize("kind", ["lora_A", "lora_B", "lora_magnitude_vector", "lm_head"])
def test_a_saved_adapter_goes_back_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    """What a resumed run does: a tensor that is missing, or one too many, must not leave a freshly made one trained."""
    base = save_base(tmp_path / "base")
    folder, file = tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"
    save_adapter(adapt(load(base), use_dora=True, modules_to_save=["lm_head"]), folder)
    live = adapt(load(base), use_dora=True, modules_to_save=["lm_head"], b_std=0.3, moved=0.3)
    load_into(live, folder)
    save_adapter(live, tmp_path / "again")
    assert sha256_of(tmp_path / "again" / "adapter_model.safetensors") == sha256_of(file)
    tensors = load_file(file)
    gone = next(name for name in tensors if kind in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, file)
    with pytest.raises(IntegrityError, match=kind):
        load_into(live, folder)
    save_file({**tensors, gone.replace("base_model.model.", "base_model.model.other."): tensors[gone].clone()}, file)
    with pytest.raises(IntegrityError, match="do not match"):
        load_into(live, folder)


def test_a_broken_model_does_not_replace_a_good_adapter(tmp_path: Path) -> None:
    live = adapt(load(save_base(tmp_path / "base")), use_dora=True)
    save_adapter(live, tmp_path / "adapter")
    good = sha256_of(tmp_path / "adapter/adapter_model.safetensors")
    live.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(IntegrityError, match=r"model.layers.1.mlp.up_proj.lora_B: NaN or infinity"):
        save_adapter(live, tmp_path / "adapter")
    assert sha256_of(tmp_path / "adapter/adapter_model.safetensors") == good
