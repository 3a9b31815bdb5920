"""From a YAML file and `--set a.b=c` to a valid `Config`, or to every mistake at once.

A user who has made three mistakes should learn of three, each with its place, the value
found, what was probably meant and how to mend it: so the errors are collected, never
raised one by one. YAML 1.2 is read (ruamel.yaml): `2e-4` is a number, `no` is a word, and
a duplicate key is an error. Nothing heavier than pydantic is imported here.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from qdora_fast import remote_code
from qdora_fast.config import Config
from qdora_fast.errors import ConfigError
from qdora_fast.redact import redact

ON_THE_COMMAND_LINE = {
    "trust_remote_code": f"whoever runs it decides, with {remote_code.FLAG} on the command line",
    "offline": "put --offline on the command line",
}
_MAX_NODES = 10_000  # a config has some fifty values; more means a bomb of YAML aliases


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply `a.b=value` overrides in order, and validate the whole.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or any value is wrong;
            the message lists every problem with its place and its fix.
    """
    tree, lines = _read_yaml(path)
    problems = [problem for text in overrides if (problem := _override(tree, lines, text))]
    return _validate(tree, lines, source=str(path), problems=problems)


def make_config(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The same for settings given as a dictionary: `{"model": {"name": ...}, "data": {...}}`.

    Raises:
        ConfigError: as `load_config`.
    """
    tree = _plain(values)
    lines: dict[tuple[str, ...], str] = {}
    problems = [problem for text in overrides if (problem := _override(tree, lines, text))]
    return _validate(tree, lines, source="the given settings", problems=problems)


def dump_config(config: Config) -> str:
    """The whole resolved config as YAML, defaults included; loading it gives the same config."""
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(config.model_dump(mode="json"), text)
    return text.getvalue()


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file, for completion and checks in an editor."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The file as plain dictionaries, and for each key its place "line n"."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `qdora-fast presets` lists the shipped ones"
        raise ConfigError(f"config file not found: {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from None
    try:
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        place = f"line {error.problem_mark.line + 1}" if error.problem_mark else "unknown line"
        what = str(error.problem).split(" with value")[0]
        raise ConfigError(f"{path}, {place}: {what}; keep one of the two") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown line"
        raise ConfigError(f"{path}, {place}: not valid YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        raise ConfigError(f"{path} is empty; the least a config needs is model.name and data.path")
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: expected `section: ...` lines at the top level, found a {type(tree).__name__}")
    return _plain(tree), dict(_places(tree))


def _plain(node: Any, budget: list[int] | None = None) -> Any:
    """Copy into plain dict/list/scalars, so that shared aliases become separate values."""
    budget = budget if budget is not None else [_MAX_NODES]
    budget[0] -= 1
    if budget[0] < 0:
        raise ConfigError(f"the config has more than {_MAX_NODES} values; YAML aliases that multiply are refused")
    if isinstance(node, Mapping):
        return {str(key): _plain(value, budget) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value, budget) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _places(node: Any, path: tuple[str, ...] = (), depth: int = 0) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, list) and depth < 6:
        for number, value in enumerate(node):
            yield (*path, str(number)), f"line {node.lc.key(number)[0] + 1}"  # type: ignore[attr-defined]
            yield from _places(value, (*path, str(number)), depth + 1)
    if isinstance(node, Mapping) and depth < 6:
        for key, value in node.items():
            yield (*path, str(key)), f"line {node.lc.key(key)[0] + 1}"  # type: ignore[attr-defined]
            yield from _places(value, (*path, str(key)), depth + 1)


def _override(tree: dict[str, Any], lines: dict[tuple[str, ...], str], text: str) -> str | None:
    """Put one `a.b=value` into the tree; returns the problem if it cannot be."""
    dotted, equals, raw = text.partition("=")
    keys = tuple(key.strip() for key in dotted.split("."))
    if not equals or not all(keys):
        return f"--set {text}: write it as section.key=value, for instance --set train.learning_rate=1e-4"
    try:
        value = _plain(YAML(typ="safe", pure=True).load(raw)) if raw.strip() else None
    except YAMLError:
        value = raw
    section = tree
    for key in keys[:-1]:
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            return f"--set {text}: `{key}` is a value, not a section"
        section = inner
    section[keys[-1]] = value
    lines[keys] = "--set"
    return None


def _validate(tree: Any, lines: Mapping[tuple[str, ...], str], *, source: str, problems: list[str]) -> Config:
    problems = list(problems)
    config = None
    # A section written as `train:` with nothing below it means "all defaults".
    tree = {key: ({} if value is None and key in Config.model_fields else value) for key, value in tree.items()}
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += _once(_describe(item, lines) for item in error.errors(include_url=False))
    problems += [
        f"{'.'.join(keys)}{f' ({lines[keys]})' if keys in lines else ''}: holds a secret ({redact(text)}), and a run "
        "keeps a copy of its config; put it into an environment variable such as HF_TOKEN"
        for keys, text in _texts(tree)
        if redact(text) != text
    ]
    if problems or config is None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{count} in {source}:\n{listed}")
    return config


def _texts(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in the settings, with its place."""
    if isinstance(node, str):
        yield keys, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _texts(value, (*keys, str(key)))


def _once(problems: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(problems))


def _describe(item: Any, lines: Mapping[tuple[str, ...], str]) -> str:
    """One pydantic error as one line: place, value, reason, fix."""
    loc = tuple(str(part) for part in item["loc"] if not str(part).startswith(("literal[", "list[", "constrained-")))
    known = [loc[:length] for length in range(len(loc), 0, -1) if loc[:length] in lines]
    place = f" ({lines[known[0]]})" if known else ""
    path = ".".join(loc) or "config"
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden" and loc[-1] in ON_THE_COMMAND_LINE:
        return f"{path}{place}: not a setting of a file; {ON_THE_COMMAND_LINE[loc[-1]]}"
    if kind == "extra_forbidden":
        return f"{path}{place}: unknown key{_did_you_mean(loc)}"
    if kind == "missing":
        return f"{path}: required; {_field_help(loc)}"
    if kind in ("literal_error", "list_type"):
        return f"{path}{place}: got {value!r}; {_choices(loc, value, item)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path}{place}: expected `key: value` lines below it, got {value!r}"
    reason = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if not loc or isinstance(value, dict):
        return f"{path}{place}: {reason}" if loc else reason
    return f"{path}{place}: got {value!r}; {reason[0].lower()}{reason[1:]}"


def _did_you_mean(loc: tuple[str, ...]) -> str:
    """The nearest key of the same section, or the section in which such a key exists."""
    section = _section(loc[:-1])
    names = list(section.model_fields) if section else []
    near = difflib.get_close_matches(loc[-1], names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean `{'.'.join((*loc[:-1], near[0]))}`?"
    aliases = {"lr": "train.learning_rate", "rank": "adapter.r", "lora_r": "adapter.r", "lora_alpha": "adapter.alpha"}
    aliases |= {"max_seq_length": "model.max_length", "num_train_epochs": "train.epochs", "dataset": "data.path"}
    aliases |= {"per_device_train_batch_size": "train.batch_size", "optim": "train.optimizer"}
    if loc[-1] in aliases:
        return f"; did you mean `{aliases[loc[-1]]}`?"
    elsewhere = [
        f"{top}.{loc[-1]}"
        for top in Config.model_fields
        if loc[-1] in (s.model_fields if (s := _section((top,))) else {})
    ]
    if elsewhere:
        return f"; did you mean `{elsewhere[0]}`?"
    return f"; this section has: {', '.join(names)}" if names else ""


def _choices(loc: tuple[str, ...], value: object, item: Any) -> str:
    options = list(_literals(_annotation(loc)))
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"choose one of {', '.join(options)}{hint}" if options else str(item["msg"])


def _field_help(loc: tuple[str, ...]) -> str:
    section = _section(loc[:-1])
    field = section.model_fields.get(loc[-1]) if section else None
    if field is not None and field.description:
        return field.description.split("\n")[0]
    return f"a `{loc[-1]}:` section"


def _section(loc: tuple[str, ...]) -> type[BaseModel] | None:
    """The model class at a path of keys; None where there is none."""
    kind: Any = Config
    for key in loc:
        if key.isdigit():  # an entry of a list of sections
            continue
        field = kind.model_fields.get(key)
        found = field.annotation if field is not None else None
        found = typing.get_args(found)[0] if typing.get_origin(found) is list else found
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return None
        kind = found
    return typing.cast("type[BaseModel]", kind)


def _annotation(loc: tuple[str, ...]) -> Any:
    section = _section(loc[:-1])
    field = section.model_fields.get(loc[-1]) if section else None
    return field.annotation if field is not None else None


def _literals(annotation: Any) -> Iterator[str]:
    """All words a field accepts: Literal["a"] | list[str] gives "a" and "[list, of, names]"."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        yield from (str(option) for option in typing.get_args(annotation))
    elif origin is list:
        yield "a [list, of, names]"
    elif origin in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _literals(part)
