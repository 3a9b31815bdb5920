"""Configs made from the schema itself: valid ones of all kinds, and keys with a slip of the finger."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

from qdora_fast.config import Config
from qdora_fast.config.evaluation import KNOWN_METRICS

LETTERS = "abcdefghijklmnopqrstuvwxyz_"
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
# Settings that are more than their type: each with values that its description allows.
SPECIAL: dict[tuple[str, ...], st.SearchStrategy[Any]] = {
    ("run", "name"): st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True),
    ("run", "notify"): st.lists(st.sampled_from(["env:HOOK", "env:NTFY_URL"]), max_size=2),
    ("train", "tracker"): st.sampled_from(["none", "wandb", ["tensorboard", "mlflow"], []]),
    ("adapter", "trainable_tokens"): st.lists(TEXT | st.integers(0, 99), max_size=3, unique=True),
    ("adapter", "layers"): st.sampled_from(["0", "0-3", "8,10,12-15", " 1 - 2 , 4"]),
    ("data", "formatter"): st.sampled_from(["rows.py:some", "a/b_c.py:d1"]),
    ("data", "date"): st.dates().map(str),
    ("data", "filters", "min_tokens"): st.just("auto") | st.integers(0, 10**6),
    ("data", "sources"): st.just([]),
    ("engine", "resident"): st.sampled_from(["auto", "off", 0.5, 3]),
    ("evaluation", "max_new_tokens"): st.just("auto") | st.integers(1, 10**6),
    ("evaluation", "metric"): st.sampled_from([*KNOWN_METRICS, "mine.py:score"]),
    ("evaluation", "more_metrics"): st.lists(st.sampled_from([*KNOWN_METRICS, "mine.py:score"]), max_size=2),
    ("evaluation", "pattern"): st.sampled_from(["(x)", r"answer: (\w+)"]),
    ("evaluation", "mmlu", "questions"): st.just("full") | st.integers(1, 500),
}


def keys(section: type[BaseModel] = Config, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of the schema by its path, sections included."""
    for name, field in section.model_fields.items():
        yield (*at, name)
        if _is_section(field.annotation):
            yield from keys(typing.cast("type[BaseModel]", field.annotation), (*at, name))


@st.composite
def slips(draw: Any) -> tuple[tuple[str, ...], str]:
    """A key, and what stands there after one letter was left out, doubled by another, replaced, or swapped."""
    key = draw(st.sampled_from(ALL_KEYS))
    word = key[-1]
    place, letter = draw(st.integers(0, len(word) - 1)), draw(st.sampled_from(LETTERS))
    before, at, after = word[:place], word[place], word[place + 1 :]
    slip = draw(
        st.sampled_from(
            [before + after, before + letter + at + after, before + letter + after, before + after[:1] + at + after[1:]]
        )
    )
    return key, slip


def valid_configs() -> st.SearchStrategy[dict[str, Any]]:
    """Trees of settings that the schema's own words allow, cross rules included."""
    return _section(Config, ()).map(_fit_together)


def _section(section: type[BaseModel], at: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: _values(field, (*at, name)) for name, field in section.model_fields.items()}
    needed = {name: fields[name] for name, field in section.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(needed, optional={name: each for name, each in fields.items() if name not in needed})


def _values(field: Any, at: tuple[str, ...]) -> st.SearchStrategy[Any]:
    kind, bounds = field.annotation, list(field.metadata)
    if at in SPECIAL:
        return SPECIAL[at] | st.just(None) if type(None) in typing.get_args(kind) else SPECIAL[at]
    return _of(kind, bounds, at)


def _of(kind: Any, bounds: list[Any], at: tuple[str, ...]) -> st.SearchStrategy[Any]:
    origin = typing.get_origin(kind)
    if _is_section(kind):
        return _section(kind, at)
    if origin is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if origin is typing.Annotated:
        inner, *more = typing.get_args(kind)
        return _of(inner, [each for part in more for each in getattr(part, "metadata", [part])], at)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([_of(each, bounds, at) for each in typing.get_args(kind)])
    if origin is list:
        return st.lists(TEXT, max_size=2)
    if kind is type(None):
        return st.none()
    if kind in (int, float):
        return _number(
            kind, {name: getattr(b, name) for b in bounds for name in ("ge", "gt", "le", "lt") if hasattr(b, name)}
        )
    return {bool: st.booleans(), str: TEXT}[kind]


def _number(kind: type, bounds: dict[str, float]) -> st.SearchStrategy[Any]:
    low, high = bounds.get("ge", bounds.get("gt", -1e6)), bounds.get("le", bounds.get("lt", 1e6))
    if kind is int:
        return st.integers(int(low) + ("gt" in bounds), int(high) - ("lt" in bounds))
    return st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds, allow_subnormal=False)


def _fit_together(tree: dict[str, Any]) -> dict[str, Any]:
    """Take out what contradicts something else, by the rules that the settings' descriptions state."""
    data, train = {"path": "demo"} | tree["data"], tree.get("train", {})
    data["path"] = data["path"] or "demo"
    method = tree.get("adapter", {}).get("method", "qdora")
    if method in ("dora", "lora"):
        tree.get("export", {}).pop("merge_base", None)
    if tree.get("adapter", {}).get("trainable_tokens"):
        tree["adapter"].pop("modules_to_save", None)
    if method in ("lora", "qlora"):
        train.pop("magnitude_learning_rate", None)
    if data.get("held_out", 0.1) == 0:
        train.pop("early_stopping", None)
    size = train.get("batch_size", 2)
    if size == "auto":
        train.pop("gradient_accumulation", None)
    elif train.get("effective_batch"):
        train["effective_batch"] *= size
        train.pop("gradient_accumulation", None)
    columns = data.get("columns", {})
    both = columns.get("prompt") and columns.get("response")
    if not both:
        data.pop("columns", None)
    if bool(both) != (data.get("format") == "columns"):
        data["format"] = "auto"
    if data.get("held_out_path"):
        data.pop("stratify", None)
    evaluation = tree.get("evaluation", {})
    if "regex" in (evaluation.get("metric"), *evaluation.get("more_metrics", [])):
        evaluation["pattern"] = evaluation.get("pattern") or "(x)"
    mmlu = evaluation.get("mmlu", {})
    if mmlu.get("fail_below", -3) > mmlu.get("warn_below", -2):
        mmlu["fail_below"], mmlu["warn_below"] = -3, -2
    return tree | {"data": data}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


ALL_KEYS = sorted(keys())
