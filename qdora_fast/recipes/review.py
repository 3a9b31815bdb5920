"""What people said about runs, and all runs side by side: `qdora-fast review` and `qdora-fast log`.

A review is an entry in the run's evaluation log, made by a named person about one set of completions (their hash is in
it). Entries are never changed; the last one counts. `require_review` is the gate in front of an export.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdora_fast.evaluation import log
from qdora_fast.recipes import messages
from qdora_fast.recipes.evaluate import EVALUATION, write_report
from qdora_fast.recipes.report import read_parts
from qdora_fast.system.errors import ConfigError, RefusedError
from qdora_fast.system.paths import typed
from qdora_fast.system.run_folder import RunFolder

EVALUATION_SHAPE = {
    **{"run": str, "dataset": {"hash": str}, "training": {"method": str}},
    **{"task": dict | None, "heldout_loss": dict | None, "mmlu": dict | None, "completions": dict | None},
}
REVIEW_SHAPE = {"completions_sha256": str, "verdict": str, "reviewer": str}


def review(
    run: str | Path,
    *,
    file: Path | None = None,
    reviewer: str | None = None,
    verdict: str | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Record what a person thinks of a run's completions: the file saved from completions.html, or name and verdict.

    Raises:
        ConfigError: neither, or the run has no completions.
        DataError: the file is about other completions.
    """
    folder = RunFolder.open(run)
    completions = folder.read_json(EVALUATION, {"completions": dict | None})["completions"]
    if not completions:
        raise ConfigError(f"{run} has no completions to review (evaluation.completions: 0); run `qdora-fast evaluate`")
    if file is not None:
        from qdora_fast.evaluation.report.completions import read_review

        entry = dict(read_review(file, sha256=completions["sha256"]).as_json())
    elif reviewer and reviewer.strip() and verdict:
        sha256 = completions["sha256"]
        entry = {"reviewer": reviewer.strip(), "verdict": verdict, "note": note, "completions_sha256": sha256}
    else:
        raise ConfigError("give the file saved from completions.html, or --reviewer NAME and --verdict")
    path = log.append(folder.path, "review", entry)
    write_report(folder)
    messages.review_recorded(entry, path)
    return entry


def require_review(folder: RunFolder) -> None:
    """Refuse to continue unless a person has read the completions and let them pass.

    Raises:
        RefusedError: nobody did, or the last verdict is another one.
    """
    last = read_parts(folder).review()
    if last is None:
        raise RefusedError(
            f"--require-review: nobody has reviewed {folder.path} yet; read {folder.evaluation / 'completions.html'}, "
            f"then `qdora-fast review {typed(folder.path)} --reviewer NAME --verdict pass`"
        )
    if last["verdict"] != "pass":
        raise RefusedError(
            f"--require-review: {last['reviewer']} said `{last['verdict']}` about {folder.path}"
            + (f": {last['note']}" if last["note"] else "")
        )


def list_evaluations(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The evaluations of runs, oldest first, each with the review that it got; folders of runs stand for their runs.

    Raises:
        ConfigError: a path is neither a run nor a folder of runs.
    """
    folders: list[RunFolder] = []
    for path in paths:
        inside = sorted(config.parent for config in Path(path).glob("*/config.yaml"))
        if (Path(path) / "config.yaml").is_file() or not inside:
            folders.append(RunFolder.open(path))
        else:
            folders += [RunFolder(run) for run in inside]
    evaluations = []
    for folder in folders:
        reviews = {entry["completions_sha256"]: entry for entry in log.entries(folder.path, "review", REVIEW_SHAPE)}
        for entry in log.entries(folder.path, "evaluation", EVALUATION_SHAPE):
            completions = entry["completions"] or {}
            evaluations.append(entry | {"path": str(folder.path), "review": reviews.get(completions.get("sha256"))})
    return sorted(evaluations, key=lambda entry: str(entry["at"]))
