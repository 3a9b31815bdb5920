from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import evaluation, task

from qdora_fast.evaluation.report.before_after import Line, before_after, between, percent, points
from qdora_fast.system.pages import NO_NUMBER


def lines(**changes: Any) -> dict[str, Line]:
    return {line.name: line for line in before_after(evaluation(**changes))}


def test_every_figure_has_its_line_and_the_one_that_decides_is_first() -> None:
    found = lines()
    assert list(found) == [
        "normalized_match",
        "rouge_l",
        "held-out loss",
        "held-out perplexity",
        "MMLU, 5-shot",
        "arc_easy (acc)",
        "answers cut at the limit",
        "empty answers",
    ]
    assert [name for name, line in found.items() if line.main] == ["normalized_match"]


def test_shares_are_per_cent_and_their_differences_points() -> None:
    line = lines()["normalized_match"]
    said = (line.n, line.base, line.tuned, line.change, line.interval, line.p, line.flips)
    plain = tuple(text.replace("\u00a0", " ") for text in said)
    assert plain == ("50", "20.0 %", "80.0 %", "+60.0 points", "+45.0 to +75.0", "< 0.001", "+32 −2")
    mmlu = lines()["MMLU, 5-shot"]
    assert (mmlu.change.replace("\u00a0", " "), mmlu.interval) == ("−2.3 points", "−3.6 to −1.1")


def test_losses_are_numbers_and_scores_are_no_accuracies() -> None:
    loss, score = lines()["held-out loss"], lines()["rouge_l"]
    assert (loss.base, loss.tuned, loss.change, loss.interval) == ("4", "0.5", "−3.5", "−3.7 to −3.3")
    assert (score.base, score.change, score.flips) == ("0.31", "+0.59", "")


def test_large_numbers_are_written_out_and_senseless_ones_short() -> None:
    loss = evaluation()["heldout_loss"] | {"perplexity": {"base": 849_917.3, "tuned": 1e30}}
    line = lines(heldout_loss=loss)["held-out perplexity"]
    assert (line.base, line.tuned, line.change) == ("849,917", "1e+30", "+1e+30")


def test_a_side_is_taken_only_where_the_whole_interval_is_there_and_less_loss_is_a_gain() -> None:
    sides = {name: line.side for name, line in lines().items()}
    assert sides["normalized_match"] == sides["held-out loss"] == "gain"
    assert sides["MMLU, 5-shot"] == "lost"
    assert sides["arc_easy (acc)"] == sides["empty answers"] == ""
    assert lines(task=task(ci95=[-0.01, 0.2]))["normalized_match"].side == ""
    assert lines(task=task(ci95=[0.0, 0.2]))["normalized_match"].side == ""


def test_what_was_not_measured_has_no_line() -> None:
    assert list(before_after({})) == []
    assert list(lines(task=None, mmlu=None)) == ["held-out loss", "held-out perplexity"]


def test_numbers_are_never_nearly_right() -> None:
    assert (percent(None), percent(float("nan")), points(True)) == (NO_NUMBER, NO_NUMBER, NO_NUMBER)
    assert (points(0.0), points(-0.0), points(-0.00001), points(0.0012)) == ("0.0", "0.0", "0.0", "+0.1")
    assert between([0.1, 0.25]).replace("\u00a0", " ") == "10.0 to 25.0 %"
    assert between(None) == between([1]) == between([0.1, None]) == ""


wild = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(task())), inner, max_size=6),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["task", "heldout_loss", "mmlu"]), wild))
def test_whatever_lies_in_the_record_the_lines_are_texts(found: dict[str, Any]) -> None:
    for line in before_after(found):
        assert all(isinstance(text, str) for text in line[:-1])
        assert "None" not in line.base + line.tuned + line.change + line.interval + line.p
        assert "nan" not in line.base + line.tuned + line.change + line.interval
