"""What becomes of every type of model in the pinned Transformers is recorded, and changes by intent alone.

`python -m tests.helpers.inventory` writes the record anew; read its diff before it is committed.
"""

from __future__ import annotations

import pytest
from inventory import model_types, record, verdict

QUICK = ("bamba", "bart", "bloom", "falcon_mamba", "gpt2", "olmo3", "qwen3_moe", "recurrent_gemma")
"""A type of each kind of verdict."""


def test_every_type_has_a_verdict_and_none_is_silently_wrong() -> None:
    recorded = record()
    assert tuple(recorded) == model_types()
    assert not {name: said for name, said in recorded.items() if "SILENT" in said}
    assert all(said.startswith(("taken: ", "refused: ", "no default config")) for said in recorded.values())


@pytest.mark.parametrize("model_type", QUICK)
def test_a_type_of_each_kind_is_judged_as_recorded(model_type: str) -> None:
    assert verdict(model_type) == record()[model_type]


@pytest.mark.exhaustive
def test_every_type_is_judged_as_recorded() -> None:
    recorded = record()
    changed = {name: said for name in model_types() if (said := verdict(name)) != recorded[name]}
    assert not changed
