"""The record as tables, in Markdown, and what is wrong by name."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from proofs.records import Line

LOST_GAIN = "gain_kept"
"""The check that refuses an export in 4 bits whose rounding undid the tuning: rightly made, and rightly refused."""


def false_alarms(lines: Sequence[Line]) -> list[Line]:
    """Right exports that were refused as wrong."""
    return [line for line in lines if line["control"] is None and {*line["failed"]} - {LOST_GAIN}]


def let_pass(lines: Sequence[Line]) -> list[Line]:
    """Wrong exports that no check refused but those that refuse the right one, too."""
    return [
        line
        for line in lines
        if line["control"] and not {*line["failed"]} - {*line["right_failed"]} and not no_difference(line)
    ]


def no_difference(line: Line) -> bool:
    """A mistake that changed no stored value: the export is the right one, to the bit."""
    return bool(line["of_weights"]) and line["differing"] == 0


def summary(lines: Sequence[Line]) -> str:
    """All tables."""
    bases = list(dict.fromkeys(line["base"] for line in lines))
    by_base = {base: [line for line in lines if line["base"] == base] for base in bases}
    controls = {
        line["control"]: [other for other in lines if other["control"] == line["control"]]
        for line in lines
        if line["control"]
    }
    parts = [_bases(by_base | ({"all": list(lines)} if len(bases) > 1 else {}))]
    if controls:
        parts.append(_controls(controls))
    return "\n\n".join([*parts, *_margins(by_base)]) + "\n"


def show_wrong(lines: Sequence[Line], console: Console) -> None:
    """Each right export that was refused, and each wrong one that was not."""
    for line in false_alarms(lines):
        why = f"{', '.join(line['failed'])}\n{line['words']}"
        console.print(f"FALSE ALARM {line['key']}: {why}", markup=False, soft_wrap=True)
    for line in let_pass(lines):
        differing = line["differing"]
        console.print(f"LET PASS {line['key']}: {differing} stored values differ", markup=False, soft_wrap=True)


def _bases(groups: dict[str, list[Line]]) -> str:
    """By base: right exports, then controls. What changed nothing is not among the refused."""
    rows = []
    for base, lines in groups.items():
        right = [line for line in lines if line["control"] is None]
        lost = sum([*line["failed"]] == [LOST_GAIN] for line in right)
        rows.append([base, len(right), len(false_alarms(lines)), lost, *_counts(lines)])
    heads = ["base", "right exports", "false alarms", "gain lost in 4 bits"]
    return _table([*heads, "controls", "no difference", "refused", "let pass"], rows)


def _controls(groups: dict[str, list[Line]]) -> str:
    """By control: how many, how many refused, and by which checks."""
    rows = []
    for name, lines in groups.items():
        checks = sorted({check for line in lines for check in {*line["failed"]} - {*line["right_failed"]}})
        codes = sorted({line["code"] for line in lines if line["code"]})
        rows.append([name, *_counts(lines), ", ".join(checks), ", ".join(map(str, codes))])
    heads = ["control", "exports", "no difference", "refused", "let pass", "refused by", "exit code"]
    return _table(heads, rows)


def _counts(lines: Sequence[Line]) -> list[int]:
    """Controls, those without a difference, those refused, those let pass."""
    controls = [line for line in lines if line["control"]]
    same, missed = sum(map(no_difference, controls)), len(let_pass(lines))
    return [len(controls), same, len(controls) - same - missed, missed]


def _margins(groups: dict[str, list[Line]]) -> list[str]:
    """The largest measured value of each check against its limit, over right exports; nothing if none was measured."""
    measured = {
        base: [each for line in lines if line["control"] is None for each in line["measured"]]
        for base, lines in groups.items()
    }
    names = dict.fromkeys(name for values in measured.values() for name, _, _ in values)
    rows = []
    for name in names:
        cells = []
        for values in measured.values():
            worst = max(((value, limit) for check, value, limit in values if check == name), key=_share, default=None)
            cells.append(f"{worst[0]:.2g} / {worst[1]:.2g}" if worst else "")
        rows.append([name, *cells])
    return [_table(["largest measured value / limit", *groups], rows)] if rows else []


def _share(pair: tuple[float, float]) -> float:
    """A measured value as a share of its limit; of a limit of 0, the value."""
    value, limit = pair
    return value / limit if limit else value


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
