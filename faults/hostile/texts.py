"""Text of somebody else on its way to the terminal: control characters, marks of direction, tags, markup.

They come from every place that foreign text comes from: columns, values, groups, file names, keys and values of a
config, templates, names of bases, settings of adapters, records of runs. On the terminal they are text.
"""

from __future__ import annotations

import itertools
import json
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from faults.hostile.attack import CHAT, attack, change, config, own_adapter, own_base, own_run, table
from faults.trial import Trial
from faults.victim import Ended, require

_TEXTS = {
    "escapes": "\x1b]0;OWNED\x07\x1b[2J\x1b[31m\x1b]8;;http://evil.example\x1b\\OWNED",
    "C1": "OWNED\x9b31m\x90OWNED\x9c\x85",
    "movement": "OWNED\r\b\b\b\x7f\x0b\x0cOWNED",
    "direction": "OWNED\u202eabc\u2066\u2069\u200f\u061c",
    "tags": "OWNED\U000e0041\U000e0042\U000e007f",
    "markup": "OWNED[link=http://evil.example]go[/link][/b][bold red]:warning:",
}
_ORDER = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE0080))}
_ROWS = [{"instruction": f"What is thing {i}?", "output": f"It is about item {i * 7919}, no more."} for i in range(40)]
_PLACES: dict[str, Callable[[Trial, str], Ended]] = {}
"""How a text gets there, and what is then asked."""


def _place(name: str) -> Callable[[Callable[[Trial, str], Ended]], Callable[[Trial, str], Ended]]:
    def named(function: Callable[[Trial, str], Ended]) -> Callable[[Trial, str], Ended]:
        _PLACES[name] = function
        return function

    return named


def _held(place: Callable[[Trial, str], Ended], text: str, trial: Trial) -> None:
    ended = place(trial, text)
    acting = {each for each in ended.said if each in _ORDER or unicodedata.category(each) in ("Cc", "Cs")} - set("\n\t")
    require(not acting, f"reaches the terminal: {sorted(map(ascii, acting))} in {_around(ended.said, acting)}")
    trial.note += "" if "OWNED" in ended.said else " (not shown)"


def _around(said: str, acting: set[str]) -> str:
    first = min((said.index(each) for each in acting), default=0)
    return ascii(said[max(0, first - 60) : first + 20])


def _prepared(trial: Trial, rows: list[Any], name: str = "r.jsonl", **data: Any) -> Ended:
    file = trial.folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return attack(trial, "data", config(trial, data={"path": str(file), "max_rows": None, **data}))


@_place("names of columns")
def _columns(trial: Trial, text: str) -> Ended:
    return _prepared(trial, [{text: "1", f"b{text}": 2}] * 3)


@_place("names of columns beside known ones")
def _more_columns(trial: Trial, text: str) -> Ended:
    return _prepared(trial, [{**row, text: "1"} for row in _ROWS])


@_place("a role")
def _role(trial: Trial, text: str) -> Ended:
    return _prepared(trial, [{"messages": [{"role": text, "content": "x"}]}] * 3)


@_place("rows in the preview")
def _preview(trial: Trial, text: str) -> Ended:
    return _prepared(trial, [{**row, "output": row["output"] + text} for row in _ROWS])


@_place("groups")
def _groups(trial: Trial, text: str) -> Ended:
    return _prepared(trial, [{**row, "g": f"{text}{i % 3}"} for i, row in enumerate(_ROWS)], group="g", stratify="g")


@_place("a line that is no JSON")
def _no_json(trial: Trial, text: str) -> Ended:
    file = trial.folder / "r.jsonl"
    file.write_text(f"{{{text}\n" * 5)
    return attack(trial, "data", config(trial, data={"path": str(file)}))


@_place("columns of a CSV")
def _csv(trial: Trial, text: str) -> Ended:
    file = trial.folder / "r.csv"
    file.write_text(f'"{text}","{text}2"\n1,2\n')
    return attack(trial, "data", config(trial, data={"path": str(file)}))


@_place("a tool's name")
def _tool(trial: Trial, text: str) -> Ended:
    call = {"type": "function", "function": {"name": text, "arguments": "{"}}
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]}] * 3
    return _prepared(trial, rows)


@_place("a file's name")
def _file_name(trial: Trial, text: str) -> Ended:
    return _prepared(trial, [*_ROWS[:1], {"x": 1}], name=f"r{_plain(text)}.jsonl")


