"""A model's config.json, before anything is built or counted by it.

A count of 10 million layers makes a plan run for hours, one of 4,000 digits breaks every sum. So counts are looked at
once, when the file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdora_fast.system.errors import ConfigError
from qdora_fast.system.json_files import COPY_AGAIN, read_object
from qdora_fast.system.limits import MODEL_COUNT, MODEL_LAYERS

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


def read_model_config(path: Path) -> dict[str, Any]:
    """The values of a config.json.

    Raises:
        ConfigError: the file is damaged, or a count in it is larger than any model's.
    """
    values = read_object(path, error=ConfigError)
    inner = [each for each in values.values() if isinstance(each, dict)]  # text_config of a model that also sees
    for section in (values, *inner):
        for name, count in section.items():
            most = MODEL_LAYERS if name in LAYER_COUNTS else MODEL_COUNT
            if isinstance(count, int | float) and count > most and count != float("inf"):
                raise ConfigError(f"{path}: {name} is {count:.4g}, and no model has more than {most:,}; {COPY_AGAIN}")
    return values
