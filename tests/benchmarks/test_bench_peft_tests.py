"""PEFT's tests, plain and fused: what is counted, what is named, and which checkouts are refused."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from benchmarks.options import PeftTestOptions
from benchmarks.peft_tests.suite import FILES, compared, run_peft_tests
from benchmarks.records import render
from qdora_fast.system.errors import ConfigError

TESTS = """
import pytest, torch
from torch import nn

def _model(**how):
    from peft import LoraConfig, get_peft_model
    return get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(r=2, target_modules=["0"], **how))

def test_lora_same(): assert _model()(torch.ones(1, 8)).shape == (1, 8)
def test_lora_seeded(): assert torch.equal(torch.randn(3), torch.manual_seed(0) and torch.randn(3))
def test_lora_differs(): assert type(_model(use_dora=True).base_model.model[0]).__name__ == "Linear"
def test_lora_hub(): raise OSError("We couldn't connect to 'https://huggingface.co'")
def test_lora_skipped(): pytest.skip("not here")
def test_other(): pass
"""


def _checkout(folder: Path, number: str) -> Path:
    (folder / "src" / "peft").mkdir(parents=True)
    (folder / "src" / "peft" / "__init__.py").write_text(f'__version__ = "{number}"\n')
    (folder / "tests").mkdir()
    for name in FILES:
        (folder / "tests" / f"{name}.py").write_text(TESTS)
    return folder


def _end(outcome: str, layers: int = 0) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "why": "test_x.py:3\nE   assert 1 == 2\nE    +  where",
        "layers": layers,
        "calls": layers,
    }


def test_what_ends_otherwise_is_named_and_the_rest_counted() -> None:
    plain = {"a": _end("passed"), "b": _end("passed"), "c": _end("failed"), "d": _end("hub"), "e": _end("skipped")}
    fused = {**plain, "a": _end("passed", 2), "b": _end("failed", 1)}
    found = compared([*plain, "f"], plain, fused)
    assert found["differing"] == [("b", "passed", "failed", "assert 1 == 2")]
    counts = ("collected", "run", "passed", "failed", "hub", "skipped", "fused", "unfinished")
    assert [found[name] for name in counts] == [6, 3, 1, 1, 1, 1, 2, 1]
    assert not found["gate"]["passed"]
    same = compared(["a"], plain, fused)
    assert same["gate"]["passed"] and same["differing"] == []


@pytest.mark.parametrize(("number", "said"), [("0.1.0", "PEFT 0.1.0, but .* is installed"), (None, "no checkout")])
def test_another_version_and_another_folder_are_refused(number: str | None, said: str, tmp_path: Path) -> None:
    folder = _checkout(tmp_path / "peft", number) if number else tmp_path
    with pytest.raises(ConfigError, match=said):
        run_peft_tests(PeftTestOptions(str(folder)))


@pytest.mark.exhaustive  # starts four processes that import PEFT
def test_both_arms_on_a_checkout_and_again_from_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peft_tests.suite.write_models", lambda folder: folder.mkdir(exist_ok=True))
    options = PeftTestOptions(
        str(_checkout(tmp_path / "peft", version("peft"))), folder=str(tmp_path / "out"), files=FILES[:1]
    )
    found = run_peft_tests(options)
    counts = ("collected", "run", "passed", "hub", "skipped", "fused", "called", "unfinished")
    assert [found[name] for name in counts] == [5, 3, 2, 1, 1, 2, 1, 0]
    ((name, plain, fused, _),) = found["differing"]
    assert name.endswith("test_lora_differs") and (plain, fused) == ("passed", "failed")
    written = (tmp_path / "out" / "fused.jsonl").read_bytes()
    again = run_peft_tests(options)
    assert again["differing"] == found["differing"] and (tmp_path / "out" / "fused.jsonl").read_bytes() == written
    said = render({"here": again})
    assert "| end otherwise fused | 1 |" in said and os.fspath(tmp_path / "peft") not in said.split("peft-tests")[0]
