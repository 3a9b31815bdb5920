"""What `import qdora_fast` gives: functions and error classes, also after every module has been imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qdora_fast
from qdora_fast.system import errors

ROOT = Path(qdora_fast.__file__).parent


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
