"""What a document shows can be typed: commands are parsed by the program, configs validated, Python checked and run.

Nothing heavy is run by `make test`: a command is parsed with its options and values and not executed. The Python blocks
that need no file of the reader are executed by `make test-all`.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from documents import ROOT, Block, blocks
from ruamel.yaml import YAML

import qdora_fast
from benchmarks.cli import cli as benchmarks
from docs.make_reference import make_verbs
from qdora_fast.cli.main import cli
from qdora_fast.config.loader import load_config, make_config
from qdora_fast.config.presets import find_config, settings_of

ELSEWHERE = {"git", "grep", "kill", "pip", "source"}
"""Programs that are not ours; a block with another one says why it is not run."""
WITH_CONFIG = {"train", "plan", "data", "compare"}


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block of shell lines, as words, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for joined, group in itertools.groupby(words, key=lambda word: word in ("&&", "|")):
            if not joined:
                yield list(group)


def check(words: list[str]) -> None:
    """Fail unless a command exists and takes these options."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "qdora-fast":
        check_cli(cli, rest)
    elif program == "make":
        check_make(rest)
    elif program == "torchrun":
        check(rest[rest.index("--no-python") + 1 :])
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), rest[1]
        if rest[1] == "benchmarks":
            check_cli(benchmarks, rest[2:])
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
    else:
        assert program in ELSEWHERE, f"{program}: say in a comment why it is not run"


def check_cli(group: click.Group, words: list[str]) -> None:
    """Parse a command of a group: its options exist and its values are of their types; files need not be there."""
    name, *rest = [word for word in words if word != "--debug"]
    assert name in group.commands, f"no command {name}"
    command = group.commands[name]
    context = click.Context(command, info_name=name)
    values, left, _ = command.make_parser(context).parse_args(rest)
    assert not left, f"{name} does not take {left}"
    for parameter in command.params:
        value = values.get(parameter.name)
        if not isinstance(value, str | list | tuple) or isinstance(parameter.type, click.Path):
            continue
        for each in [value] if isinstance(value, str) else value:
            parameter.type.convert(each, parameter, context)
    if "overrides" in values:
        load_config(find_config("demo"), values["overrides"] or ())
    named = values.get("config") or values.get("target")
    if name in WITH_CONFIG and isinstance(named, str):
        path = find_config(named)
        assert path.is_file() or path.parent == Path(), f"{path} is not there"


def check_make(words: list[str]) -> None:
    """A verb that exists, with options that what it calls takes."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    (verb,) = (word for word in words if "=" not in word)
    assert verb in make_verbs(), f"no verb {verb}"
    assert given.keys() <= {"ARGS", "CONFIG", "DATA", "PROFILE", "HASHES", "CHROMIUM"}, given
    if verb == "train":
        check_cli(cli, ["train", *filter(None, [given.get("CONFIG")]), *shlex.split(given.get("ARGS", ""))])


@pytest.mark.parametrize("block", [block for block in blocks("bash") if not block.reason], ids=str)
def test_commands_can_be_typed(block: Block) -> None:
    for words in commands(block):
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "qdora-fast tune demo",
        "qdora-fast train demo --no-such-option",
        "qdora-fast train demo --set train.epoch=1",
        "qdora-fast train no-such-preset",
        "qdora-fast train configs/no-such.yaml",
        "qdora-fast chat runs/demo --temperature hot",
        "qdora-fast review runs/demo --verdict perhaps",
        "make training",
        "make train ARGS='--no-such-option'",
        "python -m benchmarks engine --case none",
        "unknown-program",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((AssertionError, click.ClickException, qdora_fast.system.errors.ConfigError)):
        check(shlex.split(line))


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_configs_are_valid(block: Block) -> None:
    tree = YAML(typ="safe").load(block.text)
    for section, value in {"model": {"name": "demo"}, "data": {"path": "demo"}}.items():
        tree.setdefault(section, value)
    make_config(tree)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_names_exist_and_take_these_arguments(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("qdora_fast.")):
            continue
        name = ast.unparse(node.func).removeprefix("qdora_fast.")
        assert name in qdora_fast.__all__, name
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        inspect.signature(getattr(qdora_fast, name)).bind(*node.args, **keywords)
        sections = {key: written(value) for key, value in keywords.items() if isinstance(value, ast.Dict)}
        settings_of("demo", sections)


def written(section: ast.Dict) -> dict[str, Any]:
    """What stands in a dictionary, without the values that are names of variables, such as a DataFrame's."""
    pairs = zip(section.keys, section.values, strict=True)
    literal = [(key, value) for key, value in pairs if key and not isinstance(value, ast.Name)]
    return {ast.literal_eval(key): ast.literal_eval(value) for key, value in literal}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("block", [block for block in blocks("python") if not block.reason], ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
