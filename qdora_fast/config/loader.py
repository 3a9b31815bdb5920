"""From a YAML file and `--set a.b=c` to a valid `Config`, or to every mistake at once.

A user who has made three mistakes should learn of three, each with its line, its value,
what was probably meant and how to fix it: so the errors are collected, never raised one
by one. Nothing heavier than pydantic is imported here.
"""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from qdora_fast.config import Config
from qdora_fast.config.code import Keys, at, with_code
from qdora_fast.config.fields import short
from qdora_fast.config.yaml import Lines, plain, read_value, read_yaml, write_yaml
from qdora_fast.system import console, remote_code
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.redact import redact
from qdora_fast.system.urls import without_credentials

ON_THE_COMMAND_LINE = {
    "trust_remote_code": f"give {remote_code.FLAG} on the command line, where the person who runs it decides",
    "offline": "put --offline on the command line",
    "own_code": "give --own-code FILE on the command line, where the person who runs it decides",
    "rows": "Python alone takes rows, as data={'rows': ...}; a file names where they lie, in data.path",
    "held_out_rows": "Python alone takes rows; a file names where they lie, in data.held_out_path",
}
NOT_RECORDED = ("run", "notify")
"""May hold a secret, as a run keeps no copy of it; no message shows it."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply `a.b=value` overrides in order, and validate the whole.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or any value is wrong;
            the message lists every problem with its line and its fix.
    """
    tree, lines = read_yaml(path)
    problems = [problem for text in overrides if (problem := _override(tree, lines, text))]
    return _validate(tree, lines, source=str(path), problems=problems, folder=path.parent)


