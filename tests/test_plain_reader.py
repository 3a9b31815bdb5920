"""The proof's reader: a process without the training stack, whose recording equals ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.behaviour import compare, record, reopen
from qdora_fast.errors import ProofError
from qdora_fast.plain_reader import record_in_new_process

ROWS = [{"input_ids": list(range(5, 25)), "labels": [-100] * 10 + list(range(15, 25))}]


def test_it_records_what_this_process_would(tiny_base: Path) -> None:
    (elsewhere,) = record_in_new_process([tiny_base], ROWS)
    agreement = compare(record(reopen(tiny_base, device="cpu"), ROWS), elsewhere)
    assert agreement.mean_kl == pytest.approx(0, abs=1e-7)
    assert agreement.ce_reference == pytest.approx(agreement.ce_other, abs=1e-5)
    assert elsewhere.tokens == 10


def test_a_folder_that_is_no_model_fails_the_proof(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="cannot be opened with plain Transformers"):
        record_in_new_process([tmp_path], ROWS)
