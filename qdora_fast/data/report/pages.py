"""The data report as a page, and the sample that a person reads and marks.

The report has no script at all; the sample goes in as JSON and onto the page by textContent. Nothing is computed here
but geometry: figures come from the report, and a part that is missing there is missing on the page.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdora_fast.data.clean.rejects import REASONS
from qdora_fast.data.read.messages import REPAIRS, Message, Row
from qdora_fast.data.report.preflight import FLAGS
from qdora_fast.system.charts import Bins, bar
from qdora_fast.system.notebook import card
from qdora_fast.system.pages import count, embedded, render, share

TEMPLATES = "data/report/page_templates"
ROLE_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool result"}
SMALLEST_BAR = 1.2
"""Height of a bar for a single row, in per cent of the histogram: a few long rows should be seen."""
FIGURES = {"rows_in": "rows in", "train": "to train on", "held_out": "held out"}
TICKS = 6
CLOSEST_TICKS = 8.0
"""In per cent of the width: labels closer to each other would run into one."""


def review_page(rows: Sequence[Row], *, dataset: str, name: str) -> str:
    """The page on which a person reads `rows` (see `review.sample`), marks them, and saves the marks as JSON.

    Args:
        rows: the sample, in the order to show it.
        dataset: version hash of the data; marks are kept in the browser under it, and the saved file names it.
        name: what the reader knows the data by.
    """
    sample = {"dataset": dataset, "rows": [_shown(row) for row in rows]}
    return render("review.html.j2", TEMPLATES, name=name, dataset=dataset, sample=embedded(sample))


def report_page(report: Mapping[str, Any], *, name: str) -> str:
    """The data report as a page: what went in, what was dropped and why, what is left, and what it looks like.

    Args:
        report: the contents of `report.json`. Every part may be missing or None.
        name: title of the page.
    """
    tokens = report.get("tokens") or {}
    return render(
        "report.html.j2",
        TEMPLATES,
        name=name,
        report=report,
        reasons=REASONS | (report.get("reasons") or {}),
        repairs=REPAIRS,
        flags=FLAGS,
        steps=_waterfall(report.get("steps") or []),
        histogram=_histogram(tokens),
    )


def report_card(report: Mapping[str, Any]) -> str:
    """The same in short, for a notebook: the rows of both sides, and what was dropped and why."""
    tokens, reasons = report.get("tokens") or {}, REASONS | (report.get("reasons") or {})
    figures = [(count(report.get(key)), name) for key, name in FIGURES.items()]
    if tokens:
        figures += [(count(tokens.get("total")), "tokens"), (share(tokens.get("trained_share")), "of them are learned")]
    examples = report.get("examples") or {}
    dropped = [
        (reasons.get(reason, reason), count(number), ", ".join(examples.get(reason, [])[:2]))
        for reason, number in (report.get("dropped") or {}).items()
    ]
    return card(
        ", ".join(source["path"] for source in report.get("sources") or ()),
        figures=figures,
        columns=("dropped", "rows", "such as"),
        table=dropped,
        notes=[*(report.get("warnings") or ()), *(report.get("notes") or ())],
    )


def _shown(row: Row) -> dict[str, Any]:
    """A row as the page shows it. Tool calls become text here, since a browser would round their large numbers."""
    turns = [_turn("said", "Text", row["text"], learned=True)] if "text" in row else []
    if row["tools"]:
        names = ", ".join(str(tool.get("function", tool).get("name")) for tool in row["tools"])
        turns.append(_turn("tools", f"Tools on offer: {names}", _json(row["tools"])))
    turns.extend(message_turns(row["messages"]))
    return {"hash": row["meta"]["hash"], "place": row["meta"]["source"], "turns": turns}


def message_turns(messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """A conversation as the pages show it: kind (said, thought, code), label, text, and whether it is learned."""
    for message in messages:
        yield from _turns_of(message)


def _turns_of(message: Message) -> Iterator[dict[str, Any]]:
    role = message["role"]
    learned = role == "assistant" and message.get("train", True)
    label = ROLE_NAMES[role] + (f" ({message['name']})" if message.get("name") else "")
    if role == "assistant" and not learned:
        label += ", not learned"
    if message.get("reasoning_content"):
        yield _turn("thought", f"{label}: reasoning", message["reasoning_content"], learned=learned)
    calls = message.get("tool_calls") or []
    if message["content"].strip() or not calls:
        yield _turn("code" if role == "tool" else "said", label, message["content"], learned=learned)
    for call in calls:
        function = call["function"]
        yield _turn("code", f"{label} calls {function['name']}", _json(function["arguments"]), learned=learned)


def _turn(kind: str, label: str, text: str, *, learned: bool = False) -> dict[str, Any]:
    return {"kind": kind, "label": label, "text": text, "learned": learned}


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _waterfall(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each step with the widths of its two bars, as shares of the rows that went into the largest."""
    widest = max((step.get("rows_in") or 0 for step in steps), default=0) or 1
    shown = []
    for step in steps:
        rows_in, rows_out = step.get("rows_in") or 0, step.get("rows_out") or 0
        lost = max(0, rows_in - rows_out)
        shown.append({**step, "lost": lost, "kept_share": rows_out / widest, "lost_share": lost / widest})
    return shown


