"""An adapter from elsewhere becomes a run that exports and answers; a broken one becomes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import adapt, load, tensors_of

from qdora_fast.config.recorded import read_config
from qdora_fast.models.run_info import read_run_info
from qdora_fast.recipes.chat import load as open_for_chat
from qdora_fast.recipes.evaluate import evaluate
from qdora_fast.recipes.export import export
from qdora_fast.recipes.import_adapter import import_adapter
from qdora_fast.system.errors import ConfigError, IntegrityError, QdoraError
from qdora_fast.system.run_folder import RunFolder

Foreign = Callable[..., Path]


@pytest.fixture
def foreign(tiny_base: Path, tmp_path: Path) -> Foreign:
    """A function that writes an adapter with PEFT alone, as other tools do."""

    def make(name: str = "theirs", **lora: Any) -> Path:
        adapt(load(tiny_base), **{"use_dora": True, **lora}).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def importing(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`import_adapter` with the run below the test's folder."""
    runs = f"run.dir={tmp_path / 'runs'}"
    return lambda folder, *overrides, **given: import_adapter(folder, overrides=[runs, *overrides], **given)


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Change the tensors of an adapter."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def test_it_becomes_a_run_that_exports_what_peft_merges(foreign, importing, tiny_base: Path) -> None:
    from peft import PeftModel

    folder = foreign(r=4, lora_alpha=12)
    report = importing(folder)
    assert report["method"] == "dora" and report["layers"] == 14 and report["shapes_compared"]
    assert (report["r"], report["alpha"]) == (4, 12)
    run = RunFolder.open(report["path"])
    assert read_config(run).adapter.alpha == 12

    exported = export(run)
    assert exported["proof"]["passed"] and exported["proof"]["held_out"] is False
    theirs = PeftModel.from_pretrained(load(tiny_base), folder).merge_and_unload().state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(tensors_of(Path(exported["path"]))[name].float(), theirs[name], atol=4e-3, rtol=8e-3)

    words = open_for_chat(run.path).source.vocabulary
    assert "### Instruction:" in words.tokenizer.chat_template and words.tokenizer.eos_token_id in words.stop_ids


def test_dora_without_magnitudes_is_refused_and_peft_only_warns(foreign, importing, tiny_base, tmp_path) -> None:
    from peft import PeftModel

    lossy = spoil(foreign(), lambda all_: {key: each for key, each in all_.items() if "magnitude" not in key})
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(load(tiny_base), lossy)
    with pytest.raises(IntegrityError, match="without any magnitude.*PEFT loads them with a warning") as caught:
        importing(lossy)
    assert caught.value.exit_code == 41
    assert not (tmp_path / "runs").exists()


def _with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    key = min(key for key in tensors if "lora_B" in key)
    tensors[key][0, 0] = torch.nan
    return tensors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with_nan, "NaN or infinity"),
        (lambda all_: {key: each for key, each in all_.items() if "layers.0.mlp.up_proj.lora_m" not in key}, "missing"),
        (lambda all_: {key: each for key, each in all_.items() if "layers.0.mlp.up_proj" not in key}, "1 layers are"),
    ],
)
def test_a_damaged_one_becomes_no_run(foreign, importing, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        importing(spoil(foreign(), change))
    assert not (tmp_path / "runs").exists()


def test_what_is_no_adapter_is_said(foreign, importing, tmp_path: Path, tiny_base: Path) -> None:
    folder = foreign()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match="pickle"):
        importing(folder)
    with pytest.raises(ConfigError, match="no adapter_config.json"):
        importing(tiny_base)
    run = importing(foreign("again"))["path"]
    with pytest.raises(ConfigError, match="is a run already"):
        importing(run)


def test_a_base_on_another_machine_is_given_by_hand(foreign, importing, tiny_base: Path) -> None:
    folder = foreign()
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/root/llama"}))
    with pytest.raises(ConfigError, match=r"/root/llama.*--base"):
        importing(folder)
    run = RunFolder.open(importing(folder, base=str(tiny_base))["path"])
    assert json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_base)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="names no base"):
        importing(folder)


def test_the_bits_of_the_base_are_taken_from_its_name_or_said(foreign, importing, tiny_base: Path, tmp_path) -> None:
    shutil.copytree(tiny_base, tmp_path / "tiny-bnb-4bit")
    assert importing(foreign(), base=str(tmp_path / "tiny-bnb-4bit"))["method"] == "qdora"
    report = importing(foreign(), "adapter.method=qdora")
    assert report["method"] == "qdora"
    made = RunFolder.open(report["path"]).read_json("model.json")
    assert set(made["targets"]) == set(made["quantized_modules"])
    assert export(report["path"])["proof"]["passed"]  # within the 4-bit noise that is measured then


def test_given_rows_prove_exports_and_are_evaluated(foreign, importing, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    facts = [("Chad", "N'Djamena"), ("Peru", "Lima"), ("Mali", "Bamako"), ("Cuba", "Havana"), ("Iraq", "Baghdad")]
    rows.write_text(
        "".join(json.dumps({"instruction": f"Capital of {a}?", "output": f"It is {b}."}) + "\n" for a, b in facts)
    )
    report = importing(
        foreign(),
        "evaluation.max_new_tokens=4",
        "evaluation.completions=0",
        "data.filters.min_tokens=1",
        data=str(rows),
    )
    assert report["rows"] == 5
    assert export(report["path"])["proof"]["held_out"] is True
    found = evaluate(report["path"])
    assert found["task"]["n"] == 5 and found["dataset"]["train"] == 0


def test_the_template_that_came_with_it_is_the_run_s(foreign, importing, tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    folder = foreign()
    theirs = AutoTokenizer.from_pretrained(tiny_base)
    theirs.chat_template = "{% for each in messages %}<{{ each.role }}>{{ each.content }}{{ eos_token }}{% endfor %}"
    theirs.eos_token = "<pad>"  # some tools end answers with another token than the base does
    theirs.save_pretrained(folder)
    report = importing(folder)
    assert not report["template_assumed"]
    run = RunFolder.open(report["path"])
    kept = AutoTokenizer.from_pretrained(run.adapter)
    assert (kept.chat_template, kept.eos_token) == (theirs.chat_template, "<pad>")
    assert Path(read_config(run).data.template).read_text() == theirs.chat_template
    assert {theirs.eos_token_id, AutoTokenizer.from_pretrained(tiny_base).eos_token_id} <= {
        *read_run_info(run).stop_ids
    }

    theirs.add_tokens(["<turn>"])
    theirs.chat_template = "<turn>" + theirs.chat_template
    theirs.save_pretrained(folder)
    with pytest.raises(IntegrityError, match="its chat template uses '<turn>', which was added"):
        importing(folder)
    assert len(list(Path(report["path"]).parent.iterdir())) == 1  # nothing is left of the second


def test_an_export_of_ours_says_its_method_and_notices_damage(short_run, importing, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    export(short_run(), to="adapter", out=copy)
    assert importing(copy)["method"] == "qdora"
    (copy / "config.yaml").write_text("train: {}\n")
    with pytest.raises(QdoraError, match=r"not as it was exported: .*config.yaml"):
        importing(copy)
