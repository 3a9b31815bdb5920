"""The same faults on the plain Trainer of transformers with PEFT's DoRA, for the numbers beside ours.

A script as its documentation has it: save every step, and when it is started again go on from what
`get_last_checkpoint` finds. The base is a small Llama in fp32, not quantised: that changes nothing of
how it saves and goes on. Unsloth is not imported, since it changes the Trainer. A trial passes if the
adapter at the end is, bit for bit, the uninterrupted run's.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from faults.lab import STEPS, Lab, sha256
from faults.trial import Group, Trial
from faults.victim import Ended, Lost, Victim, require, start

_FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_MISSING = (*_FILES, "adapter_config.json")


def prepare(folder: Path) -> Lab:
    """Import what is needed into this process, and make the run that nothing happens to."""
    import peft  # noqa: F401 - once here instead of in every fork
    import torch
    from transformers import Trainer  # noqa: F401

    torch.set_num_threads(1)
    lab = Lab(folder)
    begin = folder / "begin.txt"
    ended = _run(folder / "untouched", begin=begin).wait().require(0)
    (folder / "window.txt").write_text(f"{begin.read_text()} {ended.cpu}")
    return lab


def kill(trial: Trial) -> None:
    """SIGKILL at any moment, with a save at each step."""
    victim, run = _run(trial.folder / "run"), trial.folder / "run"
    share = trial.random.random()
    struck = victim.strike(signal.SIGKILL, at=_moment(trial, share))
    trial.note = f"at {share:.0%}" + ("" if struck else " (it had ended)")
    victim.wait()
    _go_on(trial, run)


def flip(trial: Trial) -> None:
    """One bit in one of the files of the newest checkpoint."""
    run, newest = _half(trial)
    file = newest / _FILES[trial.number % len(_FILES)]
    content = bytearray(file.read_bytes())
    place = trial.random.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)
    trial.note = file.name
    _go_on(trial, run)


def missing(trial: Trial) -> None:
    """One file of the newest checkpoint is not there."""
    run, newest = _half(trial)
    trial.note = _MISSING[trial.number % len(_MISSING)]
    (newest / trial.note).unlink()
    _go_on(trial, run)


def not_a_number(trial: Trial) -> None:
    """The loss of one micro-batch is NaN."""
    step = trial.random.randrange(2, STEPS)
    trial.note = f"step {step}"
    ended = _run(trial.folder / "run", nan_at=step).wait()
    from safetensors.torch import load_file

    tensors = load_file(trial.folder / "run" / "adapter" / "adapter_model.safetensors").values()
    broken = sum(not bool(tensor.isfinite().all()) for tensor in tensors)
    require(broken == 0, f"exit code {ended.code}, and {broken} of {len(tensors)} tensors are NaN")


def terminated(trial: Trial) -> None:
    """SIGTERM in the middle, where no checkpoint was due."""
    victim = _run(trial.folder / "run", save_steps=1000)
    victim.strike(signal.SIGTERM, at=_moment(trial, trial.random.random() / 2))
    ended = victim.wait()
    require(any((trial.folder / "run").glob("checkpoint-*")), f"ended with {ended.code}, and there is no checkpoint")


def _moment(trial: Trial, share: float) -> float:
    """Seconds of CPU after which this share of training, and of what follows it, is done."""
    begin, end = map(float, (trial.lab.folder / "window.txt").read_text().split())
    return begin + share * (end - begin)


def _half(trial: Trial) -> tuple[Path, Path]:
    """A copy of the untouched run as if it had been stopped before its last step, and its newest checkpoint."""
    run = trial.folder / "run"
    shutil.copytree(trial.lab.folder / "untouched", run)
    shutil.rmtree(run / f"checkpoint-{STEPS}")
    shutil.rmtree(run / "adapter")
    return run, run / f"checkpoint-{STEPS - 1}"


def _go_on(trial: Trial, run: Path) -> None:
    """Start it again, and compare."""
    ended: Ended = _run(run).wait()
    said = ended.said.strip().splitlines()[-1:] or [""]
    require(ended.code == 0, f"cannot go on: {said[0][:120]}")
    same = _adapter(run) == _adapter(trial.lab.folder / "untouched")
    if not same:
        raise Lost("another adapter came out, without a word")


def _adapter(run: Path) -> str:
    return sha256(run / "adapter" / "adapter_model.safetensors")


def _run(folder: Path, **how: Any) -> Victim:
    folder.mkdir(exist_ok=True, parents=True)
    return start(partial(_train, folder, **how), folder / "log.txt")


def _train(folder: Path, *, save_steps: int = 1, nan_at: int | None = None, begin: Path | None = None) -> None:
    """What such a script does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, **shape))
    dora = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.05, use_dora=True, target_modules="all-linear")
    model = get_peft_model(base, dora)
    rows = torch.randint(0, 512, (54, 32)).tolist()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=2e-3,
            save_steps=save_steps,
            save_total_limit=2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    )
    if nan_at is not None:
        _poison(model, trainer, nan_at)
    if begin is not None:
        begin.write_text(str(time.process_time()))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    model.save_pretrained(str(folder / "adapter"))


def _poison(model: Any, trainer: Any, step: int) -> None:
    passes = 0

    def strike(module: Any, arguments: Any, output: Any) -> Any:
        nonlocal passes
        passes += module.training and trainer.state.global_step + 1 == step
        if passes == 1:
            passes += 1
            output["loss"] = output["loss"] * math.nan
        return output

    model.register_forward_hook(strike)


_PASSED = "goes on; adapter bit-equal to the uninterrupted run's"
GROUPS = (
    Group("kill", "kill -9 at any moment, a save at each step", _PASSED, 100, 500, kill),
    Group("flip", "one bit flipped in a file of the newest checkpoint", _PASSED, 50, 150, flip),
    Group("missing", "a file of the newest checkpoint missing", _PASSED, 12, 12, missing),
    Group("nan", "NaN in the loss of one micro-batch", "no NaN in the adapter", 10, 30, not_a_number),
    Group("signal", "SIGTERM, no checkpoint due", "there is a checkpoint", 10, 20, terminated),
)
