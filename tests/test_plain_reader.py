"""The proof's reader: a process without the training stack, whose recording equals ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdora_fast.base_tokenizer import load_tokenizer
from qdora_fast.behaviour import compare, record, reopen
from qdora_fast.data.render import Rendering
from qdora_fast.errors import ProofError
from qdora_fast.plain_reader import open_in_new_process
from qdora_fast.token_identity import describe, differences

ROWS = [{"input_ids": list(range(5, 25)), "labels": [-100] * 10 + list(range(15, 25))}]


def test_it_records_what_this_process_would(tiny_base: Path) -> None:
    tokenizer, stop_ids = load_tokenizer(str(tiny_base), None)
    tokens = describe(Rendering(tokenizer, 64, stop_ids=stop_ids), [{"text": "Lima", "meta": {"source": "row 1"}}])
    opened = open_in_new_process([tiny_base, tiny_base], ROWS, in_4bit=[tiny_base], tokens=tokens)
    for elsewhere in opened.recordings:
        agreement = compare(record(reopen(tiny_base, device="cpu", in_4bit=True), ROWS), elsewhere)
        assert agreement.mean_kl == pytest.approx(0, abs=1e-7)
        assert agreement.ce_reference == pytest.approx(agreement.ce_other, abs=1e-5)
        assert elsewhere.tokens == 10
    assert opened.tokens is not None and differences(tokens, opened.tokens) == []
    (dense,) = open_in_new_process([tiny_base], ROWS).recordings
    assert compare(record(reopen(tiny_base, device="cpu"), ROWS), dense).mean_kl == pytest.approx(0, abs=1e-7)
    assert compare(dense, opened.recordings[0]).mean_kl > 1e-6


def test_a_folder_that_is_no_model_fails_the_proof(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="cannot be opened with plain Transformers"):
        open_in_new_process([tmp_path], ROWS)