@_place("names in a folder of rows")
def _folder(trial: Trial, text: str) -> Ended:
    folder = trial.folder / f"rows{_plain(text)}"
    folder.mkdir()
    for name in ("a.jsonl", f"b{_plain(text)}.bin", f"c{_plain(text)}.xyz", f"d{_plain(text)}.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    return attack(trial, "data", config(trial, data={"path": str(folder), "max_rows": None}))


@_place("a key of a config")
def _key(trial: Trial, text: str) -> Ended:
    file = trial.folder / "k.yaml"
    file.write_text(f"model: {{name: demo}}\ndata: {{path: x}}\n{json.dumps(text)}: 1\n")
    return attack(trial, "plan", file)


@_place("a value of a config")
def _value(trial: Trial, text: str) -> Ended:
    return attack(trial, "plan", config(trial, model={"name": text}))


@_place("a wrong choice in a config")
def _choice(trial: Trial, text: str) -> Ended:
    return attack(trial, "plan", config(trial, adapter={"method": text}))


@_place("a setting typed")
def _typed(trial: Trial, text: str) -> Ended:
    return attack(trial, "plan", config(trial), "--set", f"train.{text.replace(chr(0), '')}=1")


@_place("a path in a config")
def _path(trial: Trial, text: str) -> Ended:
    return attack(trial, "data", config(trial, data={"path": f"no/{text}/x.jsonl"}))


@_place("a metric")
def _metric(trial: Trial, text: str) -> Ended:
    return attack(trial, "plan", config(trial, evaluation={"metric": f"{text}.py:f"}))


@_place("a template's own error")
def _template_error(trial: Trial, text: str) -> Ended:
    base = own_base(trial)
    (base / "chat_template.jinja").write_text("{{ raise_exception(" + json.dumps(text) + ") }}")
    return attack(trial, "chat", base, *CHAT)


@_place("a template that is no template")
def _template_syntax(trial: Trial, text: str) -> Ended:
    file = trial.folder / "chat.jinja"
    file.write_text("{% " + text + " %}")
    return attack(trial, "data", config(trial, data={"template": str(file)}))


@_place("a base's folder")
def _base_name(trial: Trial, text: str) -> Ended:
    base = trial.folder / f"base{_plain(text)}"
    shutil.copytree(trial.lab.base, base)
    return attack(trial, "plan", config(trial, model={"name": str(base)}))


@_place("a base's kind")
def _base_kind(trial: Trial, text: str) -> Ended:
    return attack(trial, "plan", config(trial, model={"name": str(own_base(trial, model_type=text))}))


@_place("a base's special token")
def _special(trial: Trial, text: str) -> Ended:
    base = own_base(trial)
    change(base / "tokenizer_config.json", eos_token=text)
    return attack(trial, "plan", config(trial, model={"name": str(base)}))


@_place("a base that a run names")
def _base_of_run(trial: Trial, text: str) -> Ended:
    run = own_run(trial)
    change(run / "model.json", base=f"/no/{text}")
    return attack(trial, "chat", run, *CHAT)


@_place("a setting of an adapter")
def _adapter(trial: Trial, text: str) -> Ended:
    return attack(trial, "chat", own_adapter(trial, bias=text), *CHAT)


@_place("a field that an adapter made up")
def _adapter_field(trial: Trial, text: str) -> Ended:
    return attack(trial, "chat", own_adapter(trial, **{text: text}), *CHAT)


@_place("layers of an adapter")
def _adapter_layers(trial: Trial, text: str) -> Ended:
    return attack(trial, "import-adapter", own_adapter(trial, target_modules=[text]))


@_place("a run's name in its log")
def _log(trial: Trial, text: str) -> Ended:
    return attack(trial, "log", _with_log(trial, text))


@_place("a run's name in its log, --json")
def _log_json(trial: Trial, text: str) -> Ended:
    return attack(trial, "log", _with_log(trial, text), "--json")


def _with_log(trial: Trial, text: str) -> Path:
    run = own_run(trial)
    log = run / "evaluation" / "log.jsonl"
    lines = [json.loads(line) | {"run": f"r{text}"} for line in log.read_text().splitlines()]
    for line in lines:
        if isinstance(line.get("training"), dict):
            line["training"]["method"] = text
    log.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return run


@_place("a held-out row")
def _held_out(trial: Trial, text: str) -> Ended:
    run = own_run(trial)
    file = run / "data" / "held_out.jsonl"
    file.write_text(file.read_text().replace('": "', '": "' + json.dumps(text)[1:-1]))
    return attack(trial, "evaluate", run)


@_place("a file in a manifest")
def _manifest(trial: Trial, text: str) -> Ended:
    from qdora_fast.system.manifest import write_manifest

    run = own_run(trial)
    extra = run / "adapter" / f"extra{_plain(text)}"
    extra.write_text("x")
    (run / "adapter" / "MANIFEST.json").unlink()
    write_manifest(run / "adapter", {"kind": text})
    extra.write_text("y")
    return attack(trial, "verify", run)


@_place("model.name in a run's config")
def _run_config(trial: Trial, text: str) -> Ended:
    run = own_run(trial)
    tree = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(tree.replace(str(trial.lab.base), json.dumps(text)[1:-1]))
    return attack(trial, "evaluate", run)


@_place("a reviewer")
def _reviewer(trial: Trial, text: str) -> Ended:
    return attack(trial, "review", own_run(trial), "--reviewer", text, "--verdict", "pass")


@_place("a saved review")
def _review(trial: Trial, text: str) -> Ended:
    file = trial.folder / "mark.json"
    file.write_text(json.dumps({"kind": text, "version": 1}))
    return attack(trial, "review", own_run(trial), file)


@_place("a command that does not exist")
def _command(trial: Trial, text: str) -> Ended:
    return attack(trial, text)


def _plain(text: str) -> str:
    """What can be a part of a file's name."""
    return text.replace("/", "").replace("\0", "")[:60]


GROUP = table(
    "texts",
    "control characters, marks of direction, tags and markup in every place that foreign text comes from",
    "on the terminal they are text",
    {
        f"{place}: {kind}": partial(_held, _PLACES[place], text)
        for place, (kind, text) in itertools.product(_PLACES, _TEXTS.items())
    },
    small=40,
)
