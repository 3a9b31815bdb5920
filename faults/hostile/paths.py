"""Files that lead elsewhere: names with `..`, links out of a folder, pipes and devices among rows and in runs.

Nothing outside is read into what is made, shown, or changed, and nothing waits for a pipe that nobody writes to.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Any

from faults.hostile.attack import CHAT, SECRET, Case, attack, change, config, own_adapter, own_base, own_run, table
from faults.trial import Trial
from faults.victim import Ended, require

_IN_RUNS = (
    *(".lock", "metrics.jsonl", "model.json", "environment.json", "report.html", "config.yaml", "adapter"),
    *("adapter/chat_template.jinja", "adapter/README.md", "adapter/tokenizer.json", "data/held_out.jsonl"),
    *("evaluation/log.jsonl", "merged_16bit/config.json"),
)
_COMMANDS = {
    "evaluate": ("evaluate", "RUN"),
    "log": ("log", "RUN"),
    "report": ("report", "RUN"),
    "export": ("export", "RUN", "--to", "adapter", "--out", "OUT"),
    "review": ("review", "RUN", "--reviewer", "Asha", "--verdict", "pass"),
    "verify": ("verify", "RUN"),
    "chat": ("chat", "RUN", *CHAT),
    "chat with the adapter": ("chat", "RUN/adapter", *CHAT),
    "import-adapter": ("import-adapter", "RUN/adapter"),
}
_NAMES = ("../out", "/tmp/out", "..", "a/../../out", "~/out", ".", "a\nb", "con\0")


def _secret(trial: Trial) -> Path:
    file = trial.folder / "private.txt"
    file.write_text(f"{SECRET}\n")
    return file


def _require_untouched(trial: Trial, ended: Ended, *made: Path) -> None:
    require((trial.folder / "private.txt").read_text() == f"{SECRET}\n", "the file outside was changed")
    require(SECRET not in ended.said, "what is in the file outside was shown")
    for folder in made:
        found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        require(not any(SECRET.encode() in path.read_bytes() for path in found), "the file outside was copied")


def _words(words: tuple[str, ...], run: Path) -> list[str]:
    return [word.replace("RUN", str(run)).replace("OUT", str(run.parent.parent / "out")) for word in words]


def _link_in_run(name: str, words: tuple[str, ...], trial: Trial) -> None:
    run, secret = own_run(trial), _secret(trial)
    place = run / name
    if place.is_dir():
        shutil.rmtree(place)
        secret_folder = trial.folder / "private"
        secret_folder.mkdir()
        shutil.copy(secret, secret_folder / "adapter_config.json")
        place.symlink_to(secret_folder)
    else:
        place.unlink(missing_ok=True)
        place.symlink_to(secret)
    _require_untouched(trial, attack(trial, *_words(words, run)), run, trial.folder / "out")


def _special_in_run(name: str, kind: str, words: tuple[str, ...], trial: Trial) -> None:
    run = own_run(trial)
    (run / name).unlink(missing_ok=True)
    _put(kind, run / name)
    attack(trial, *_words(words, run), limited=True)


def _special_among_rows(kind: str, trial: Trial) -> None:
    folder = trial.folder / "rows"
    folder.mkdir()
    rows = [{"instruction": f"What is thing {i}?", "output": f"It is about item {i * 7919}."} for i in range(40)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _put(kind, folder / "a.jsonl")
    attack(trial, "data", config(trial, data={"path": str(folder), "max_rows": None}), codes=(0, 2, 20), limited=True)


def _special_as_rows(kind: str, trial: Trial) -> None:
    _put(kind, trial.folder / "a.jsonl")
    file = config(trial, data={"path": str(trial.folder / "a.jsonl"), "max_rows": None})
    attack(trial, "data", file, codes=(2, 20), limited=True)


def _put(kind: str, place: Path) -> None:
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(place.parent)  # a socket's path has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(place.name)
        os.chdir(here)
    else:
        place.symlink_to(kind)


def _link_among_rows(name: str, trial: Trial) -> None:
    folder, secret = trial.folder / "rows", _secret(trial)
    folder.mkdir()
    (folder / name).symlink_to(secret)
    rows = [{"instruction": f"What is thing {i}?", "output": f"It is about item {i * 7919}."} for i in range(40)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = attack(trial, "train", config(trial, data={"path": str(folder)}, train={"max_steps": 1}))
    _require_untouched(trial, ended, trial.folder / "runs")


def _link_in_base(name: str, trial: Trial) -> None:
    base, secret = own_base(trial), _secret(trial)
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(secret)
    ended = attack(trial, "train", config(trial, model={"name": str(base)}), codes=(2, 41))
    _require_untouched(trial, ended, trial.folder / "runs")


def _tokenizer_elsewhere(values: dict[str, str], trial: Trial) -> None:
    base, secret = own_base(trial), _secret(trial)
    (base / "tokenizer.json").unlink()
    (base / "vocab.txt").write_text("[UNK]\n[PAD]\n")
    change(base / "tokenizer_config.json", **{key: text.replace("FILE", str(secret)) for key, text in values.items()})
    ended = attack(trial, "train", config(trial, model={"name": str(base)}), codes=(2, 20))
    _require_untouched(trial, ended, trial.folder / "runs")


def _index_leads_out(place: str, trial: Trial) -> None:
    from safetensors import safe_open

    base, outside = own_base(trial), trial.folder / "outside.safetensors"
    shutil.move(base / "model.safetensors", outside)
    with safe_open(outside, framework="pt") as file:
        names = list(file.keys())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, place.replace("FOLDER", str(trial.folder)))}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    attack(trial, "train", config(trial, model={"name": str(base)}), codes=(2, 41))


def _run_name(name: str, trial: Trial) -> None:
    inside = trial.folder / "inside"
    inside.mkdir()
    file = config(trial, run={"name": name, "dir": str(inside / "runs")})
    attack(trial, "train", file, codes=(2,), cwd=inside)
    made = {path.name for path in trial.folder.iterdir()} - {"inside", "job.yaml", "config", "cache", "log-0.txt"}
    require(not made, f"something was made outside: {made}")


def _manifest_leads_out(trial: Trial) -> None:
    from qdora_fast.system.manifest import _text

    run, secret = own_run(trial), _secret(trial)
    file = run / "adapter" / "MANIFEST.json"
    content = json.loads(file.read_text())
    files = content["files"] | {"../../../private.txt": {"bytes": 1, "sha256": "0" * 64}}
    file.write_text(_text({"about": content["about"], "files": files}))
    _require_untouched(trial, attack(trial, "verify", run, codes=(41,)))
    require(secret.is_file(), "the file outside is gone")


def _staging(kind: str, suffix: str, trial: Trial) -> None:
    """A folder of the user's own that has the name which an export might take for its unfinished work."""
    run, out = own_run(trial), trial.folder / "out"
    own = trial.folder / f"out{suffix}"
    theirs = trial.folder / "thesis" if kind == "link" else own
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    if kind == "link":
        own.symlink_to(theirs)
    attack(trial, "export", run, "--to", "adapter", "--out", out, codes=(0, 2))
    require((theirs / "thesis.txt").is_file(), "a folder of the user's own was removed")


