"""How much of the gain is left: figures whose answer is known, and what is said of each."""

from __future__ import annotations

import pytest

from qdora_fast.survival import Survival


@pytest.mark.parametrize(
    ("exported", "kept", "passed", "warned"),
    [
        (6.3685, 1.0, True, False),
        (6.370, 0.993, True, False),
        (6.42, 0.76, True, True),
        (6.479, 0.5, True, True),
        (6.551, 0.18, False, False),
        (6.60, -0.05, False, False),
        (6.30, 1.32, True, False),
    ],
)
def test_an_export_nearer_the_base_is_refused(exported: float, kept: float, passed: bool, warned: bool) -> None:
    survival = Survival(base=6.590, trained=6.3685, exported=exported, held_out=True)
    assert survival.kept == pytest.approx(kept, abs=0.02)
    assert survival.passed is passed
    assert (survival.warning is not None) is warned
    assert ("nearer the base" in survival.words) is not passed
    assert survival.to_dict()["kept"] == survival.kept


def test_rows_that_were_trained_on_prove_nothing() -> None:
    survival = Survival(base=6.0, trained=1.0, exported=6.0, held_out=False)
    assert survival.kept is None and survival.passed and survival.warning is None
    assert "not judged, no rows were held out" in survival.words


@pytest.mark.parametrize("trained", [6.0, 5.997, 6.4])
def test_where_nothing_was_gained_nothing_is_judged(trained: float) -> None:
    survival = Survival(base=6.0, trained=trained, exported=6.0, held_out=True)
    assert survival.kept is None and survival.passed and survival.warning is None
    assert "tuning gained nothing on held-out rows" in survival.words


def test_a_loss_that_is_not_a_number_is_refused() -> None:
    assert not Survival(base=6.0, trained=5.0, exported=float("nan"), held_out=True).passed
