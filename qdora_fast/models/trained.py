"""A trained adapter, its base, and the settings with which both are loaded: what export, chat and evaluation open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import AdapterSettings, EngineSettings, ModelSettings, TrainSettings


@dataclass(frozen=True)
class TrainedModel:
    """A base and a saved adapter, before their weights are read."""

    base: str
    """Hub id or folder."""
    folder: Path
    """Of the adapter."""
    model: ModelSettings
    adapter: AdapterSettings
    train: TrainSettings
    engine: EngineSettings

    def load(self, *, precision: str) -> tuple[Any, Any]:
        """The `loading.Base`, and the PEFT model on it in evaluation mode.

        Args:
            precision: bf16, fp16 or fp32.

        Raises:
            ConfigError, RefusedError, IntegrityError, QdoraError: see `loading.load_trained`.
        """
        from qdora_fast.models.loading import load_trained

        return load_trained(
            self.base, self.folder, self.model, self.adapter, self.train, self.engine, precision=precision
        )
