"""Numbers that no run needs: each numeric setting takes them or refuses them in words, whatever they are."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.system.errors import ConfigError

LEAST: dict[str, Any] = {"model": {"name": "demo"}, "data": {"path": "demo"}}
ABSURD = (
    "1e308",
    "-1e308",
    "inf",
    ".inf",
    "nan",
    ".nan",
    "-1",
    "0",
    "1" + 30 * "0",
    5000 * "9",
    "-" + 5000 * "9",
    "1e-320",
)
MOST_SHOWN = 1_000


def _numbers(section: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _numbers(kind, f"{path}{name}.")
        text = str(field.annotation)
        if "int" in text or "float" in text:
            yield f"{path}{name}"


@pytest.mark.parametrize("setting", sorted(_numbers(Config)))
def test_every_numeric_setting_takes_or_refuses_an_absurd_number(setting: str) -> None:
    refusals = []
    for value in ABSURD:
        try:
            make_config(LEAST, [f"{setting}={value}"])
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) >= 3  # a number of 5,000 digits, and what is no number, are never taken
    assert all(setting.rpartition(".")[2] in text and len(text) < MOST_SHOWN for text in refusals)


@pytest.mark.parametrize("layers", ["0-" + 5000 * "9", 5000 * "9", "0-10000", ",".join(["0-9999"] * 20_000) + ",x"])
def test_layers_have_an_end_and_are_not_repeated_whole(layers: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_config(LEAST, [f"adapter.layers={layers}"])
    assert len(str(refused.value)) < MOST_SHOWN


def test_many_ranges_are_read_once() -> None:
    config = make_config(LEAST, ["adapter.layers=" + ",".join(["0-9999"] * 20_000)])
    assert config.adapter.layers is not None
