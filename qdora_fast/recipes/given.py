"""What a Python caller gives: a config, sections to lay over it, and rows that are in memory.

`rows` stands beside `path` in the `data` section, in each of its `sources`, and as `held_out_rows` beside
`held_out_path`. The rows become a file in the cache (`data/read/in_memory.py`) and the setting its path, so that
everything after this line knows files alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.presets import settings_of
from qdora_fast.data.read import in_memory
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError

KEYS = {"rows": ("path", in_memory.NAME), "held_out_rows": ("held_out_path", f"held-out {in_memory.NAME}")}
"""Key of rows, the setting that it stands for, and what messages call them."""


def settings_given(config: str | Path | Mapping[str, Any] | Config, sections: Mapping[str, Any]) -> tuple[Config, str]:
    """`presets.settings_of`, with rows in memory.

    Raises:
        ConfigError: no such config, a value is wrong, or rows are none.
        DataError: a value that no row can have.
    """
    given = config if isinstance(config, Config | str | Path) or not isinstance(config, Mapping) else _stored(config)
    return settings_of(given, _stored(sections))


def _stored(sections: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sections with paths in place of rows."""
    data = sections.get("data")
    if data is None or isinstance(data, Config):
        return sections
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        if isinstance(data, str | int | float | bool):
            return sections  # a mistake like any other
        raise ConfigError('data: got rows themselves; give them as data={"rows": ...}, beside other settings')
    return {**sections, "data": _with_paths(data)}


def _with_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    most = data.get("max_rows")
    found = {key: value for key, value in data.items() if key not in KEYS}
    for key in KEYS.keys() & data.keys():
        setting, name = KEYS[key]
        if setting in data or (key == "rows" and "sources" in data):
            raise ConfigError(f"data: `{key}` stands beside `{setting if setting in data else 'sources'}`; remove one")
        found[setting] = _path(data[key], name, most if key == "rows" else None)
    for key, (setting, _) in KEYS.items():
        if not isinstance(found.get(setting), str | Path | None):
            raise ConfigError(
                f"data.{setting}: got a {type(found[setting]).__name__}; rows in memory go into data.{key}"
            )
    if isinstance(sources := data.get("sources"), list | tuple):
        found["sources"] = [_source(number, source) for number, source in enumerate(sources, 1)]
    return found


def _source(number: int, source: Any) -> Any:
    """A source of a mixture."""
    if not isinstance(source, Mapping) or "rows" not in source:
        return source
    if "path" in source:
        raise ConfigError(f"data.sources: `rows` stands beside `path` in number {number}; remove one")
    path = _path(source["rows"], f"{in_memory.NAME} {number}", source.get("max_rows"))
    return {**{key: value for key, value in source.items() if key != "rows"}, "path": path}


def _path(rows: Any, name: str, most: Any) -> str:
    with console.counting_rows(f"reading {name}") as on_rows:
        return str(in_memory.store(rows, name, most=most if isinstance(most, int) else None, on_rows=on_rows))
