"""A config.json that names more than any model has is refused before anything is counted or built by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdora_fast.models.model_config import read_model_config
from qdora_fast.system.errors import ConfigError


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10_000_000},
        {"text_config": {"num_hidden_layers": 10_001}},
        {"vocab_size": 10**13},
        {"vocab_size": 1e300},
        {"hidden_size": int("9" * 300)},
    ],
)
def test_a_count_above_every_models_is_refused_by_name(values: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"(num_hidden_layers|vocab_size|hidden_size) is .*no model has more"):
        read_model_config(file)


def test_ordinary_values_are_given_as_they_are(tmp_path: Path) -> None:
    values = {"num_hidden_layers": 126, "vocab_size": 256_000, "time_step_limit": [0.0, float("inf")], "rope": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path / "config.json") == values
