"""The shipped configs: finding them, describing them, and choosing one for this machine.

A preset is a plain YAML file in `configs/`. Its first comment line is its description, its `# card:` line
says what it was written for and its `# base:` line how its base is licensed; nothing about a preset lives in
code, apart from which one `train` takes when no config is named.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.loader import load_config, make_config
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.hardware import Gpu

# Smallest card memory in GiB (as drivers report it: a "24 GB" card shows 22.5-24) → preset, largest first.
_BY_MEMORY = ((75.0, "llama3.1-70b-80gb"), (22.0, "qwen3-8b-24gb"), (15.0, "llama3.1-8b-16gb"))


@dataclass(frozen=True)
class Preset:
    """One shipped config: its name, what it says about itself, and its file."""

    name: str
    about: str
    card: str
    path: Path
    base: str = ""
    """Licence and gating of its base, as its `# base:` line says."""

    @property
    def memory_gib(self) -> float | None:
        """Of the card that its `# card:` line names; None: none is needed."""
        first = self.card.split(maxsplit=1)[0] if self.card else ""
        return float(first) if first.isdigit() else None


@dataclass(frozen=True)
class BaseHeader:
    """What the `# base:` line of a preset says: `# base: Apache-2.0, not gated`."""

    preset: str
    licence: str | None
    """None: unknown."""
    gated: bool | None


def base_header(name: str) -> BaseHeader | None:
    """What a preset says of the base that it takes; None: no preset takes this base, or none says anything."""
    for preset in list_presets():
        if preset.base and load_config(preset.path).model.name.lower() == name.lower():
            licence, *others = (part.strip() for part in preset.base.split(","))
            gated = False if "not gated" in others else True if "gated" in others else None
            known = None if "unknown" in licence.lower() else licence
            return BaseHeader(preset.name, known, gated)
    return None


def configs_folder() -> Path:
    """`configs/` beside the package in a checkout, inside the package when installed from a wheel."""
    package = Path(__file__).parent.parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def list_presets() -> list[Preset]:
    """All shipped presets, by name."""
    return [_read(path) for path in sorted(configs_folder().glob("*.yaml"))]


def find_config(name_or_path: str) -> Path:
    """A config file named by path, or by the name of a preset.

    Raises:
        ConfigError: neither; the message names near matches.
    """
    path = Path(name_or_path)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    shipped = {preset.name: preset.path for preset in list_presets()}
    if name_or_path in shipped:
        return shipped[name_or_path]
    near = difflib.get_close_matches(name_or_path, shipped, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`qdora-fast presets` lists them"
    raise ConfigError(f"no config file or preset `{name_or_path}`; {hint}")


def choose_preset(cards: Sequence[Gpu]) -> tuple[Path, str]:
    """The preset for this machine, and why in one sentence.

    Raises:
        ConfigError: the card is smaller than every preset.
    """
    if not cards:
        return configs_folder() / "demo.yaml", "no NVIDIA GPU found, so the embedded tiny base is tuned on the CPU"
    card = cards[0]
    for least, name in _BY_MEMORY:
        if card.memory_gib >= least:
            why = f"{card.name} has {card.memory_gib:.0f} GiB, and this preset is for cards from {least:.0f} GiB up"
            return configs_folder() / f"{name}.yaml", why
    raise ConfigError(
        f"{card.name} has {card.memory_gib:.1f} GiB; the smallest preset needs {_BY_MEMORY[-1][0]:.0f} GiB. "
        "Name a smaller model (`--set model.name=...` on a preset) or try the embedded demo: `qdora-fast train demo`"
    )


def settings_of(config: str | Path | Mapping[str, Any] | Config, sections: Mapping[str, Any]) -> tuple[Config, str]:
    """A valid Config with `sections` laid over it, and the default name of its run.

    Args:
        config: name of a preset, path of a YAML file, a dictionary of sections, or a Config.

    Raises:
        ConfigError: no such config, or a value is wrong.
    """
    if isinstance(config, Config):
        tree, name = config.model_dump(), "run"
    elif isinstance(config, Mapping):
        tree, name = dict(config), "run"
    else:
        path = find_config(str(config))
        tree, name = load_config(path).model_dump(), path.stem
    return make_config(_laid_over(tree, sections)), name


def _laid_over(below: Any, above: Any) -> Any:
    """Settings with others in their place, section by section, as --set does it: what is not named stays."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: _laid_over(below[key], above[key]) if key in below else above[key] for key in above}}


def _read(path: Path) -> Preset:
    comments = re.findall(r"^# ?(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    about = next((line for line in comments if not line.startswith("yaml-language-server")), "")
    card = next((line.removeprefix("card:").strip() for line in comments if line.startswith("card:")), "any")
    base = next((line.removeprefix("base:").strip() for line in comments if line.startswith("base:")), "")
    return Preset(path.stem, about, card, path, base)
