"""Each file of a run, an adapter, a merged model and a base, damaged in each way, before each command that reads it.

Whoever damaged them: the command ends in words. What can do without the file may go on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults.hostile.attack import CHAT, Case, attack, config, own_base, own_run, table
from faults.trial import Trial
from faults.victim import require

_WAYS: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda content: content[: len(content) * 2 // 3],
    "empty": lambda _: b"",
    "deep": lambda _: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list": lambda _: b"[]",
    "a text": lambda _: b'"text"\n',
    "an empty object": lambda _: b"{}\n",
    "nulls in an object": lambda content: content.replace(b'": ', b'": null, "x": '),
    "6,000 digits": lambda content: content.replace(b"{", b'{"n": ' + b"9" * 6000 + b", ", 1),
    "NaN": lambda _: b'{"step": NaN, "loss": 1e999, "steps": null}\n',
    "no UTF-8": lambda content: b"\xff\xfe" + content,
    "NUL bytes": lambda content: content[:64] + bytes(512) + content[64:],
    "a web page": lambda _: b"<!DOCTYPE html><html><body>Sign in</body></html>",
}
_FEW = ("torn", "empty", "no UTF-8", "NUL bytes", "a web page")
"""Enough for files that are not JSON."""
_EVALUATE, _LOG, _REPORT, _VERIFY = ("evaluate", "RUN"), ("log", "RUN"), ("report", "RUN"), ("verify", "RUN")
_CHAT, _ADAPTER = ("chat", "RUN", *CHAT), ("export", "RUN", "--to", "adapter", "--out", "RUN-out")
_MERGED = ("export", "RUN", "--to", "merged_16bit", "--merge-base", "dequant4", "--out", "RUN-out")
_REVIEW = ("review", "RUN", "--reviewer", "Asha", "--verdict", "pass")
_OF_ADAPTER = (("chat", "RUN/adapter", *CHAT), ("import-adapter", "RUN/adapter"))
_OF_MERGED = ("chat", "RUN/merged_16bit", *CHAT)

_READ_BY: dict[str, tuple[tuple[str, ...], ...]] = {
    "evaluation/log.jsonl": (_LOG, _REPORT, _EVALUATE),
    "evaluation/evaluation.json": (_LOG, _REPORT, _REVIEW),
    "evaluation/completions.jsonl": (_REVIEW, _REPORT),
    "metrics.jsonl": (_EVALUATE, _LOG, _REPORT),
    "model.json": (_CHAT, _ADAPTER, _REPORT),
    "config.yaml": (_ADAPTER, _EVALUATE, _REPORT),
    "environment.json": (_EVALUATE, _REPORT),
    "data/report.json": (_EVALUATE, _REPORT),
    "data/held_out.jsonl": (_EVALUATE,),
    "data/proof_rows.json": (_MERGED,),
    "data/tokens.json": (_MERGED,),
    "finished.json": (_LOG, _REPORT),
    "engine.json": (_EVALUATE, _REPORT),
    "adapter/MANIFEST.json": (_VERIFY, _CHAT),
    "adapter/adapter_config.json": _OF_ADAPTER,
    "adapter/adapter_model.safetensors": _OF_ADAPTER,
    "adapter/tokenizer_config.json": (_CHAT, _EVALUATE),
    "adapter/tokenizer.json": (_CHAT,),
    "adapter/chat_template.jinja": (_CHAT, _EVALUATE),
    "merged_16bit/config.json": (_OF_MERGED, _VERIFY),
    "merged_16bit/export.json": (_OF_MERGED, _REPORT),
    "merged_16bit/generation_config.json": (_OF_MERGED,),
    "merged_16bit/model.safetensors": (_OF_MERGED,),
    "checkpoints/NEWEST/training_state.json": (_VERIFY, ("train", "CONFIG", "--resume")),
}
_OF_BASE = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"),
    *("chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"),
)


def _damaged_run(name: str, way: str, words: tuple[str, ...], trial: Trial) -> None:
    run = own_run(trial)
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    file = run / name.replace("NEWEST", newest.name)
    if name.startswith(("adapter/", "merged_16bit/")) and "MANIFEST" not in name:
        (file.parent / "MANIFEST.json").unlink(missing_ok=True)  # or nothing but that would be noticed
    _damage(file, way)
    at = {"RUN": str(run), "CONFIG": str(config(trial))}
    attack(trial, *[word.replace("RUN", at["RUN"]).replace("CONFIG", at["CONFIG"]) for word in words])


def _damaged_base(name: str, way: str, trial: Trial) -> None:
    base = own_base(trial)
    _damage(base / name, way)
    attack(trial, "train", config(trial, model={"name": str(base)}, train={"max_steps": 1}))


def _damage(file: Path, way: str) -> None:
    before = file.read_bytes() if file.is_file() else b'{"a": 1}\n'
    file.parent.mkdir(parents=True, exist_ok=True)
    require(file.parent.is_dir(), f"{file} cannot be")
    file.write_bytes(_WAYS[way](before))


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, commands in _READ_BY.items():
        ways = _WAYS if name.endswith((".json", ".jsonl")) else _FEW
        for way, words in itertools.product(ways, commands):
            cases[f"{name} is {way}: {words[0]}"] = partial(_damaged_run, name, way, words)
    for name in _OF_BASE:
        for way in _WAYS if name.endswith(".json") else _FEW:
            cases[f"base's {name} is {way}"] = partial(_damaged_base, name, way)
    return cases


GROUP = table(
    "broken",
    "each file of a run, adapter, export and base: torn, empty, deep, of another type, huge numbers, foreign bytes",
    "ends in words, without a traceback",
    _cases(),
    small=50,
)
