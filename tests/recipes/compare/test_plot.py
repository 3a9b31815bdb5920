"""The page of a comparison: whole, without a request, and with nothing of the data in its markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from breadth import examples
from html_pages import Page
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.recipes.compare import figures
from qdora_fast.recipes.compare.arms import choose_arms
from qdora_fast.recipes.compare.plot import comparison_page
from qdora_fast.recipes.compare.words import sentence


def _record(results: Sequence[dict[str, Any]], methods: Sequence[str], ratios: Sequence[float]) -> dict[str, Any]:
    arms = choose_arms(methods, ratios)
    chosen = figures.of_arms(arms, results)
    target = figures.default_target(chosen[arms[0].name])
    found = figures.differences(arms, chosen)
    return {
        "name": "<b>tiny</b>",
        "seeds": sorted({one["seed"] for one in results}),
        "steps": 30,
        "metric": "numeric",
        "score_name": "accuracy",
        "target": {"loss": target, "from": "where it ends"},
        "base": "demo",
        "arms": {arm.name: figures.describe_arm(arm, chosen[arm.name], target, {1e-3: 1.0}) for arm in arms},
        "differences": [one | {"words": sentence(one, "accuracy")} for one in found],
        "dataset": {"hash": "abc", "train": 10, "held_out": 5, "asked": 5},
        "machine": {"cpu": "a <processor>", "python": "3.11", "packages": {"torch": "2.11"}},
        "clock": "on it",
        "memory_counts": "weights",
        "at": "2026-01-01T00:00:00+00:00",
    }


@pytest.fixture
def record(result: Any) -> dict[str, Any]:
    results = [
        result(arm.name, seed, [6.5, 2.0 + seed / 10, 0.5, 0.02 * seed + place / 100], right=5 + place % 4)
        for seed in (1, 2, 3)
        for place, arm in enumerate(choose_arms(["lora", "dora", "full"], [1, 16]))
    ]
    return _record(results, ["lora", "dora", "full"], [1, 16])


def test_every_arm_is_a_line_a_row_and_a_strip_with_a_dot_a_seed(record: dict[str, Any]) -> None:
    page = Page(comparison_page(record))
    charts = [name for name, attrs in page.tags if name == "figure"]
    assert len(charts) == 4  # LoRA+ off, LoRA+ 16, lora, dora
    drawn = [attrs for attrs in page.of("polyline", "curve") if len((attrs["points"] or "").split()) > 2]
    assert len(drawn) == (2 + 1) + (2 + 1) + 2 + 2
    assert len(page.of("polygon", "band")) == len(drawn)
    dots = [attrs for name, attrs in page.tags if name == "i" and "left:" in (attrs.get("style") or "")]
    assert len(dots) == 2 * 5 * 3  # loss and accuracy, five arms, three seeds
    for arm in record["arms"].values():
        assert arm["spoken"] in page.text


def test_the_page_makes_no_request_and_runs_nothing(record: dict[str, Any]) -> None:
    page = Page(comparison_page(record))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & attrs.keys() for _, attrs in page.tags)
    assert "url(" not in comparison_page(record)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert "default-src 'none'" in (policy or "")


def test_names_are_text_and_never_markup(record: dict[str, Any]) -> None:
    page = Page(comparison_page(record))
    assert "<b>tiny</b>" in page.text
    assert "processor" not in {tag for tag, _ in page.tags}


def test_every_sentence_and_every_limit_is_on_the_page(record: dict[str, Any]) -> None:
    text = Page(comparison_page(record)).text
    assert len(record["differences"]) == 6
    assert all(one["words"] in text for one in record["differences"])
    assert "not corrected for their number" in text


def test_everything_drawn_lies_inside_its_chart(record: dict[str, Any]) -> None:
    page = Page(comparison_page(record))
    for attrs in [*page.of("polyline", "curve"), *page.of("polygon", "band")]:
        for x, y in (map(float, point.split(",")) for point in (attrs["points"] or "").split()):
            assert 0 <= x <= 100
            assert 0 <= y <= 100
    for _, attrs in page.tags:
        for share in re.findall(r"(?:left|width):([-\d.e]+)%", attrs.get("style") or ""):
            assert -0.01 <= float(share) <= 100.01


LOSS = st.one_of(st.none(), st.floats(0, 1e6))


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.tuples(LOSS, LOSS, LOSS), min_size=1, max_size=4))
def test_a_page_is_drawn_whatever_the_losses(ends: list[tuple[float | None, ...]]) -> None:
    def result(arm: str, seed: int, losses: Sequence[float | None]) -> dict[str, Any]:
        curve = [[number, loss] for number, loss in enumerate(losses)]
        return {
            "arm": arm,
            "seed": seed,
            "learning_rate": 1e-3,
            "curve": curve,
            "loss": losses[-1],
            "scores": [],
            "step_seconds": 0.1,
            "memory": {"total": 1},
            "trained_parameters": 1,
        }

    results = [result(arm, seed, losses) for seed, losses in enumerate(ends) for arm in ("lora", "dora")]
    page = Page(comparison_page(_record(results, ["lora", "dora"], [1])))
    assert "nan" not in page.text
    assert [tag for tag, _ in page.tags].count("figure") <= 1
