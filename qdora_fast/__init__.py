"""QDoRA fine-tuning on one 24 GB card. Importing this package imports nothing heavy.

import qdora_fast
run = qdora_fast.train("demo")                      # a preset, a YAML file, or a dictionary
run = qdora_fast.train("demo", train={"epochs": 1}) # with settings changed
qdora_fast.export(run.path, to="merged_16bit")
qdora_fast.evaluate(run.path)                       # base against tuned, once more
answers = qdora_fast.predict(run.path, [{"question": "..."}])   # also a file or a DataFrame
data = qdora_fast.prepare_data("demo", data={"path": "my.jsonl"})   # the rows alone: kept, dropped and why, split
qdora_fast.train("demo", data={"rows": frame})      # a DataFrame, a list of dictionaries, a datasets.Dataset
qdora_fast.Run.open("runs/demo").metrics()          # what was logged, as a DataFrame; .answers() of the evaluation

qdora_fast.fuse(peft_model)                         # the fused layers alone, in a training script of your own
qdora_fast.unfuse(peft_model)

Every foreseen failure is a QdoraError; the classes below it say which (system/errors.py). A folder or module of this
package never has the name of a public function: importing it would put the module in the function's place.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdora_fast.recipes.data import prepare_data
    from qdora_fast.recipes.evaluate import evaluate
    from qdora_fast.recipes.export import export
    from qdora_fast.recipes.fuse import fuse, unfuse
    from qdora_fast.recipes.predict.predict import predict
    from qdora_fast.recipes.run import Run
    from qdora_fast.recipes.train import train
    from qdora_fast.system.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DiskSpaceError,
        DoesNotFit,
        IntegrityError,
        NonFiniteError,
        OutOfMemory,
        ProofError,
        QdoraError,
        RefusedError,
        RegressionError,
        RunLocked,
        Stopped,
    )

# Read by OpenMP when torch is imported, so it has to be set first. torch and bitsandbytes bring a pool of threads
# each; threads that spin while they wait (the default) take the cores from the other pool and from other processes.
# On two shared cores that made a training step of the embedded base ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiskSpaceError",
    "DoesNotFit",
    "IntegrityError",
    "NonFiniteError",
    "OutOfMemory",
    "ProofError",
    "QdoraError",
    "RefusedError",
    "RegressionError",
    "Run",
    "RunLocked",
    "Stopped",
    "evaluate",
    "export",
    "fuse",
    "predict",
    "prepare_data",
    "train",
    "unfuse",
]

_FUNCTIONS = {
    "Run": "recipes.run",
    "train": "recipes.train",
    "evaluate": "recipes.evaluate",
    "export": "recipes.export",
    "prepare_data": "recipes.data",
    "predict": "recipes.predict.predict",
    "fuse": "recipes.fuse",
    "unfuse": "recipes.fuse",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name in __all__:
        if name in _FUNCTIONS:
            importlib.import_module("qdora_fast.system.supported").require_linux()
        return getattr(importlib.import_module(f"qdora_fast.{_FUNCTIONS.get(name, 'system.errors')}"), name)
    raise AttributeError(f"module 'qdora_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, so that they can be completed before they are used."""
    return sorted({*globals(), *__all__})