def make_config(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The same for settings given as a dictionary: `{"model": {"name": ...}, "data": {...}}`.

    Raises:
        ConfigError: as `load_config`.
    """
    tree = plain(values)
    lines: Lines = {}
    problems = [problem for text in overrides if (problem := _override(tree, lines, text))]
    return _validate(tree, lines, source="the given settings", problems=problems)


def dump_config(config: Config) -> str:
    """The whole resolved config as YAML, defaults included; loading it gives the same config."""
    return write_yaml(config.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file, for completion and checks in an editor."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _override(tree: dict[str, Any], lines: Lines, text: str) -> str | None:
    """Put one `a.b=value` into the tree; returns the problem if it cannot be.

    The value of a setting that is text is that text, whatever YAML would make of it: `[a] #1.jsonl`, `~`, `1e5`; empty:
    none. Other values are read as YAML, and so is text between quotes.
    """
    dotted, equals, raw = text.partition("=")
    raw = raw.lstrip() if dotted.endswith(" ") else raw  # typed as `a.b = value`
    keys = tuple(key.strip() for key in dotted.split("."))
    if not equals or not all(keys):
        return f"--set {text}: write it as section.key=value, for instance --set train.learning_rate=1e-4"
    section = tree
    for key in keys[:-1]:
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            return f"--set {text}: `{key}` is a value, not a section"
        section = inner
    section[keys[-1]] = (raw or None) if _is_text(_annotation(keys)) and not _is_quoted(raw) else read_value(raw)
    lines[keys] = "--set"
    return None


def _validate(
    tree: Any, lines: Mapping[tuple[str, ...], str], *, source: str, problems: list[str], folder: Path = Path()
) -> Config:
    """The config; paths of code start at `folder`, those that `--set` has given at the working directory."""
    problems = list(problems)
    config = None
    if isinstance(data := tree.get("data"), dict):
        tree = {**tree, "data": _public(data)}
    # A section written as `train:` with nothing below it means "all defaults".
    tree = {key: ({} if value is None and key in Config.model_fields else value) for key, value in tree.items()}
    problems += _read_renamed(tree)
    try:
        config = Config.model_validate(with_code(tree, partial(_absolute, lines, folder)))
    except ValidationError as error:
        problems += _once(_describe(item, lines) for item in error.errors(include_url=False))
    problems += [
        f"{'.'.join(keys)}{f' ({lines[keys]})' if keys in lines else ''}: {wrong}"
        for keys, text in _texts(tree)
        if keys[:2] != NOT_RECORDED and (wrong := _text_problem(text))
    ]
    if problems or config is None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{count} in {source}:\n{listed}")
    return config


def _read_renamed(tree: dict[str, Any]) -> Iterator[str]:
    """Move `evaluation.mmlu.tasks` of earlier versions, which were asked with MMLU only, to `evaluation.benchmarks`;
    yields what is wrong."""
    evaluation = tree.get("evaluation")
    mmlu = evaluation.get("mmlu") if isinstance(evaluation, dict) else None
    if not isinstance(evaluation, dict) or not isinstance(mmlu, dict) or "tasks" not in mmlu:
        return
    tree["evaluation"] = evaluation = {**evaluation, "mmlu": {k: v for k, v in mmlu.items() if k != "tasks"}}
    tasks, old, new = mmlu["tasks"], "evaluation.mmlu.tasks", "evaluation.benchmarks"
    if not tasks:  # what earlier versions wrote where nobody asked for any
        return
    if not mmlu.get("enabled"):
        _say_once(f"{old} ({_listed(tasks)}) has no effect: it was asked with MMLU only; the setting is now {new}")
    elif evaluation.get("benchmarks"):
        yield f"{old}: it is now {new}, which is set as well; keep that one"
    else:
        evaluation["benchmarks"] = tasks
        _say_once(f"{old} is now {new}: {_listed(tasks)}")


@functools.cache
def _say_once(text: str) -> None:
    """A command may read one config several times."""
    console.note(text)


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list) else str(names)


def _absolute(lines: Mapping[tuple[str, ...], str], folder: Path, _setting: str, keys: Keys, text: str) -> str:
    typed = any(lines.get(keys[:length]) == "--set" for length in range(1, len(keys) + 1))
    return at(Path() if typed else folder, text)


def _public(node: Any) -> Any:
    """The `data` section with the credentials of its URLs taken out: a run keeps a copy of its config."""
    if isinstance(node, dict):
        return {key: _public(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_public(value) for value in node]
    return without_credentials(node) if isinstance(node, str) else node


def _texts(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in the settings, with its keys."""
    if isinstance(node, str):
        yield keys, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _texts(value, (*keys, str(key)))


def _text_problem(text: str) -> str | None:
    """What is wrong with a text of any setting; None: nothing."""
    if (without := redact(text)) != text:
        return (
            f"holds a secret ({without}), and a run keeps a copy of its config; put it into an environment variable "
            "such as HF_TOKEN"
        )
    if "\0" in text or text != text.encode(errors="replace").decode():
        return f"got {text!r}; it holds NUL or an invalid character; type the value again"
    return None


def _once(problems: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(problems))


def _describe(item: Any, lines: Mapping[tuple[str, ...], str]) -> str:
    """One pydantic error as one line: setting, line, value, reason, fix."""
    loc = tuple(str(part) for part in item["loc"] if not str(part).startswith(("literal[", "list[", "constrained-")))
    known = [loc[:length] for length in range(len(loc), 0, -1) if loc[:length] in lines]
    place = f" ({lines[known[0]]})" if known else ""
    path = ".".join(loc) or "config"
    kind, value = item["type"], item.get("input")
    if loc[:2] == NOT_RECORDED:
        return f"{path}{place}: {str(item['msg']).removeprefix('Value error, ')}"
    if kind == "extra_forbidden" and loc[-1] in ON_THE_COMMAND_LINE:
        return f"{path}{place}: not a setting of a config file; {ON_THE_COMMAND_LINE[loc[-1]]}"
    if kind == "extra_forbidden":
        return f"{path}{place}: unknown key{_did_you_mean(loc)}"
    if kind == "missing":
        return f"{path}: required; {_field_help(loc)}"
    if kind in ("literal_error", "list_type"):
        return f"{path}{place}: got {_shown(value)}; {_choices(loc, value, item)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path}{place}: expected `key: value` lines below it, got {_shown(value)}"
    if kind == "string_type":
        return f"{path}{place}: got {_shown(value)}; must be text: put it in quotes"
    reason = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if not loc or isinstance(value, dict):
        return f"{path}{place}: {reason}" if loc else reason
    return f"{path}{place}: got {_shown(value)}; {reason[0].lower()}{reason[1:]}"


def _shown(value: Any) -> str:
    """A value in a message; numbers of thousands of digits have no text in Python."""
    try:
        return short(repr(value))
    except ValueError:
        return "a number of more than 4,300 digits"


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
        inner = field.annotation if field is not None else None
        inner = typing.get_args(inner)[0] if typing.get_origin(inner) is list else inner
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        kind = inner
    return typing.cast("type[BaseModel]", kind)


def _annotation(loc: tuple[str, ...]) -> Any:
    section = _section(loc[:-1])
    field = section.model_fields.get(loc[-1]) if section else None
    return field.annotation if field is not None else None


def _is_text(annotation: Any) -> bool:
    """Whether a setting takes text and nothing else, apart from none."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return annotation is str or (union and set(typing.get_args(annotation)) == {str, type(None)})


def _is_quoted(raw: str) -> bool:
    text = raw.strip()
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


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
