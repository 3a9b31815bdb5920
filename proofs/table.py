"""The record as tables, in Markdown, and what is wrong by name."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from proofs.records import Line


def false_alarms(lines: Sequence[Line]) -> list[Line]:
    """Right exports that were refused."""
    return [line for line in lines if line["control"] is None and not line["passed"]]


def let_pass(lines: Sequence[Line]) -> list[Line]:
    """Wrong exports that were not refused."""
    return [line for line in lines if line["control"] and line["passed"] and not _no_difference(line)]


def show(lines: Sequence[Line]) -> None:
    """Print all tables to standard output."""
    bases = list(dict.fromkeys(line["base"] for line in lines))
    print("| base | right exports | refused | controls | no difference | refused | with exit code 42 | let pass |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for base in [*bases, *(["all"] if len(bases) > 1 else [])]:
        print(_row(base, [line for line in lines if base in ("all", line["base"])]))
    _show_controls([line for line in lines if line["control"]])
    _show_margins([line for line in lines if line["control"] is None], bases)


def show_wrong(lines: Sequence[Line], console: Console) -> None:
    """Each right export that was refused, and each wrong one that was not."""
    for line in false_alarms(lines):
        console.print(
            f"FALSE ALARM {line['key']}: {', '.join(line['failed'])}\n{line['words']}", markup=False, soft_wrap=True
        )
    for line in let_pass(lines):
        differing = line["differing"]
        console.print(f"LET PASS {line['key']}: {differing} stored values differ", markup=False, soft_wrap=True)


def _row(base: str, lines: Sequence[Line]) -> str:
    right = [line for line in lines if line["control"] is None]
    controls = [line for line in lines if line["control"]]
    refused = [line for line in controls if not line["passed"]]
    cells = [
        base,
        len(right),
        len(false_alarms(lines)),
        len(controls),
        sum(map(_no_difference, controls)),
        len(refused),
        sum(line["code"] == 42 for line in refused),
        len(let_pass(lines)),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _show_controls(lines: Sequence[Line]) -> None:
    """By control: how many, how many refused, and by which checks."""
    if not lines:
        return
    print("\n| control | exports | no difference | refused | let pass | checks that refused it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(line["control"] for line in lines):
        mine = [line for line in lines if line["control"] == name]
        checks = sorted({check for line in mine for check in line["failed"]})
        refused = sum(not line["passed"] for line in mine)
        same = sum(map(_no_difference, mine))
        print(f"| {name} | {len(mine)} | {same} | {refused} | {len(let_pass(mine))} | {', '.join(checks)} |")


def _show_margins(lines: Sequence[Line], bases: Sequence[str]) -> None:
    """The largest measured value of each check against its limit, over right exports."""
    names = list(dict.fromkeys(name for line in lines for name, _, _ in line["measured"]))
    if not names:
        return
    print("\n| largest measured value / limit | " + " | ".join(bases) + " |")
    print("| --- | " + " | ".join("---" for _ in bases) + " |")
    for name in names:
        cells = []
        for base in bases:
            mine = [line["measured"] for line in lines if line["base"] == base]
            found = [(value, limit) for measured in mine for check, value, limit in measured if check == name]
            worst = max(found, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0], default=None)
            cells.append(f"{worst[0]:.2g} / {worst[1]:.2g}" if worst else "")
        print(f"| {name} | {' | '.join(cells)} |")


def _no_difference(line: Line) -> bool:
    """A mistake that changed no stored value: the export is the right one, to the bit."""
    return bool(line["of_weights"]) and line["differing"] == 0
