"""The longest batch is tried on the real trainer and nothing changes; what does not fit is computed in parts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from heard import heard
from hypothesis import given
from hypothesis import strategies as st
from loaded_models import loaded_base

from qdora_fast.config.loader import dump_config
from qdora_fast.engine.patch import residency
from qdora_fast.models import loading as loading
from qdora_fast.models.loading import attach, fuse_layers
from qdora_fast.recipes import fit
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import OutOfMemory
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training.probe import CardMeter, Meter, Probed, longest_rows, meter_here, probe
from qdora_fast.training.state import read_state
from qdora_fast.training.trainer import build_trainer, choose_precision, make_recipe, sft_arguments

LENGTHS = [3 + 5 * row % 23 for row in range(24)]
ROWS = [[5 + (7 * row + 3 * place) % 60 for place in range(length)] for row, length in enumerate(LENGTHS)]


class Scale:
    """A meter whose peak is what the test says."""

    def __init__(self, *peaks: int) -> None:
        self.peaks, self.begun = list(peaks), 0

    def begin(self) -> None:
        self.begun += 1

    def peak(self) -> int:
        return self.peaks.pop(0) if self.peaks else 0

    def total(self) -> int:
        return 24 * 2**30


class Trial:
    """A tiny adapted model with what a probe needs."""

    def __init__(self, make: Any, **train: Any) -> None:
        self.config = make(train={"max_steps": 3, "batch_size": 4, "gradient_accumulation": 2, **train})
        base = loaded_base(self.config, precision=choose_precision(self.config.train))
        self.tokenizer = base.tokenizer
        self.model = attach(base, self.config.adapter, self.config.train)
        fuse_layers(self.model, self.config.engine)
        self.rows = Dataset.from_dict({"input_ids": ROWS, "labels": ROWS})
        self.held_out: Dataset | None = self.rows
        self.folder = Path(self.config.run.dir) / "checkpoints"
        self.recipe = make_recipe(
            self.config.train, rows=len(ROWS), tokens=sum(LENGTHS), max_length=128, precision=base.precision
        )
        self.seen: list[tuple[bool, tuple[int, int]]] = []
        self.limit = 10**9
        self.model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        shape = kwargs["input_ids"].shape
        self.seen.append((module.training, tuple(shape)))
        if shape.numel() > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {shape.numel()} GiB.")

    def probe(self, *peaks: int, meter: Meter | None = None, **options: Any) -> Probed:
        lengths = np.array(LENGTHS)
        return probe(
            self.model,
            self.tokenizer,
            self.config.train,
            self.recipe,
            (self.rows, self.held_out),
            (lengths, lengths),
            max_length=self.config.model.length,
            folder=self.folder,
            meter=meter or Scale(*peaks),
            estimated=partial(fit.estimated_step, self.config, self.config.model.name),
            **options,
        )

    def state(self) -> dict[str, Any]:
        """All that a probe must leave as it was."""
        return {
            "weights": {name: value.clone() for name, value in self.model.state_dict().items()},
            "gradients": [name for name, value in self.model.named_parameters() if value.grad is not None],
            "attributes": sorted(vars(self.model)),
            "modes": [module.training for module in self.model.modules()],
            "python": random.getstate(),
            "numpy": np.random.get_state()[1].tolist(),
            "torch": torch.get_rng_state(),
        }

    def train(self, folder: Path) -> dict[str, torch.Tensor]:
        """The run that follows."""
        arguments = sft_arguments(self.config.train, self.recipe, folder=folder, max_length=128, evaluates=True)
        torch.manual_seed(7)
        build_trainer(
            self.model,
            self.tokenizer,
            (self.rows, self.rows),
            self.config.train,
            recipe=self.recipe,
            arguments=arguments,
            callbacks=[],
        ).train()
        return {name: value.detach().clone() for name, value in self.model.named_parameters() if value.requires_grad}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "fp32"), ("paged_adamw_8bit", "bf16")])
def test_nothing_changes_and_the_run_that_follows_is_the_same(
    tiny_config: Any, tmp_path: Path, optimizer: str, precision: str
) -> None:
    settings = {"optimizer": optimizer, "precision": precision, "loraplus_ratio": 16}
    tried, other = (Trial(tiny_config, **settings) for _ in range(2))
    for trial in (tried, other):  # not the weights of a fresh adapter, of which half are zero
        generator = torch.Generator().manual_seed(0)
        for parameter in (p for p in trial.model.parameters() if p.requires_grad):
            parameter.data.add_(torch.rand(parameter.shape, generator=generator) * 0.01)
    tried.model.train()
    tried.model.base_model.model.model.layers[0].eval()
    before = tried.state()
    tried.probe(5)
    after = tried.state()
    assert before.keys() == after.keys()
    for part in before:
        assert _same(before[part], after[part]), part
    assert tried.model.forward.__func__ is type(tried.model).forward  # no wrapper is left on it
    assert _same(tried.train(tmp_path / "tried"), other.train(tmp_path / "other"))


def test_weights_are_put_back_whatever_an_optimizer_did_to_them(tiny_config: Any) -> None:
    trial = Trial(tiny_config)

    class Vandal(Scale):
        def peak(self) -> int:
            next(p for p in trial.model.parameters() if p.requires_grad).data.add_(1)
            return 0

    before = trial.state()
    trial.probe(meter=Vandal())
    assert all(_same(value, trial.state()[part]) for part, value in before.items())


def test_the_longest_rows_are_tried_in_training_and_in_evaluation_as_the_collator_makes_them(tiny_config: Any) -> None:
    trial = Trial(tiny_config)
    found = trial.probe(5)
    assert (found.rows, found.tokens, found.parts, found.eval_parts) == (4, max(LENGTHS), 1, 1)
    trained = [shape for training, shape in trial.seen if training]
    evaluated = [shape for training, shape in trial.seen if not training]
    longest = sorted(LENGTHS, reverse=True)
    assert trained == [(4, longest[first]) for first in (0, 4, 8, 12)]  # two micro-batches in each of two steps
    assert evaluated == [(4, longest[0])]


def test_where_unsloth_does_not_pack_the_longest_row_is_tried(tiny_config: Any) -> None:
    trial = Trial(tiny_config, batch_size=1)
    trial.recipe = replace(trial.recipe, packing=True)  # which Unsloth takes back on a CPU
    found = trial.probe(5)
    assert (found.rows, found.tokens) == (1, max(LENGTHS))
    assert trial.seen[0] == (True, (1, max(LENGTHS)))


def test_the_peak_is_the_higher_of_steps_and_evaluation_and_is_held_against_the_estimate(tiny_config: Any) -> None:
    trial = Trial(tiny_config)
    first, second = trial.probe(5 * 2**30, 3 * 2**30), trial.probe(2 * 2**30, 4 * 2**30)
    assert (first.peak_bytes, second.peak_bytes) == (5 * 2**30, 4 * 2**30)
    assert first.estimated_bytes is not None and 2**29 < first.estimated_bytes < 2**30  # most of it the CUDA context
    (said,) = first.summary()
    assert said.startswith(f"the longest batch, 4 x {max(LENGTHS)} tokens, was tried: peak 5.0 GiB (0.")
    assert said.endswith(" GiB estimated), 19.0 GiB left of 24.0 GiB")
    assert first.as_dict()["peak_bytes"] == first.peak_bytes


def test_what_does_not_fit_is_computed_in_parts_of_the_same_effective_batch(tiny_config: Any) -> None:
    trial = Trial(tiny_config)
    trial.limit = 2 * max(LENGTHS)
    before = trial.state()
    meter = Scale(5)
    found = trial.probe(meter=meter)
    assert (found.parts, found.eval_parts, found.given_back) == (2, 2, True)
    assert meter.begun == 4  # at first, and after each lack of memory: cached weights, halves, halves of the evaluation
    _, *said = found.summary()
    assert said == [
        "it does not fit beside cached merged weights, so none are cached",
        "micro-batches are computed in 2 parts: at once they do not fit; same rows a step",
        "held-out batches are computed in 2 parts: at once they do not fit; same rows a step",
    ]
    assert all(_same(value, trial.state()[part]) for part, value in before.items())


def test_rows_with_nan_and_no_held_out_rows_are_none_of_its_business(tiny_config: Any) -> None:
    trial = Trial(tiny_config, max_nonfinite=1)
    trial.held_out = None
    next(p for p in trial.model.parameters() if p.requires_grad).register_hook(lambda gradient: gradient * torch.nan)
    before = trial.state()
    assert trial.probe(5).parts == 1
    assert all(training for training, _ in trial.seen)
    assert all(_same(value, trial.state()[part]) for part, value in before.items())


def test_what_the_engine_may_keep_on_a_gpu_is_left_to_the_first_step(tiny_config: Any) -> None:
    trial = Trial(tiny_config)
    kept = residency(trial.model)
    assert kept is not None
    kept.release()
    kept.given_up, kept.later = "", True  # as it is on a GPU
    trial.probe(5)
    assert (kept.later, kept.layers) == (True, 0)


def test_what_does_not_fit_at_all_ends_before_anything_was_trained(tiny_config: Any) -> None:
    trial = Trial(tiny_config)
    trial.limit = max(LENGTHS) - 1
    before = trial.state()
    with pytest.raises(
        OutOfMemory, match="longest rows do not fit, so no step was made: memory ran out in step 1"
    ) as error:
        trial.probe(5)
    assert error.value.exit_code == 31
    assert "qdora-fast plan" in str(error.value)
    assert all(_same(value, trial.state()[part]) for part, value in before.items())


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), st.integers(1, 64))
def test_padded_batches_are_made_of_the_longest_rows(lengths: list[int], count: int) -> None:
    chosen = longest_rows(lengths, count, None)
    assert len(chosen) == len(set(chosen)) == min(count, len(lengths))
    assert sorted((lengths[row] for row in chosen), reverse=True) == sorted(lengths, reverse=True)[:count]
    assert lengths[chosen[0]] == max(lengths)


@given(st.lists(st.integers(1, 2048), min_size=1, max_size=300), st.integers(1, 8))
def test_packed_sequences_are_filled_by_rows_of_all_lengths(lengths: list[int], count: int) -> None:
    chosen = longest_rows(lengths, count, 2048)
    assert len(chosen) == len(set(chosen))
    enough = sum(lengths[row] for row in chosen) >= count * 2048
    assert enough or len(chosen) == len(lengths)
    assert max(lengths) in [lengths[row] for row in chosen]


def test_a_card_is_measured_with_what_is_beside_pytorch_and_held_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    share = 1.0
    figures = {
        "mem_get_info": lambda: (13, 24),  # free, total: 11 are in use
        "memory_reserved": lambda: 10,
        "max_memory_reserved": lambda: 15,
        "get_per_process_memory_fraction": lambda: share,
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)
    assert (CardMeter().peak(), CardMeter().total()) == (1 + 15, 24)
    share = 0.75
    assert CardMeter().total() == 1 + 18


def _here(monkeypatch: pytest.MonkeyPatch, limit: int = 10**9) -> None:
    """As if this machine had a GPU, on which training runs out of memory above `limit` tokens."""

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training and kwargs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def fuse(model: Any, *settings: Any) -> Any:
        model.register_forward_pre_hook(look, with_kwargs=True)
        return fuse_layers(model, *settings)

    monkeypatch.setattr(fit, "meter_here", lambda: Scale(5 * 2**30))
    monkeypatch.setattr(loading, "fuse_layers", fuse)


def _adapter(run: RunFolder) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def _events(run: RunFolder) -> list[str]:
    records = map(json.loads, run.metrics_file.read_text().splitlines())
    return [record["event"] for record in records if "event" in record]


def test_without_a_gpu_nothing_is_tried(short_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert meter_here() is None
    run = short_run()
    assert not (run.path / "fit.json").exists()
    assert "longest batch" not in capsys.readouterr().err


def test_the_probe_can_be_left_out(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _here(monkeypatch)
    run = train(tiny_config(train={"probe": False}))
    assert not (run.path / "fit.json").exists()


def test_an_error_of_the_probe_says_how_to_start_without_it(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Scale):
        def peak(self) -> int:
            raise RuntimeError("the driver does not say")

    monkeypatch.setattr(fit, "meter_here", Broken)
    with pytest.raises(RuntimeError, match="the driver does not say") as error:
        train(tiny_config())
    assert "train.probe: false starts without that" in error.value.__notes__[0]


def test_a_run_that_was_probed_learns_the_same_and_goes_on_the_same(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = {"batch_size": "auto", "gradient_accumulation": None, "effective_batch": 8}
    config = tiny_config(train={**batch, "save_steps": 2}, adapter={"dropout": 0.1})
    plain = train(config)
    _here(monkeypatch)
    run = train(config)
    assert _adapter(run) == _adapter(plain)
    fit = run.read_json("fit.json")
    assert (fit["asked"], fit["probe"]["parts"]) == (["train.batch_size"], 1)
    assert (fit["probe"]["peak_bytes"], fit["probe"]["total_bytes"]) == (5 * 2**30, 24 * 2**30)
    assert fit["probe"]["estimated_bytes"] > 0
    assert "Memory    the longest batch, " in capsys.readouterr().err
    for late in run.checkpoints()[1:]:  # as if stopped after the first checkpoint
        late.rename(late.with_name(f"gone-{late.name}"))
    resumed = train(config, resume=True)
    assert resumed.path == run.path
    assert "the longest batch, " in capsys.readouterr().err
    assert _adapter(resumed) == _adapter(plain)
    assert resumed.read_json("fit.json") == fit


def test_a_run_whose_longest_batch_does_not_fit_begins_in_parts(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(engine={"resident": "off"})
    _here(monkeypatch)
    longest = train(config).read_json("fit.json")["probe"]["tokens"]
    _here(monkeypatch, limit=2 * longest)
    capsys.readouterr()
    run = train(config)
    assert run.read_json("fit.json")["probe"]["parts"] == 2
    assert "micro-batches are computed in 2 parts" in capsys.readouterr().err
    assert _events(run) == []  # no step of training had to be repeated
    assert read_state(run.checkpoints()[-1])["micro_parts"] == 2


def test_a_run_of_which_no_row_fits_ends_before_anything_was_trained(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    _here(monkeypatch, limit=1)
    with pytest.raises(OutOfMemory, match=r"(?s)no step was made: .*one row of .*qdora-fast plan") as ended:
        train(config)
    assert ended.value.exit_code == 31
    run = RunFolder(Path(config.run.dir) / "tiny")
    assert run.checkpoints() == []
    assert not run.adapter.exists() and not run.metrics_file.exists()
    assert not (run.path / "fit.json").exists()


SEVERAL = """
import sys
from qdora_fast.recipes import fit
from qdora_fast.models.backend import open_backend
from qdora_fast.recipes.train import train
open_backend()
fit.meter_here = lambda: "a GPU"
train(sys.argv[1])
"""


def test_with_several_processes_nothing_is_tried(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "meter_here", lambda: Scale(5 * 2**30))
    monkeypatch.setenv("WORLD_SIZE", "2")
    nothing: Any = None
    with heard() as out:
        assert fit._try_longest(nothing, nothing, tiny_config(), nothing, nothing, nothing, nothing) is None
    assert "the longest batch is not tried before step 1 with several processes" in out.getvalue()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_several_processes_are_told_once_that_nothing_is_tried(tiny_config: Any, tmp_path: Path) -> None:
    script, file = tmp_path / "several.py", tmp_path / "tiny.yaml"
    script.write_text(SEVERAL)
    file.write_text(dump_config(tiny_config(train={"gradient_accumulation": 2, "max_steps": 1})))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the longest batch is not tried before step 1 with several processes") == 1
