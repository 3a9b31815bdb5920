"""A run whose files have names full of signs: trained, resumed, found again, exported and opened."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import presets
from qdora_fast.config.loader import dump_config
from qdora_fast.recipes.chat import find
from qdora_fast.recipes.export import export
from qdora_fast.recipes.review import list_evaluations
from qdora_fast.recipes.train import train

NAME = """[bold]my [runs] #1 ~ 100% "x" 'y' ü * $HOME"""


def test_names_are_text_from_config_to_export(
    tiny_config: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / NAME
    shutil.copytree(tiny_base, folder / f"{NAME} base")
    monkeypatch.chdir(folder)
    rows = [f'{{"prompt": "What is {i}?", "completion": "The number after {i - 1}."}}\n' for i in range(40)]
    Path(f"{NAME}.jsonl").write_text("".join(rows))
    config = tiny_config(
        run={"dir": f"{NAME} runs", "name": None},
        model={"name": f"{NAME} base"},
        data={"path": f"{NAME}.jsonl"},
        train={"max_steps": 2, "save_steps": 1},
        evaluation={"max_rows": 0},
    )
    Path(f"{NAME}.yaml").write_text(dump_config(config))

    run = train(f"{NAME}.yaml")
    assert run.path == Path(f"{NAME} runs") / NAME
    assert shlex.split(capsys.readouterr().err.splitlines()[-1])[-2:] == ["chat", str(run.path)]  # to be copied
    (run.path / "finished.json").unlink()
    shutil.rmtree(run.checkpoints()[-1])
    assert train(f"{NAME}.yaml", resume="auto") == run
    assert [path.name for path in Path(f"{NAME} runs").iterdir()] == [NAME]

    report = export(run, to="adapter", out=f"{NAME} out")
    assert (Path(report["path"]) / "adapter_model.safetensors").is_file()
    assert find(run.path).trained is not None
    assert list_evaluations([f"{NAME} runs"]) == []
    assert presets.settings_of(Path(f"{NAME}.yaml"), {})[1] == NAME
