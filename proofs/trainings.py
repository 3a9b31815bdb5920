"""One run through the package's own recipe, whose state is kept at several steps as a run's folder of its own.

    FOLDER/step-<n>/run            the run as if it had ended there: its folder with the adapter of that step
    FOLDER/step-<n>/evidence.pkl   what the training process recorded of the live model at that step

`python -m proofs.trainings SPEC` does one, in a process that has the stack loaded.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

from proofs import exporting
from proofs.bases import base_folder
from proofs.plan import Training
from qdora_fast.system.run_folder import RunFolder

RUN, EVIDENCE = "run", "evidence.pkl"


def step_folder(trained: Path, training: Training, step: int) -> Path:
    """Where the state at one step lies, below the folder of all trainings."""
    return trained / training.name / f"step-{step}"


def train(training: Training, trained: Path, base: Path) -> None:
    """Do a training, if its folder is not there."""
    final = trained / training.name
    if final.is_dir():
        return
    from qdora_fast.recipes.train import train as train_run

    folder = final.with_name(f"{final.name}.incomplete")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _keep_at_steps(training.steps, folder)
    train_run("demo", **settings(training, folder, base))
    shutil.rmtree(folder / RUN)
    missing = [step for step in training.steps if not (folder / f"step-{step}" / EVIDENCE).is_file()]
    assert not missing, f"{training.name}: steps {missing} were not reached"
    folder.rename(final)


def settings(training: Training, folder: Path, base: Path) -> dict[str, Any]:
    """Sections of the run's config, over those of the shipped demo."""
    last = training.steps[-1]
    whole = training.base in ("demo", "light")
    train = {"learning_rate": training.learning_rate, "max_steps": last, "eval_steps": last, "save_steps": 10_000}
    return {
        "run": {"dir": str(folder), "name": RUN},
        "model": {"name": str(base), "max_length": 256},
        "adapter": {
            "method": training.method,
            "r": training.r,
            "alpha": training.r if training.r < 64 else 16,
            "rslora": training.rslora,
        },
        "data": {"path": "demo", "max_rows": None if whole else 120},
        "train": {**train, "seed": training.seed},
        "engine": {"resident": "off"} if training.base == "wide" else {},
        "evaluation": {"max_rows": 0},
        "export": {"at_end": "none", "proof_rows": 16 if whole else 8},
    }


def _keep_at_steps(steps: tuple[int, ...], folder: Path) -> None:
    """From now on a training in this process keeps its state at these steps."""
    from transformers.trainer_callback import DefaultFlowCallback

    original = DefaultFlowCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step in steps:
            _keep(kwargs["model"], kwargs["processing_class"], folder, state.global_step)
        return original(self, args, state, control, **kwargs)

    DefaultFlowCallback.on_step_end = on_step_end


def _keep(model: Any, tokenizer: Any, folder: Path, step: int) -> None:
    kept = folder / f"step-{step}"
    copy = shutil.copytree(folder / RUN, kept / RUN, ignore=shutil.ignore_patterns("checkpoints"))
    run = RunFolder(Path(copy))
    evidence = exporting.save_and_record(model, tokenizer, run)
    (kept / EVIDENCE).write_bytes(pickle.dumps(evidence))


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    given = Training(**spec["training"] | {"steps": tuple(spec["training"]["steps"])})
    found = base_folder(given.base, Path(spec["bases"]), Path(spec["smollm2"]) if spec["smollm2"] else None)
    train(given, Path(spec["trained"]).resolve(), found)
