"""Two processes learn what one learns; when one dies all end, and the last checkpoint is gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from qdora_fast.config import Config
from qdora_fast.config.loader import dump_config
from qdora_fast.recipes.train import train
from qdora_fast.system import distributed
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.manifest import problems
from qdora_fast.system.run_folder import RunFolder


def test_alone_nothing_is_shared_and_nobody_is_waited_for() -> None:
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    with distributed.process_group(), distributed.main_process_first():
        distributed.barrier()
        assert distributed.all_gather("mine") == ["mine"]
        assert (distributed.broadcast("mine"), distributed.all_reduce_max(3), distributed.accumulation_per_rank(7)) == (
            "mine",
            3,
            7,
        )


def test_the_effective_batch_is_kept_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.accumulation_per_rank(8) == 2
    with pytest.raises(ConfigError, match=r"gradient_accumulation: 6 .* 4 processes; take a multiple of 4"):
        distributed.accumulation_per_rank(6)


def _launch(config: Config, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    file = folder / "tiny.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "qdora_fast", "train", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def _second(parent: int) -> psutil.Process:
    """The process of rank 1."""
    workers = psutil.Process(parent).children(recursive=True)
    return next(worker for worker in workers if worker.environ().get("RANK") == "1")


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_two_processes_learn_what_one_does_though_one_dies(dies: bool, tiny_config: Any, tmp_path: Path) -> None:
    steps = 20 if dies else 6
    settings = {"max_steps": steps, "batch_size": 3, "gradient_accumulation": 2, "save_steps": 1, "eval_steps": steps}
    config = tiny_config(train=settings, adapter={"dropout": 0.0})
    one = train(config)
    run = RunFolder(one.path.parent / "tiny-2")
    last = _stopped_by_a_death(config, run, tmp_path) if dies else None
    launched = _launch(config, tmp_path, *(["--auto-resume"] if dies else []))
    printed, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0, printed
    assert last is None or f"resuming from {last}" in printed
    assert printed.count(f"Trained   {steps} steps") == 1, "the first process speaks for all"
    ours, theirs = _weights(one), _weights(run)
    assert ours.keys() == theirs.keys()
    assert max(float((theirs[key] - ours[key]).norm() / ours[key].norm()) for key in ours) < 1e-5
    records = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r][-1] == steps


def _stopped_by_a_death(config: Any, run: RunFolder, folder: Path) -> str:
    """Start the run and kill its second process after three checkpoints; the name of the last complete one."""
    killed = _launch(config, folder)
    assert _appears(run.path / "checkpoints" / "checkpoint-3")
    _second(killed.pid).kill()
    killed.communicate(timeout=300)
    assert killed.returncode != 0
    assert not run.adapter.exists()
    complete = [path for path in run.checkpoints() if not problems(path)]
    assert complete
    return complete[-1].name


def _appears(path: Path, seconds: float = 240) -> bool:
    until = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return path.exists()
