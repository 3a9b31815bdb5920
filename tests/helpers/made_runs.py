"""The folder of a run that came to its end, written by hand: every file that the page and the model card read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from qdora_fast.config.loader import dump_config, make_config
from qdora_fast.evaluation import log
from qdora_fast.evaluation.report.completions import GENERAL, Completion, write
from qdora_fast.system.run_folder import RunFolder, write_json

WORDS = "normalized_match rose from 20.0 % to 80.0 % on 50 rows"


def task(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "metric": "normalized_match",
        "n": 50,
        "base": 0.2,
        "tuned": 0.8,
        "difference": 0.6,
        "ci95": [0.45, 0.75],
        "base_ci95": [0.11, 0.33],
        "tuned_ci95": [0.67, 0.89],
        "p": 1e-7,
        "gained": 32,
        "lost": 2,
        "detectable": 0.12,
        "verdict": "better",
        "words": WORDS,
        "more": {"rouge_l": {"n": 50, "base": 0.31, "tuned": 0.9, "difference": 0.59, "ci95": [0.5, 0.66]}},
        "truncated": {"base": 0.5, "tuned": 0.02},
        "empty": {"base": 0.0, "tuned": 0.0},
        "decoding": {"greedy": True, "max_new_tokens": 128},
    }
    return whole | changes


def mmlu(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "n": 2052,
        "base": 0.64,
        "tuned": 0.6166,
        "delta_points": -2.34,
        "ci95_points": [-3.6, -1.1],
        "p": 0.0004,
        "gained": 41,
        "lost": 89,
        "status": "warn",
        "words": "MMLU fell by 2.3 points",
        "shots": 5,
        "questions": 36,
        "subjects": {"anatomy": {"n": 36, "base": 0.61, "tuned": 0.58}},
        "tasks": {"arc_easy": {"metric": "acc", "n": 200, "base": 0.7, "tuned": 0.69, "delta": -0.01, "ci95": [-1, 1]}},
    }
    return whole | changes


def answer(number: int, **changes: Any) -> dict[str, Any]:
    whole = {
        "question": f"question {number}",
        "reference": f"reference {number}",
        "base": f"base {number}",
        "tuned": f"tuned {number}",
        "base_right": 0.0,
        "tuned_right": 1.0,
        "base_loss": 4.0,
        "tuned_loss": number / 10,
        "place": f"rows.jsonl:{number}",
        "hash": f"{number:064x}",
        "base_finished": False,
        "tuned_finished": True,
    }
    return whole | changes


def completion(number: int, **changes: Any) -> Completion:
    whole: dict[str, Any] = {
        "id": f"{number:064x}",
        "prompt": [{"role": "user", "content": f"prompt {number}"}],
        "shown": f"prompt {number}",
        "reference": f"reference {number}",
        "base": f"said by the base {number}",
        "tuned": f"said by the tuned model {number}",
        "base_tokens": 9,
        "tuned_tokens": 1,
        "base_finished": False,
        "tuned_finished": True,
    }
    return Completion(**(whole | changes))


def general(number: int) -> Completion:
    prompt = GENERAL[number - 1]
    shown = prompt[-1]["content"]
    return completion(number, id=f"general-{number}", prompt=prompt, shown=shown, reference=None, general=True)


def data_report(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "rows_in": 600,
        "kept": 550,
        "train": 500,
        "held_out": 50,
        "dropped": {"too_long": 30, "exact_duplicate": 20},
        "hash": "ab" * 32,
        "tokens": {"total": 123_456, "trained_share": 0.25},
        "duplicates": {"exact": 20, "near": 0},
        "contamination": {"found": 3},
        "sources": [{"path": "owner/rows", "files": [["owner/rows", 600]]}],
        "warnings": ["one row in ten is short"],
    }
    return whole | changes


def evaluation(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "schema_version": 1,
        "id": "20260131T120000000000Z",
        "dataset": {"hash": "ab" * 32, "overlap": 0, "sha256_train": "cd" * 32, "sha256_held_out": "ef" * 32},
        "training": {"config_sha256": "12" * 32, "adapter_sha256": "34" * 32, "steps": 40},
        "task": task(),
        "heldout_loss": {
            "n": 50,
            "base": 4.0,
            "tuned": 0.5,
            "difference": -3.5,
            "ci95": [-3.7, -3.3],
            "perplexity": {"base": 54.6, "tuned": 1.65},
        },
        "mmlu": mmlu(),
        "completions": None,
    }
    return whole | changes


def review_of(folder: RunFolder, **changes: Any) -> dict[str, Any]:
    """An entry of the log about the answers that the run has now."""
    kept = folder.read_json("evaluation/evaluation.json")["completions"]
    return {"reviewer": "Asha", "verdict": "pass", "note": "", "completions_sha256": kept["sha256"]} | changes


def finished_run(path: Path, *, config: dict[str, Any] | None = None, **changes: Any) -> RunFolder:
    """A whole run below `path`; `changes` replace parts of its evaluation."""
    folder = RunFolder(path)
    least = {"model": {"name": "owner/Base-1B", "revision": "abc123"}, "data": {"path": "owner/rows"}}
    path.mkdir(parents=True, exist_ok=True)
    folder.config_file.write_text(dump_config(make_config(config or least)), encoding="utf-8")
    write = [
        {"step": step, "loss": 4 / step, "learning_rate": 1e-4, "tokens_per_second": 900.0, "memory_gib": 11.5}
        for step in range(1, 41)
    ]
    losses = [{"step": step, "eval_loss": 2 / step, "seconds": step} for step in (20, 40)]
    folder.write_rows("metrics.jsonl", [*write, *losses])
    folder.write_json("data/report.json", data_report())
    name = (config or least)["model"]["name"]
    folder.write_json("model.json", {"base": name, "revision": "abc123", "targets": ["a.q_proj"], "precision": "bf16"})
    folder.write_json("engine.json", {"impl": "triton", "layers": 14, "adapted": 14, "blocks": {"mlp": 2}})
    machine = {"cpu": "a CPU", "cpu_cores": 8, "python": "3.11.7", "gpus": [{"name": "RTX 4090", "memory_gib": 24.0}]}
    folder.write_json("environment.json", {**machine, "packages": {"torch": "2.13.0", "xformers": None}})
    check = {"name": "weights", "passed": True, "words": "14 merged layers equal PEFT's merge"}
    proof = {"passed": True, "checks": [check], "held_out": True}
    folder.write_json("merged_16bit/export.json", {"merge_base": "original16", "proof": proof, "bytes": 2**31})
    folder.write_rows("evaluation/held_out_answers.jsonl", [answer(number) for number in range(50)])
    kept = [*(general(number) for number in range(1, 5)), *(completion(number) for number in range(10))]
    written = _write(kept, folder, path.name)
    folder.write_json("evaluation/evaluation.json", evaluation(completions=written) | changes)
    write_json(path / "data" / "proof_rows.json", {})
    for page in ("report.html", "review.html"):
        (folder.data / page).write_text("", encoding="utf-8")
    return folder


def _write(kept: list[Completion], folder: RunFolder, name: str) -> dict[str, Any]:
    written = write(kept, folder.evaluation, name=name)
    return {"n": len(kept), "path": "evaluation/completions.jsonl", "sha256": written.sha256}


def add_to_log(folder: RunFolder, kind: str, **content: Any) -> None:
    log.append(folder.path, kind, content)


FILES = ("evaluation/evaluation.json", "data/report.json", "model.json", "engine.json", "environment.json")
LINES = ("metrics.jsonl", "evaluation/held_out_answers.jsonl", "evaluation/completions.jsonl", "evaluation/log.jsonl")


def damaged_run(path: Path, seed: int) -> RunFolder:
    """A whole run in whose files one value in eight is another one, of any kind."""
    chance = random.Random(seed)
    folder = finished_run(path)
    add_to_log(folder, "review", **review_of(folder, bad_rows=[{"id": "x", "note": "n"}]))
    add_to_log(folder, "data_review", dataset=data_report()["hash"], sentence="s", bad_rows=[])
    for name in (*FILES, "merged_16bit/export.json"):
        folder.write_json(name, _damaged(folder.read_json(name), chance))
    for name in LINES:
        folder.write_rows(name, [_damaged(row, chance) for row in folder.read_rows(name)[:12]])
    return folder


def _damaged(value: Any, chance: random.Random) -> Any:
    if chance.random() < 0.12:
        return _anything(chance)
    if isinstance(value, dict):
        return {key: _damaged(inner, chance) for key, inner in value.items() if chance.random() > 0.06}
    return [_damaged(inner, chance) for inner in value] if isinstance(value, list) else value


def _anything(chance: random.Random, depth: int = 0) -> Any:
    simple = (None, True, 0, -1, 2**70, 0.5, float("nan"), float("inf"), 1e308, "", "x", "<b>", "| *a* `b`")
    kind = chance.randrange(4 if depth < 2 else 2)
    if kind < 2:
        return chance.choice(simple)
    inner = [_anything(chance, depth + 1) for _ in range(3)]
    return inner if kind == 2 else dict(zip(("base", "passed", "checks"), inner, strict=True))
