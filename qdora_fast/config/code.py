"""The settings that name code: which they are, how a value is written, and where its path starts.

A function is named by the file that it is in: `my_rows.py:to_messages`. A relative path starts at the folder of the
config file that holds it, so that a config and its code travel together; on the command line (`--set`) and in Python it
starts at the working directory. `loader.py` makes every such path absolute when it reads a config. Whether the
code is run is decided elsewhere (`own_code.py`), never by a config.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qdora_fast.system.paths import local_path

FORMATTER, METRIC, TASKS = "data.formatter", "evaluation.metric", "evaluation.mmlu.task_folder"
"""What a permission is given for. The entries of a list count as the setting that they are a part of."""

_PLACES = {
    ("data", "formatter"): FORMATTER,
    ("data", "sources", "*", "formatter"): FORMATTER,
    ("evaluation", "metric"): METRIC,
    ("evaluation", "more_metrics", "*"): METRIC,
    ("evaluation", "mmlu", "task_folder"): TASKS,
}
_FUNCTION = re.compile(r"[^\0]*[^/\0]\.py:[A-Za-z_]\w*")
_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Keys = tuple[str, ...]


def names_function(text: str) -> bool:
    """Whether a value has the form FILE.py:function."""
    return _FUNCTION.fullmatch(text) is not None


def function_name(text: str) -> str:
    """The value, if it has that form.

    Raises:
        ValueError: it has not; says how to write it.
    """
    if names_function(text):
        return text
    if _MODULE.fullmatch(text):
        module, _, function = text.partition(":")
        raise ValueError(
            f"modules are not searched for; name the file: {module.replace('.', '/')}.py:{function} (in a config file "
            "the path starts at the folder of the config)"
        )
    raise ValueError("write it as FILE.py:function, for instance my_rows.py:to_messages")


def split(reference: str) -> tuple[Path, str]:
    """File and function of FILE.py:function."""
    file, _, function = reference.rpartition(":")
    return Path(file), function


def file_of(setting: str, value: str) -> Path:
    """The file, or the folder of tasks, that a setting's value names; absolute."""
    return Path(os.path.abspath(value if setting == TASKS else split(value)[0]))


def without_folder(reference: str) -> str:
    """`my_rows.py:to_messages`, wherever the file lies."""
    return Path(reference).name


def at(folder: Path, path: str) -> str:
    """An absolute path (of a file, a folder, or FILE.py:function) for one that starts at `folder`."""
    return os.path.abspath(folder / local_path(path))


def code_named(tree: Any) -> Iterator[tuple[str, str]]:
    """The setting and the value of each place in a config (as a dictionary) that names code."""
    found: list[tuple[str, str]] = []

    def note(setting: str, _keys: Keys, text: str) -> str:
        found.append((setting, text))
        return text

    with_code(tree, note)
    yield from found


def of_evaluation(config: Any) -> tuple[str, ...]:
    """The settings whose code an evaluation by a `Config` runs."""
    return (METRIC, TASKS) if config.evaluation.benchmarks else (METRIC,)


def with_code(tree: Any, change: Callable[[str, Keys, str], str], keys: Keys = ()) -> Any:
    """A copy of a config (as a dictionary) in which each value that names code is what `change` makes of it.

    Args:
        change: is given the setting, the keys that lead to the value, and the value.
    """
    if isinstance(tree, dict):
        return {key: with_code(value, change, (*keys, str(key))) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [with_code(value, change, (*keys, str(number))) for number, value in enumerate(tree)]
    setting = _PLACES.get(tuple("*" if key.isdigit() else key for key in keys))
    if setting is None or not isinstance(tree, str) or not (names_function(tree) or (setting == TASKS and tree)):
        return tree
    return change(setting, keys, tree)
