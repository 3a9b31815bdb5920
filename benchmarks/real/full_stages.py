"""What `make real ARGS=--full` adds: every other thing the product does with a run, each against what must come out."""

from __future__ import annotations

import json
import random
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from benchmarks.real.mmlu import write_questions
from benchmarks.real.rows import make_rows, write_rows
from benchmarks.real.stages import SHORT
from benchmarks.real.work import PRESET, Figures, Stage, StageFailed, Work, as_booking, question
from qdora_fast.system import child
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import sha256_of
from qdora_fast.system.run_folder import RunFolder

EXCHANGED = 20
"""Rows of 200 whose answers are exchanged among them."""
SEEDS = 3
SPEED_STEPS = 8
METHODS = ("qdora", "qlora")
"""Of which a step is timed."""
_STARTING = 600
"""Seconds that a server may take until it answers."""


def merge_bases(work: Work) -> Figures:
    """merged_16bit into either weights, and 4 bits: each proven, with its distance from the trained model."""
    figures: Figures = {"passed": True}
    for name, options in {
        "original16": ["--to", "merged_16bit", "--merge-base", "original16"],
        "dequant4": ["--to", "merged_16bit", "--merge-base", "dequant4"],
        "merged_4bit_forced": ["--to", "merged_4bit_forced"],
    }.items():
        made = work.json_of(
            f"export-{name}", "export", work.run, *options, "--out", work.folder / name, "--overwrite", "--yes"
        )
        distance = made["proof"]["distance"]
        figures[name] = {key: distance[key] for key in ("kl", "top1", "base", "trained", "exported", "kept")}
        figures[name] |= {"bytes": made["bytes"], "seconds": made["seconds"]}
        figures["passed"] &= made["proof"]["passed"]
    return figures


def adapter(work: Work) -> Figures:
    """The adapter out, in again as a run of its own, and merged: the same bytes as the run's own merge."""
    folder, merged = work.folder / "adapter", work.folder / "merged-again"
    work.command("export-adapter", "export", work.run, "--to", "adapter", "--out", folder, "--overwrite")
    names = ["--set", f"run.dir={work.folder / 'runs'}", "--set", f"run.name=imported-{int(time.time())}"]
    came_in = work.json_of("import", "import-adapter", folder, "--base", work.model, *names)
    options = ["--merge-base", read_object(work.run / "merged_16bit/export.json")["merge_base"], "--overwrite"]
    work.command("export-again", "export", came_in["path"], *options, "--out", merged)
    same = _weights(merged) == _weights(work.run / "merged_16bit")
    return {"passed": same, "same_weights": same}


def chat(work: Work) -> Figures:
    """The run and its merged model answer one message at the terminal."""
    text, wanted = question()
    said = {
        name: work.command(f"chat-{name}", "chat", folder, "--once", text, "--max-new-tokens", "48").strip()
        for name, folder in {"run": work.run, "merged_16bit": work.run / "merged_16bit"}.items()
    }
    right = {name: as_booking(answer) == wanted for name, answer in said.items()}
    return {"passed": all(as_booking(each) for each in said.values()), "answers": said, "right": right}


def serve(work: Work) -> Figures:
    """OpenAI's API gives the answer that the terminal gives."""
    text, _ = question()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = work.folder / "logs" / "serve.log"
    merged = str(work.run / "merged_16bit")
    with log.open("w", encoding="utf-8") as output:
        command = child.python("-m", "qdora_fast", "serve", merged, "--port", str(port))
        server = subprocess.Popen(command, stdout=output, stderr=output, env=child.environment(HF_HUB_OFFLINE="1"))
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        request = {"messages": [{"role": "user", "content": text}], "max_tokens": 48}
        answered = _post(f"http://127.0.0.1:{port}/v1/chat/completions", request)
    finally:
        server.terminate()
        server.wait(timeout=60)
    said = answered["choices"][0]["message"]["content"].strip()
    at_terminal = work.command("serve-chat", "chat", merged, "--once", text, "--max-new-tokens", "48").strip()
    return {"passed": said == at_terminal, "answer": said}


def gguf(work: Work) -> Figures:
    """GGUF in 8 bits through llama.cpp's converter, its contents checked against the run."""
    if work.llama_cpp is None:
        return {"passed": True, "skipped": "no llama.cpp was named (--llama-cpp FOLDER)"}
    options: list[str | Path] = [
        "--to",
        "gguf",
        "--gguf-type",
        "q8_0",
        "--llama-cpp",
        work.llama_cpp,
        "--overwrite",
        "--yes",
    ]
    made = work.json_of("export-gguf", "export", work.run, *options, "--out", work.folder / "gguf")
    checks = made["proof"]["checks"] if made.get("proof") else []
    return {"passed": bool(checks) and all(check["passed"] for check in checks), "bytes": made["bytes"]}


