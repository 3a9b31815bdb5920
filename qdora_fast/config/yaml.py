"""YAML in and out: plain values, bounded in size before anything is built, with the line of each key.

A config comes from somebody else, so its text is first walked event by event (no recursion, nothing kept): how long,
how deep, how many aliases, any tag. Only then is it loaded, into dictionaries, lists and scalars and nothing else.
YAML 1.2 is read (ruamel.yaml): `2e-4` is a number, `no` is a word, and a duplicate key is an error.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from qdora_fast.system.errors import ConfigError
from qdora_fast.system.paths import open_regular

MOST_BYTES, MOST_VALUES, MOST_ALIASES, DEEPEST = 256 * 2**10, 10_000, 100, 20
"""Of a whole file. A config has some fifty values, four levels deep."""

Lines = dict[tuple[str, ...], str]
"""The line of each key, as "line n"."""


def read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """A file as plain dictionaries, and the line of each key.

    Raises:
        ConfigError: not there, no YAML, too large, or not `key: value` lines; says where and what to do.
    """
    text = _text_of(path)
    try:
        _require_bounded(text)
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else "unknown line"
        what = str(error.problem).split(" with value")[0]
        raise ConfigError(f"{path}, {where}: {what}; keep one of the two") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown line"
        raise ConfigError(f"{path}, {where}: not valid YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except _TooMuch as error:
        raise ConfigError(f"{path}{error}") from None
    if tree is None:
        raise ConfigError(f"{path} is empty; the least a config needs is model.name and data.path")
    if not isinstance(tree, Mapping):
        kind = "a list" if isinstance(tree, list) else "a single value"
        raise ConfigError(f"{path}: expected `section: ...` lines at the top level, found {kind}")
    return plain(tree), dict(_lines_of(tree))


def read_value(text: str) -> Any:
    """One value as it would stand behind a key; text that is no YAML stays text."""
    try:
        _require_bounded(text)
        return plain(YAML(typ="safe", pure=True).load(text)) if text.strip() else None
    except (YAMLError, ValueError):
        return text
    except _TooMuch as error:
        raise ConfigError(f"--set{error}") from None


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Plain values as YAML; reading it gives the same values."""
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(tree, text)
    return text.getvalue()


def write_commented(tree: Mapping[str, Mapping[str, Any]], comments: Mapping[str, str], *, column: int = 36) -> str:
    """Sections as YAML for a person to edit, one line a setting, with a comment behind it where `comments` has one.

    Args:
        tree: settings by section; what is deeper is written on the setting's line.
        comments: by `section.setting`.
    """
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 10_000  # a setting stays on its line
    root = CommentedMap()
    for section, settings in tree.items():
        root[section] = CommentedMap((key, _on_one_line(value)) for key, value in settings.items())
        for key in settings:
            if comment := comments.get(f"{section}.{key}"):
                root[section].yaml_add_eol_comment(comment, key, column=column)
    yaml.dump(root, text)
    return text.getvalue()


def plain(node: Any, budget: list[int] | None = None, depth: int = 0) -> Any:
    """Copy into plain dict/list/scalars, so that shared aliases become separate values.

    Raises:
        ConfigError: they multiply, or hold themselves.
    """
    budget = budget if budget is not None else [MOST_VALUES]
    budget[0] -= 1
    if budget[0] < 0 or depth > 2 * DEEPEST:
        raise ConfigError(f"the config has more than {MOST_VALUES} values; YAML aliases that multiply are refused")
    if isinstance(node, Mapping):
        return {str(key): plain(value, budget, depth + 1) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [plain(value, budget, depth + 1) for value in node]
    if isinstance(node, PurePath):
        return str(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _on_one_line(value: Any) -> Any:
    """A list or a section in brackets."""
    if isinstance(value, Mapping):
        inner: Any = CommentedMap((key, _on_one_line(each)) for key, each in value.items())
    elif isinstance(value, list | tuple):
        inner = CommentedSeq(_on_one_line(each) for each in value)
    else:
        return value
    inner.fa.set_flow_style()
    return inner


class _TooMuch(Exception):
    """Where and why a text is not even loaded."""


def _text_of(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name the YAML file in it")
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(
                f"{path} has {path.stat().st_size:,} bytes, which is no config (rows go into data.path); "
                f"at most {MOST_BYTES:,} are read"
            )
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `qdora-fast presets` lists the shipped ones"
        raise ConfigError(f"config file not found: {path}{hint}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None


def _require_bounded(text: str) -> None:
    """Raise _TooMuch before a text is loaded that is too long, too deep, or names a type of its own."""
    values = aliases = depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        values += isinstance(event, NodeEvent)
        aliases += isinstance(event, AliasEvent)
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        line = event.start_mark.line + 1
        if values > MOST_VALUES or aliases > MOST_ALIASES:
            raise _TooMuch(
                f", line {line}: more than {MOST_VALUES:,} values or {MOST_ALIASES} aliases; no config needs so many"
            )
        if depth > DEEPEST:
            raise _TooMuch(f", line {line}: nested more than {DEEPEST} levels deep; a config has four")
        if getattr(event, "ctag", None):
            raise _TooMuch(f", line {line}: the tag {event.ctag} is not read; write the plain value")


def _lines_of(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Of each key of a loaded tree that was written there; keys merged in by `<<` have no line of their own."""
    keys = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list) else ()
    if len(path) > DEEPEST:
        return
    for key in keys:
        named = (*path, str(key))
        if node.lc.data and key in node.lc.data:
            yield named, f"line {node.lc.key(key)[0] + 1}"
        yield from _lines_of(node[key], named)
