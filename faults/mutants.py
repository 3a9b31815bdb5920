"""Configs with one mistake, and some with none: what there is to get wrong.

Misspelt keys are made from the schema itself, so that a new setting is misspelt, too, the day it exists.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from string import ascii_lowercase
from typing import Any, get_args

from pydantic import BaseModel

from qdora_fast.config import Config

Tree = dict[str, Any]
Mutant = tuple[str, bytes, tuple[str, ...]]
"""What was done, the file, and words that the answer must hold (the last one a hint); no words: it is valid."""

_PLAIN: Tree = {"model": {"name": "demo"}, "data": {"path": "demo"}}


def _keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every setting there is, by its path."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, (*path, name))
        else:
            yield (*path, name)


def _words(path: Sequence[str]) -> tuple[str, ...]:
    """What a setting can be, where that is one of some words."""
    model: Any = Config
    for key in path[:-1]:
        model = model.model_fields[key].annotation
    return get_args(model.model_fields[path[-1]].annotation)


def _with(path: Sequence[str], value: Any, tree: Tree | None = None) -> Tree:
    tree = copy.deepcopy(_PLAIN if tree is None else tree)
    section = tree
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    return tree


def _file(tree: Tree) -> bytes:
    return json.dumps(tree).encode()


def _misspelt(random: Random, word: str) -> str:
    """One edit away."""
    place, letter = random.randrange(len(word)), random.choice(ascii_lowercase)
    before, after = word[:place], word[place:]
    edits = [before + letter + after, before + letter + after[1:], before + after[1:]]
    if len(after) > 1:
        edits.append(before + after[1] + after[0] + after[2:])
    return random.choice(edits) or word + letter


def _misspelt_key(random: Random) -> Mutant:
    path = random.choice(list(_keys(Config)))
    beside = {each[-1] for each in _keys(Config) if each[:-1] == path[:-1]}
    wrong = _misspelt(random, path[-1])
    if wrong in beside or wrong == path[-1]:
        return _misspelt_key(random)
    dotted = ".".join((*path[:-1], wrong))
    right = ".".join(path)
    return f"{dotted}", _file(_with((*path[:-1], wrong), 1)), (f"{dotted} ", f"did you mean `{right}`?")


def _misspelt_word(random: Random) -> Mutant:
    path, word = random.choice(_WORDS)
    wrong = _misspelt(random, word)
    if wrong in _words(path):  # dora, with one letter changed, is lora
        return _misspelt_word(random)
    return f"{'.'.join(path)}: {wrong}", _file(_with(path, wrong)), (".".join(path), f"did you mean {word}?")


def _wrong_value(random: Random) -> Mutant:
    path, values = random.choice(_WRONG)
    value = random.choice(values)
    return (
        f"{'.'.join(path)}: {value!r}",
        _file(_with(path, value)).replace(b"NaN", b".nan").replace(b"Infinity", b".inf"),
        (".".join(path),),
    )


def _wrong_together(random: Random) -> Mutant:
    note, tree, word = random.choice(_TOGETHER)
    return note, _file(tree), (word,)


def _no_config(random: Random) -> Mutant:
    note, content, word = random.choice(_NO_CONFIG)
    return note, content, (word,)


def _valid(random: Random) -> Mutant:
    tree = copy.deepcopy(_PLAIN)
    chosen = random.sample(_VALID, random.randrange(1, 8))
    for path, values in chosen:
        tree = _with(path, random.choice(values), tree)
    return "valid: " + ", ".join(".".join(path) for path, _ in chosen), _file(tree), ()


MAKERS: tuple[Callable[[Random], Mutant], ...] = (
    *(_misspelt_key, _misspelt_key, _misspelt_key, _misspelt_word, _wrong_value),
    *(_wrong_value, _wrong_together, _no_config, _valid, _valid),
)
_WORDS = [
    (("adapter", "method"), "qdora"),
    (("adapter", "method"), "qlora"),
    (("adapter", "method"), "dora"),
    (("train", "optimizer"), "paged_adamw_8bit"),
    (("train", "optimizer"), "adamw_8bit"),
    (("train", "scheduler"), "cosine"),
    (("train", "scheduler"), "constant"),
    (("train", "gradient_checkpointing"), "unsloth"),
    (("train", "precision"), "bf16"),
    (("data", "format"), "sharegpt"),
    (("data", "format"), "alpaca"),
    (("data", "train_on"), "responses"),
    (("data", "on_long"), "truncate"),
    (("engine", "impl"), "reference"),
    (("engine", "form"), "folded"),
    (("export", "merge_base"), "dequant4"),
]
_COUNTS = [-1, 0, 0.5, "many", True, [], {"a": 1}, float("nan")]
_WRONG: list[tuple[tuple[str, ...], list[Any]]] = [
    (("model", "max_length"), [*_COUNTS, 15, 10**9]),
    (("adapter", "r"), [*_COUNTS, 100_000]),
    (("adapter", "alpha"), [0, -16, "x", True, float("inf"), None]),
    (("adapter", "dropout"), [1, 1.5, -0.1, "none", True]),
    (("adapter", "layers"), ["a-b", "5-2", "1,,2", 3.5, "-1"]),
    (("adapter", "target_modules"), ["every-linear", 7, {"q_proj": 1}]),
    (("train", "learning_rate"), [0, -1e-4, 2, "fast", True, float("nan"), float("inf")]),
    (("train", "loraplus_ratio"), [0, 0.5, -16, "x", True]),
    (("train", "warmup"), [1, -0.1, "5%", True]),
    (("train", "epochs"), [0, -1, "two", True]),
    (("train", "max_steps"), [0, -5, 1.5, "all", True]),
    (("train", "batch_size"), _COUNTS),
    (("train", "gradient_accumulation"), _COUNTS),
    (("train", "seed"), [-1, 2**32, "lucky", 1.5, True]),
    (("train", "packing"), ["maybe", 7, [], {"on": 1}]),
    (("data", "held_out"), [0.9, 1, -0.1, "ten", True]),
    (("data", "on_bad_row"), ["ignore", 1]),
    (("data", "filters"), ["strict", 3, []]),
    (("data", "formatter"), ["my_rows", "my_rows:f", "a.py:b:c", "my rows:f", "rows.py:a.b"]),
    (("engine", "resident"), ["some", -1, 0, True]),
    (("export", "proof_rows"), [0, 5000, "all", True]),
    (("evaluation", "metric"), ["accuracy", 3, "mod:", "mod:f"]),
    (("run", "name"), ["../up", "a/b", "", ".hidden", 7]),
]
_ROWS = {"path": "rows.jsonl"}
_TOGETHER: list[tuple[str, Tree, str]] = [
    (
        "dequant4 without a 4-bit base",
        {**_PLAIN, "adapter": {"method": "dora"}, "export": {"merge_base": "dequant4"}},
        "export.merge_base",
    ),
    (
        "early stopping without held-out rows",
        {"model": {"name": "demo"}, "data": {"path": "demo", "held_out": 0}, "train": {"early_stopping": 2}},
        "train.early_stopping",
    ),
    (
        "a rate for magnitudes that are not there",
        {**_PLAIN, "adapter": {"method": "qlora"}, "train": {"magnitude_learning_rate": 1e-4}},
        "train.magnitude_learning_rate",
    ),
    ("path and sources", {"model": {"name": "demo"}, "data": {"path": "demo", "sources": [_ROWS]}}, "sources"),
    (
        "half of the columns",
        {"model": {"name": "demo"}, "data": {**_ROWS, "columns": {"prompt": "question"}}},
        "columns.response",
    ),
    ("no data", {"model": {"name": "demo"}}, "data"),
    ("no model", {"data": {"path": "demo"}}, "model"),
    ("no path", {"model": {"name": "demo"}, "data": {}}, "path is required"),
    ("a regex without a pattern", {**_PLAIN, "evaluation": {"metric": "regex"}}, "pattern"),
]
A_FOLDER = b"a folder of that name"
"""For a file that is a folder."""
_BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (98 + n, 98 + n, *[97 + n] * 9) for n in range(7)
)
_NO_CONFIG: list[tuple[str, bytes, str]] = [
    ("empty", b"", "is empty"),
    ("nothing but a comment", b"# later\n", "is empty"),
    ("a list", b"- model\n- data\n", "top level"),
    ("one word", b"demo\n", "top level"),
    ("a duplicate key", b"model: {name: demo}\ndata: {path: demo}\ntrain:\n  seed: 1\n  seed: 2\n", "line 5"),
    ("a tab", b"model:\n\tname: demo\n", "not valid YAML"),
    ("an open bracket", b"model: {name: demo\ndata: {path: demo}\n", "not valid YAML"),
    ("an unknown alias", b"model: *base\ndata: {path: demo}\n", "not valid YAML"),
    ("aliases that multiply", _BOMB, "aliases"),
    ("a Python object", b"model: !!python/object/apply:os.system [true]\ndata: {path: demo}\n", "tag"),
    ("Latin-1", b"model: {name: caf\xe9}\ndata: {path: demo}\n", "UTF-8"),
    ("bytes", bytes(range(256)), "UTF-8"),
    ("a folder", A_FOLDER, "is a folder"),
    ("a section that is a number", b"model: 3\ndata: {path: demo}\n", "model"),
]
_VALID: list[tuple[tuple[str, ...], list[Any]]] = [
    (("run", "name"), ["a", "run-1", "My.run_2"]),
    (("model", "max_length"), [16, 512, 4096, 131072]),
    (("model", "revision"), [None, "main", "0123abc"]),
    (("adapter", "r"), [1, 8, 64, 1024]),
    (("adapter", "alpha"), [0.5, 16, 128]),
    (("adapter", "dropout"), [0, 0.05, 0.5]),
    (("adapter", "rslora"), [True, False]),
    (("adapter", "target_modules"), ["all-linear", ["q_proj", "v_proj"]]),
    (("adapter", "layers"), [None, "0-15", "8,10,12-15"]),
    (("data", "template"), ["auto", "alpaca", "chatml"]),
    (("data", "filters"), [{"min_tokens": 0}, {"min_tokens": "auto"}, {"refusals": True}]),
    (("data", "dedup"), [{"near": False}, {"similarity": 0.9}]),
    (("train", "learning_rate"), [1e-5, 2e-4, 1]),
    (("train", "loraplus_ratio"), [None, 1, 16]),
    (("train", "scheduler"), ["cosine", "linear", "constant"]),
    (("train", "epochs"), [0.5, 1, 3]),
    (("train", "max_steps"), [None, 1, 1000]),
    (("train", "batch_size"), [1, 64]),
    (("train", "optimizer"), ["auto", "adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]),
    (("train", "seed"), [0, 42, 2**32 - 1]),
    (("train", "save_steps"), [None, 1, 500]),
    (("train", "early_stopping"), [None, 3]),
    (("train", "magnitude_learning_rate"), [None, 1e-4]),
    (("engine", "impl"), ["auto", "torch", "reference", "peft", "off"]),
    (("engine", "resident"), ["auto", "off", 2.5]),
    (("export", "merge_base"), ["auto", "original16", "dequant4"]),
    (("export", "at_end"), ["merged_16bit", "none"]),
    (("evaluation", "metric"), ["normalized_match", "numeric", "my_metrics:score"]),
    (("evaluation", "max_rows"), [0, 10]),
]
