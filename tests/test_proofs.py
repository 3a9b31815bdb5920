"""The harness of `make proofs` in its smallest size: what is right is proven, what is wrong is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from proofs import exporting
from proofs.controls import CONTROLS
from proofs.damage import differing_values, one_ulp, stored_tensors
from proofs.plan import SIZES, Batch, Training, batches
from proofs.preloaded import Preloaded
from proofs.table import false_alarms, let_pass
from proofs.work import Subject, do, keys
from qdora_fast.system.run_folder import RunFolder

ALL_FORMS, OF_16_BITS = ("original16", "dequant4", "nf4"), ("original16", "nf4")


@pytest.fixture(scope="module")
def proving() -> Iterator[None]:
    """Proofs are run by one process without the training stack, in forks."""
    with Preloaded("plain", {}) as plain:
        plain.wait_until_loaded()
        with exporting.proving_in(plain.address, 1):
            yield


def _exports(run: RunFolder, scratch: Path, method: str, forms: Any, **choices: Any) -> list[dict[str, Any]]:
    batch = Batch(Training("tiny", method, steps=(4,)), 4, "native", 1, False, forms, **choices)
    subject = Subject(run, exporting.record_saved(run), None)
    dense = {f"{batch.name}/nf4/{control.name}" for control in CONTROLS if not control.name.startswith("an NF4")}
    return list(do(batch, subject, scratch, skip=dense))


@pytest.mark.slow
def test_right_exports_are_proven(short_run: Any, demo_run: RunFolder, proving: None, tmp_path: Path) -> None:
    lines = _exports(demo_run, tmp_path, "qdora", ALL_FORMS)
    for method, forms in (("qdora", ALL_FORMS), ("qlora", ALL_FORMS), ("dora", OF_16_BITS), ("lora", OF_16_BITS)):
        lines += _exports(short_run(method), tmp_path, method, forms)
    assert len(lines) == 13
    assert [(line["key"], line["words"]) for line in false_alarms(lines)] == []


@pytest.mark.slow
def test_wrong_exports_are_refused(short_run: Any, proving: None, tmp_path: Path) -> None:
    lines = _exports(short_run(), tmp_path, "qdora", OF_16_BITS, right=False, controls=OF_16_BITS)
    assert {line["control"] for line in lines} == {each.name for each in CONTROLS} - {"adapter of an earlier step"}
    assert [(line["key"], line["differing"]) for line in let_pass(lines)] == []


def test_stored_values_are_compared_bit_by_bit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tensors = {"weight": torch.ones(4, 6, dtype=torch.bfloat16), "codes": torch.arange(5, dtype=torch.uint8)}
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    assert differing_values(tmp_path / "one", tmp_path / "two") == 0
    one_ulp(stored_tensors(tmp_path / "two")["weight"], 7)
    assert differing_values(tmp_path / "one", tmp_path / "two") == 1
    assert stored_tensors(tmp_path / "two")["weight"].read()[1, 1] == 1 + 2**-7
    save_file({"weight": torch.ones(4, 6, dtype=torch.bfloat16)}, tmp_path / "two" / "model.safetensors")
    assert differing_values(tmp_path / "one", tmp_path / "two") == 5
    shutil.rmtree(tmp_path / "two")
    assert differing_values(tmp_path / "one", tmp_path / "two") == 29


def test_a_mistake_that_changed_nothing_is_no_wrong_export() -> None:
    def line(**found: Any) -> dict[str, Any]:
        return {
            "control": "alpha doubled",
            "of_weights": True,
            "differing": 0,
            "failed": [],
            "right_failed": [],
        } | found

    assert let_pass([line(), line(failed=["weights"], differing=3)]) == []
    assert len(let_pass([line(differing=1)])) == 1
    assert len(let_pass([line(control="rope_theta", of_weights=False)])) == 1
    assert len(let_pass([line(differing=1, failed=["gain_kept"], right_failed=["gain_kept"])])) == 1


@pytest.mark.parametrize("size", SIZES)
def test_every_export_of_a_size_has_a_name_of_its_own(size: str) -> None:
    names = [key for batch in batches(size) for key in keys(batch)]
    assert len(names) == len(set(names))


def test_the_full_size_has_every_base_method_form_and_arithmetic_in_right_exports() -> None:
    exports = [(batch, form) for batch in batches("full") for form in batch.forms]
    heavy = sum(batch.training.base in ("wide", "smollm2") for batch, _ in exports)
    assert len(exports) - heavy >= 180 and heavy >= 20
    seen = {name: {getattr(batch.training, name) for batch, _ in exports} for name in ("base", "method", "r", "rslora")}
    assert len(seen["base"]) == 10 and len(seen["method"]) == 4 and seen["r"] == {4, 16, 64}
    assert seen["rslora"] == {False, True}
    assert len({(batch.arithmetic, batch.threads) for batch, _ in exports}) == 6