def mmlu(work: Work) -> Figures:
    """57 sets of questions about countries, in MMLU's form, before and after."""
    folder = write_questions(work.folder / "mmlu")
    options = {"enabled": True, "path": folder, "questions": 4, "shots": 0}
    chosen = [text for name, value in options.items() for text in ("--set", f"evaluation.mmlu.{name}={value}")]
    evaluated = work.json_of(
        "mmlu", "evaluate", work.run, *chosen, "--set", "evaluation.max_rows=8", "--allow-regression"
    )
    asked = evaluated["mmlu"]
    return {
        "passed": asked is not None,
        **{name: asked.get(name) for name in ("n", "base", "tuned", "difference", "ci95")},
    }


def exchanged_answers(work: Work) -> Figures:
    """200 rows, the answers of 20 exchanged: how many of these the IFD filter drops, and how many right rows."""
    rows = make_rows(200, seed=1)
    chosen = random.Random(0).sample(range(len(rows)), EXCHANGED)
    outputs = [rows[number]["output"] for number in chosen]
    for number, output in zip(chosen, [*outputs[1:], outputs[0]], strict=True):
        rows[number] = rows[number] | {"output": output}
    path, out = work.folder / "exchanged.jsonl", work.folder / "exchanged"
    write_rows(path, rows)
    settings = work.settings(data__path=path, data__held_out=0, data__quality__enabled=True)
    work.command("quality", "data", PRESET, *settings, "--out", out)
    retained = {
        json.loads(line)["messages"][0]["input"] for line in (out / "train.jsonl").read_text("utf-8").splitlines()
    }
    wrong = {rows[number]["input"] for number in chosen}
    dropped = {row["input"] for row in rows} - retained
    caught, lost = len(dropped & wrong), len(dropped - wrong)
    return {"passed": True, "exchanged": len(wrong), "dropped": caught, "right_rows_dropped": lost}


def compare(work: Work) -> Figures:
    """LoRA, QLoRA, DoRA and QDoRA on the same rows over three seeds."""
    steps = max(1, work.steps // 2)
    settings = work.settings(steps, export__at_end="none")
    out = work.folder / "compare"
    work.command("compare", "compare", PRESET, *settings, "--loraplus", "1", "--seeds", str(SEEDS), "--out", out)
    arms = read_object(out / "comparison.json")["arms"].values()
    names = ("method", "loss", "score", "step_seconds")
    return {"passed": True, "steps": steps, "arms": [{name: arm[name] for name in names} for arm in arms]}


def step_time(work: Work) -> Figures:
    """Seconds a step, fused and by PEFT's layers, QDoRA and QLoRA; in turns, each in a fresh process."""
    seconds: dict[str, list[float]] = {}
    for turn, method, engine in product(range(2), METHODS, ("auto", "peft")):
        seconds.setdefault(f"{method}-{engine}", []).extend(_steps_of(work, method, engine, turn))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "passed": True,
        "step_seconds": medians,
        "peft_over_ours": {name: medians[f"{name}-peft"] / medians[f"{name}-auto"] for name in METHODS},
    }


FULL: dict[str, Stage] = SHORT | {
    "merge bases": merge_bases,
    "adapter out and in": adapter,
    "chat": chat,
    "serve": serve,
    "gguf": gguf,
    "exchanged answers": exchanged_answers,
    "step time": step_time,
    "mmlu": mmlu,
    "compare": compare,
}


def _steps_of(work: Work, method: str, engine: str, turn: int) -> list[float]:
    """Seconds of each step of a short training, but for the first ones; trained if it is not there."""
    name = f"speed-{method}-{engine}-{turn}"
    run = RunFolder(work.folder / "runs" / name)
    if not run.adapter.is_dir():
        changes = {"adapter__method": method, "engine__impl": engine, "run__name": name, "data__held_out": 0}
        changes |= {"evaluation__max_rows": 0, "export__at_end": "none"}
        work.command(name, "train", PRESET, *work.settings(SPEED_STEPS, **changes))
    clock = [line["seconds"] for line in run.read_rows("metrics.jsonl") if "loss" in line]
    return [after - before for before, after in pairwise(clock[1:])]


def _weights(folder: Path) -> list[str]:
    """SHA-256 of each file of weights."""
    return [sha256_of(path) for path in sorted(folder.glob("*.safetensors"))]


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _STARTING
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise StageFailed(f"the server did not start ({log})")


def _post(url: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=_STARTING) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise StageFailed(f"the server answered {error.code}: {error.read().decode(errors='replace')}") from None
