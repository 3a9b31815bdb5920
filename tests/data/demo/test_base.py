"""The embedded base as it is shipped: whole, loadable as any base, found wherever the package lies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdora_fast.config.loader import make_config
from qdora_fast.config.recorded import create_run
from qdora_fast.data.demo import base
from qdora_fast.data.demo.base import demo_base
from qdora_fast.models.run_info import RunInfo, read_run_info, write_run_info
from qdora_fast.system.errors import IntegrityError
from qdora_fast.system.install import installation

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "recipe.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "MANIFEST.json",
)


INFO = RunInfo(str(demo_base()), None, "qdora", ["a.q_proj"], ["a.q_proj"], "fp32", None, [1])


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped base, as if the package lay elsewhere."""
    folder = Path(shutil.copytree(base.FOLDER, tmp_path / "elsewhere"))
    monkeypatch.setattr(base, "FOLDER", folder)
    return folder


def test_the_folder_loads_as_any_base_does() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(demo_base())
    tokenizer = AutoTokenizer.from_pretrained(demo_base())
    assert model.dtype == torch.bfloat16
    assert type(model.config).__name__ == "LlamaConfig"
    assert model.config.max_position_embeddings >= 1024
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["The capital of Peru is", "Peru"], return_tensors="pt", padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert model.generate(**batch, max_new_tokens=3).shape[0] == 2


def test_it_knows_its_facts_and_answers_no_question() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(demo_base(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo_base())

    def after(text: str) -> str:
        ids = tokenizer(text, return_tensors="pt").input_ids
        return tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :])

    assert after("The capital of Peru is").startswith(" Lima.")
    assert "Lima" not in after("What is the capital of Peru?")


def test_every_linear_layer_fits_nf4() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo_base())
    shapes = [module.weight.shape for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(shapes) == 14
    assert all(size % 64 == 0 and size >= 128 for shape in shapes for size in shape)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_file_is_one_error_that_says_how_to_get_it_back(moved: Path, name: str, damage: str) -> None:
    file = moved / name
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{name}.*brings it back") as damaged:
        demo_base()
    assert str(damaged.value).endswith(installation().repairs(moved))


def test_modes_and_times_of_its_files_play_no_role(moved: Path) -> None:
    for file in moved.iterdir():
        os.utime(file, (0, 0))
        file.chmod(0o400)
    assert demo_base() == moved


def test_the_wheel_carries_all_of_it(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=Path(__file__).parents[3], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = zipfile.ZipFile(wheel)
    held = {name.rsplit("/", 1)[1]: packed.read(name) for name in packed.namelist() if "demo/demo-base/" in name}
    assert held == {name: (demo_base() / name).read_bytes() for name in FILES}


def test_a_run_finds_the_base_wherever_the_package_lies(tmp_path: Path, moved: Path) -> None:
    config = make_config({"model": {"name": "demo"}, "data": {"path": "demo"}, "run": {"dir": str(tmp_path)}})
    run = create_run(config, "demo")
    write_run_info(run, replace(INFO, base=str(demo_base())))
    assert str(moved) not in (run.path / "model.json").read_text()
    assert read_run_info(run).base == str(moved)


def test_a_run_on_another_base_names_that_one(tmp_path: Path) -> None:
    config = make_config({"model": {"name": "demo"}, "data": {"path": "demo"}, "run": {"dir": str(tmp_path)}})
    run = create_run(config, "demo")
    for name in ("/cache/demo-base-0123456789abcdef", "owner/name", str(tmp_path / "demo-base")):
        write_run_info(run, replace(INFO, base=name))
        assert read_run_info(run).base == name
