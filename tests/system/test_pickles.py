"""Nothing is unpickled: each place where a pickle could be given is given one that leaves a mark when it is read."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaded_models import checked_base

from qdora_fast.config.data import SourceSettings
from qdora_fast.data.clean.quality import load_scores
from qdora_fast.data.read.sources import open_source
from qdora_fast.exports.merge.base import BaseWeights, MergeRecipe
from qdora_fast.exports.verify.recording import reopen
from qdora_fast.models.adapter import read_adapter
from qdora_fast.models.loading import load_base
from qdora_fast.recipes.chat import load
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import QdoraError


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Any:
    """A folder that is there once a pickle was read; after the test it must not be."""
    path = tmp_path / "a-pickle-was-read"
    yield path
    assert not path.exists()


def test_such_a_pickle_does_leave_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pt", "pth", "bin", "joblib", "dill", "npy", "npz", "py", "PKL"])
def test_data_that_is_a_program_is_refused_by_its_ending(ending: str, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{ending}"
    file.write_bytes(pickle.dumps([Malicious(mark)]))
    with pytest.raises(QdoraError, match="nothing is executed from a data set"):
        open_source(SourceSettings(path=str(file)))


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "jsonl.zst"])
def test_a_pickle_under_another_ending_is_no_data(ending: str, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{ending}"
    file.write_bytes(pickle.dumps([Malicious(mark)]))
    with pytest.raises(QdoraError):
        list(open_source(SourceSettings(path=str(file))).rows())


def test_a_folder_with_a_loading_script_is_read_without_it(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    (folder / "rows.pkl").write_bytes(pickle.dumps(Malicious(mark)))
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    source = open_source(SourceSettings(path=str(folder)))
    assert len(list(source.rows())) == 1
    assert set(source.report().skipped) == {"rows.pkl", "rows.py"}


def test_kept_scores_are_never_objects(mark: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.array([Malicious(mark)], dtype=object), allow_pickle=True)
    assert load_scores(tmp_path / "scores.npy") is None


def test_a_pickled_adapter_is_refused(mark: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
    torch.save({"x": Malicious(mark)}, tmp_path / "adapter_model.bin")
    with pytest.raises(QdoraError, match="its weights are a pickle"):
        read_adapter(tmp_path)


def test_pickled_weights_of_a_base_are_refused_wherever_a_base_is_read(
    mark: Path, tmp_path: Path, tiny_base: Path, tiny_config: Any
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"x": Malicious(mark)}, folder / "pytorch_model.bin")
    config, targets = tiny_config(model={"name": str(folder)}), checked_base(tiny_config())
    for read in (
        lambda: checked_base(config),
        lambda: load_base(str(folder), config.model, config.adapter, config.train, targets=targets, precision="fp32"),
        lambda: BaseWeights(folder, MergeRecipe()),
        lambda: load(folder),
    ):
        with pytest.raises(QdoraError, match="its weights are pickles"):
            read()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        reopen(folder, device="cpu")


def test_resuming_reads_no_pickle_that_was_put_into_a_checkpoint(mark: Path, tiny_config: Any) -> None:
    config = tiny_config(train={"max_steps": 2, "save_steps": 1}, evaluation={"max_rows": 0})
    run = train(config)
    first, last = run.checkpoints()
    shutil.rmtree(last)
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "scaler.pt",
        "pytorch_model.bin",
        "adapter_model.bin",
    ):
        torch.save({"x": Malicious(mark)}, first / name)
    assert train(config, resume=True).path == run.path
    assert not [file for file in run.path.rglob("*") if file.suffix in (".bin", ".pt", ".pth") and file.parent != first]