def _histogram(tokens: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars, lines and ticks of the token histogram, in per cent of its width and height; None without counts.

    Every bin is drawn equally wide whatever its edges, so that bins that grow can be drawn as well. A limit beyond
    the last bin gets empty room, at most a quarter of the chart.
    """
    given = tokens.get("histogram") or {}
    edges, counts = list(given.get("edges") or []), list(given.get("counts") or [])
    rising = all(low < high for low, high in itertools.pairwise(edges))
    if len(edges) != len(counts) + 1 or not any(counts) or not rising:
        return None
    limits = _limits(tokens)
    bins, shortened = Bins.of(edges, max((limit["value"] for limit in limits), default=0))
    for limit in limits:
        limit["x"] = bins.at(limit["value"])
    tallest = max(counts)
    bars = [
        each
        for low, high, number in zip(edges, edges[1:], counts, strict=False)
        for each in _bars(low, high, number, tallest, limits, bins)
    ]
    ticks = bins.ticks(edges[-1], wanted=TICKS, closest=CLOSEST_TICKS)
    return {"bars": bars, "limits": limits, "ticks": ticks, "tallest": tallest, "shortened": shortened}


def _limits(tokens: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines to draw: the longest row that is kept, where that is shorter, and the sequence length."""
    sequence, longest = tokens.get("max_length"), tokens.get("limit")
    limits: list[dict[str, Any]] = []
    if longest and longest != sequence:
        part = f" ({share(longest / sequence)})" if sequence else ""
        limits.append({"value": longest, "label": f"limit{part}", "zone": "over"})
    if sequence:
        limits.append({"value": sequence, "label": "max_length", "zone": "beyond"})
    return sorted(limits, key=lambda limit: limit["value"])


def _bars(
    low: float,
    high: float,
    number: int,
    tallest: int,
    limits: Sequence[Mapping[str, Any]],
    bins: Bins,
) -> Iterator[dict[str, Any]]:
    """One bar, cut where a line runs through it: what lies beyond has another colour."""
    if not number:
        return
    cuts = [low, *(limit["value"] for limit in limits if low < limit["value"] < high), high]
    for start, end in itertools.pairwise(cuts):
        zone = next((limit["zone"] for limit in reversed(limits) if start >= limit["value"]), "within")
        left, right = bins.at(start), bins.at(end)
        height = bar(number, tallest, smallest=SMALLEST_BAR)
        title = f"{count(low)} to {count(high)} tokens: {count(number)} {'row' if number == 1 else 'rows'}"
        yield {"x": left, "width": right - left, "height": height, "zone": zone, "title": title}
