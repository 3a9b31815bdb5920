"""The schema: every knob of a run, with its unit and its default.

This folder is the only place where a default lives: `schema.py` has the sections of a run, `data.py` and
`evaluation.py` the two largest. Reading YAML, `--set` and turning mistakes into messages is `loader.py`'s
business; here is only what is valid. Names follow Transformers, PEFT and TRL where they have one. Nothing here
imports torch, so that a wrong config is refused in milliseconds.
"""

from qdora_fast.config.data import (
    ColumnSettings,
    DataSettings,
    DedupSettings,
    FilterSettings,
    QualitySettings,
    SourceSettings,
)
from qdora_fast.config.evaluation import EvaluationSettings, MmluSettings
from qdora_fast.config.schema import (
    AdapterSettings,
    Config,
    EngineSettings,
    ExportSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
    layer_indices,
)

__all__ = [
    "AdapterSettings",
    "ColumnSettings",
    "Config",
    "DataSettings",
    "DedupSettings",
    "EngineSettings",
    "EvaluationSettings",
    "ExportSettings",
    "FilterSettings",
    "MmluSettings",
    "ModelSettings",
    "QualitySettings",
    "RunSettings",
    "SourceSettings",
    "TrainSettings",
    "layer_indices",
]