def _base_of_adapter(name: str, trial: Trial) -> None:
    adapter = own_adapter(trial, base_model_name_or_path=name)
    (adapter.parent / "model.json").unlink()
    attack(trial, "import-adapter", adapter, codes=(2, 41))


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, (where, words) in itertools.product(_IN_RUNS, _COMMANDS.items()):
        cases[f"link in a run, {name}: {where}"] = partial(_link_in_run, name, words)
    for kind, name in itertools.product(
        ("pipe", "/dev/zero", "socket"), ("metrics.jsonl", "adapter/README.md", "model.json")
    ):
        for where, words in _COMMANDS.items():
            cases[f"{kind.strip('/')} in a run, {name}: {where}"] = partial(_special_in_run, name, kind, words)
    for kind in ("pipe", "socket", "/dev/zero", "/dev/tty", "/proc/self/environ"):
        cases[f"{kind} among rows"] = partial(_special_among_rows, kind)
    for kind in ("socket", "/dev/zero", "/dev/null"):
        cases[f"{kind} as rows"] = partial(_special_as_rows, kind)
    cases |= {f"link among rows, {n}": partial(_link_among_rows, n) for n in ("a.csv", "a.jsonl", "a.txt", "train")}
    in_base = ("LICENSE", "generation_config.json", "NOTICE.txt", "chat_template.jinja", "tokenizer_config.json")
    cases |= {f"link in a base, {name}": partial(_link_in_base, name) for name in in_base}
    elsewhere: dict[str, dict[str, Any]] = {
        "vocab": {"tokenizer_class": "BertTokenizer", "vocab": "FILE"},
        "vocab and merges": {"tokenizer_class": "GPT2Tokenizer", "vocab": "FILE", "merges": "FILE"},
        "vocab_file": {"tokenizer_class": "BertTokenizer", "vocab_file": "FILE"},
        "gguf_file": {"gguf_file": "FILE"},
        "tokenizer_file": {"tokenizer_file": "FILE"},
    }
    cases |= {f"tokenizer names a file, {n}": partial(_tokenizer_elsewhere, values) for n, values in elsewhere.items()}
    places = ("../outside.safetensors", "FOLDER/outside.safetensors", "x/../../outside.safetensors")
    cases |= {f"index leads out, {place}": partial(_index_leads_out, place) for place in places}
    cases |= {f"run.name {name!r}": partial(_run_name, name) for name in _NAMES}
    cases["manifest leads out"] = _manifest_leads_out
    for kind, suffix in itertools.product(("folder", "link"), (".incomplete", ".replaced", ".removed")):
        cases[f"a {kind} of one's own named out{suffix}"] = partial(_staging, kind, suffix)
    cases |= {f"adapter's base is {n}": partial(_base_of_adapter, n) for n in ("/etc", "../../..", "/dev/zero", "~")}
    return cases


GROUP = table(
    "paths",
    "links, `..`, pipes, sockets and devices in rows, runs, bases and adapters; a tokenizer that names a file",
    "nothing outside is read into a run, shown or changed; nothing waits",
    _cases(),
    small=40,
)
