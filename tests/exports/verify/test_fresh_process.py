"""The process that examines an export: what reaches it, what comes back, and what it has not imported."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from qdora_fast.exports.verify import fresh_process
from qdora_fast.exports.verify.checks import Case
from qdora_fast.exports.verify.fresh_process import examine_in_new_process, load_case, save_case
from qdora_fast.system import child
from qdora_fast.system.errors import IntegrityError, ProofError


def test_a_case_is_read_as_it_was_written(right_case: Case, tmp_path: Path) -> None:
    save_case(right_case, tmp_path)
    again = load_case(tmp_path)
    assert again.models == right_case.models
    assert (again.held_out, again.tokens, again.auto) == (right_case.held_out, right_case.tokens, right_case.auto)
    assert again.evidence.tuned.losses == right_case.evidence.tuned.losses
    assert again.evidence.sample.values.keys() == right_case.evidence.sample.values.keys()


def test_it_says_what_it_does_and_what_it_found(right_case: Case) -> None:
    phases: list[str] = []
    found = examine_in_new_process(right_case, phases.append)
    assert found["passed"], found["checks"]
    assert len(phases) > 3 and phases[0] == "running the exported model"


def test_errors_come_back_as_they_were_raised(right_case: Case, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(right_case.models.adapter, tmp_path / "adapter"))
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    broken = replace(right_case, models=replace(right_case.models, adapter=adapter))
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        examine_in_new_process(broken)


def test_a_process_that_dies_fails_the_proof_with_its_last_words(
    right_case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hurt(case: Case, folder: Path) -> None:
        (folder / "case.json").write_text("{}")

    monkeypatch.setattr(fresh_process, "save_case", hurt)
    with pytest.raises(ProofError, match="the process that proves the export ended with 1:[^$]*KeyError"):
        examine_in_new_process(right_case)


def test_nothing_of_the_training_stack_is_imported_there() -> None:
    code = (
        "import sys, qdora_fast.exports.verify.fresh_process; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'unsloth', 'unsloth_zoo', 'trl', 'peft'}))"
    )
    done = subprocess.run(child.python("-c", code), env=child.environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
