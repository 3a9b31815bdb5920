"""What `import qdora_fast` gives: functions and error classes, also after every module has been imported."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qdora_fast
from qdora_fast.config import Config, EngineSettings
from qdora_fast.config.presets import settings_of
from qdora_fast.recipes.export import FORMATS
from qdora_fast.system import errors

ROOT = Path(qdora_fast.__file__).parent
PAGES = [ROOT.parent / "README.md", *(ROOT.parent / "docs").rglob("*.md"), *(ROOT.parent / "examples").iterdir()]
OPTIONS = {
    "train": set(Config.model_fields),
    "prepare_data": set(Config.model_fields),
    "fuse": set(EngineSettings.model_fields),
    "export": {option for each in FORMATS.values() for option in each.options},
}
"""What the functions take as further keywords."""


def test_every_error_class_is_public_and_is_the_one_that_is_raised() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes <= set(qdora_fast.__all__)
    for name in classes:
        assert getattr(qdora_fast, name) is getattr(errors, name)
    with pytest.raises(qdora_fast.QdoraError):
        raise qdora_fast.ConfigError("wrong")


def test_public_names_are_listed_and_others_are_an_attribute_error() -> None:
    assert set(qdora_fast.__all__) <= set(dir(qdora_fast))
    with pytest.raises(AttributeError, match="no attribute 'exports_of'"):
        _ = qdora_fast.exports_of


def test_no_folder_or_module_at_the_root_has_the_name_of_something_public() -> None:
    assert not {path.stem for path in ROOT.iterdir()} & set(qdora_fast.__all__)


def test_public_names_stay_what_they_are_after_every_module_has_been_imported() -> None:
    """In a process of its own; modules whose library is not installed are left out."""
    script = (
        "import importlib, pkgutil, qdora_fast\n"
        "first = {name: getattr(qdora_fast, name) for name in qdora_fast.__all__}\n"
        "failed = []\n"
        "for module in pkgutil.walk_packages(qdora_fast.__path__, 'qdora_fast.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        try:\n"
        "            importlib.import_module(module.name)\n"
        "        except ImportError:\n"
        "            failed.append(module.name)\n"
        "for name in qdora_fast.__all__:\n"
        "    assert getattr(qdora_fast, name) is getattr(qdora_fast, name) is first[name], name\n"
        "    assert callable(first[name]), name\n"
        "print(len(failed))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 10


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Each call of `qdora_fast.NAME` in a page, a docstring or an example."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in PAGES if path.suffix in (".md", ".py")}
    for page, text in texts.items():
        blocks = (
            [text] if page.endswith(".py") else re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        )
        for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
            function = node.func if isinstance(node, ast.Call) else None
            if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "qdora_fast":
                yield page, function.attr, node


def test_every_call_that_the_pages_show_is_one_that_the_function_takes() -> None:
    seen = set()
    for page, name, call in _calls():
        seen.add(name)
        keywords = {each.arg: None for each in call.keywords if each.arg}
        signature = inspect.signature(getattr(qdora_fast, name))
        signature.bind(*call.args, **keywords)  # a TypeError names what it does not take
        further = set(keywords) - {each.name for each in signature.parameters.values()}
        assert further <= OPTIONS.get(name, set()), f"{page}: {name} takes no {further - OPTIONS[name]}"
    assert seen >= {"train", "export", "evaluate", "prepare_data", "fuse", "unfuse"}


def test_keyword_sections_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    config, name = settings_of("demo", {"data": {"filters": {"truncated": False}}, "train": {"epochs": 1}})
    preset, _ = settings_of("demo", {})
    assert config.data.filters.min_tokens == preset.data.filters.min_tokens == 0  # the preset's own
    assert (config.data.filters.truncated, config.train.epochs, name) == (False, 1, "demo")
    assert config.train.model_copy(update={"epochs": preset.train.epochs}) == preset.train

    file = tmp_path / "exp[1] ü.yaml"
    file.write_text("model: {name: demo}\ndata: {path: demo}\ntrain:\n")
    for given in (file, str(file), settings_of(file, {})[0], {"model": {"name": "demo"}, "data": {"path": "demo"}}):
        changed, _ = settings_of(given, {"data": {"path": tmp_path / "a [b].jsonl"}})
        assert changed.data.path == str(tmp_path / "a [b].jsonl")
        assert changed.model == preset.model.model_copy(update={"max_length": 2048})
    with pytest.raises(qdora_fast.ConfigError, match="train"):
        settings_of("demo", {"train": 3})
    with pytest.raises(qdora_fast.ConfigError, match="trian"):
        settings_of("demo", {"trian": {"epochs": 1}})
    assert settings_of({"model": {"name": "demo"}, "data": {"path": "demo"}, "train": None}, {"train": {"seed": 1}})
