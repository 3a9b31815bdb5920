"""Configs of other trainers, read by the keys that those document, and turned into settings of ours.

`translate` knows whose config it is by the key that names the base. What is said of each key: taken over, decided here
without a setting, or left behind with the reason. Nothing of theirs is imported, run or downloaded.
"""

from __future__ import annotations

from pathlib import Path

from qdora_fast.config.foreign import axolotl, llama_factory
from qdora_fast.config.foreign.translation import Translation
from qdora_fast.config.yaml import read_yaml
from qdora_fast.system.errors import ConfigError

__all__ = ["Translation", "translate"]


def translate(path: Path) -> Translation:
    """The settings that a config of Axolotl or LLaMA-Factory comes to.

    Raises:
        ConfigError: not YAML, neither of the two, or it trains something else than answers.
    """
    theirs, _ = read_yaml(path)
    for tool in (axolotl, llama_factory):
        if tool.BASE in theirs:
            translation = tool.translated(theirs, path.parent)
            translation.check_complete(path)
            return translation
    if isinstance(theirs.get("model"), dict):
        raise ConfigError(f"{path} is a config of this trainer already: `qdora-fast train {path}`")
    raise ConfigError(
        f"{path} names no base as Axolotl (`{axolotl.BASE}`) or LLaMA-Factory (`{llama_factory.BASE}`) do; the configs "
        "of these two are read"
    )
