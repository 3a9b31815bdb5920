"""The door to all formats: what does not exist or does not fit is said before anything is loaded."""

from __future__ import annotations

import pytest

from qdora_fast.recipes.export import export
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder


def test_an_unknown_format_names_the_known_ones(demo_run: RunFolder) -> None:
    with pytest.raises(ConfigError, match="merged_16bit, merged_4bit_forced, gguf, adapter, lora"):
        export(demo_run, to="merged_8bit")


def test_an_option_of_another_format_is_refused_not_ignored(demo_run: RunFolder) -> None:
    with pytest.raises(
        ConfigError, match="--merge-base means nothing for --to adapter: it belongs to merged_16bit and gguf"
    ):
        export(demo_run, to="adapter", merge_base="dequant4")
    with pytest.raises(ConfigError, match="--speed means nothing for --to merged_16bit: no format has it"):
        export(demo_run, speed="fast")
