"""Does an exported folder turn text into the tokens that were trained on? Recorded while training, asked again later.

A model whose tokenizer adds a BOS that training did not see, whose template lost a line break or
whose EOS changed still loads and still answers, only worse, or without an end. So a run keeps a hash
of its vocabulary and what its tokenizer made of three rows: the tokens learned from, the prompt as a
server renders it, and the same text without a template. The same questions, asked of a tokenizer
opened from the exported folder, must have the same answers. What this does not do: judge the
template; that was chosen and checked when the rows were prepared. A template that prints the date is
asked with that of the run, since the same weights are the same model on another day.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.chat_text import asks_for_clock, templates_of, today
from qdora_fast.data.tokenize.render import Renderer, Rendering, contents
from qdora_fast.data.tokenize.thinking import thinks
from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.models.tokenizer import load_tokenizer
from qdora_fast.system.json_files import read_object
from qdora_fast.system.manifest import value_hash

RECORD = "data/tokens.json"
RECORD_SHAPE = {
    "settings": {"max_length": int, "train_on": str, "on_long": str, "max_fraction": int | float},
    "rows": [dict],
    "template": str,
    "stop_ids": [int],
    "tokens": [{"trained": [int], "prompt": [int], "plain": [int]}],
}
ROWS = 3
DAYS_BACK = 400
"""For how long an export of a run is tried that has a date in its rows and none in its record."""

_SPECIAL = {"bos": "BOS", "eos": "EOS", "pad": "PAD"}
_USES = {
    "trained": "its tokens",
    "prompt": "the tokens of its prompt, as a server renders it,",
    "plain": "the tokens of its text without a template",
}


def describe(rendering: Rendering, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run records: its tokenizer's special tokens and template, and its tokens of some rows."""
    names = ("max_length", "train_on", "on_long", "max_fraction", "thinking")
    settings = {name: getattr(rendering, name) for name in (names if _is_asked(rendering) else names[:-1])}
    asked = _ask(rendering.tokenizer, rendering.stop_ids, settings, rows, rendering.date)
    return {"settings": settings, "rows": list(rows), "date": rendering.date, **asked}


def describe_folder(folder: Path, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the tokenizer and generation config in an exported folder, opened as any reader would."""
    tokenizer, stop_ids = load_tokenizer(str(folder), None, setting="")
    searched = "date" not in recorded and asks_for_clock(tokenizer)
    day = _day_of(recorded, tokenizer, stop_ids) if searched else recorded.get("date")
    return _ask(tokenizer, stop_ids, recorded["settings"], recorded["rows"], day)


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is not as it was trained, one sentence each."""
    differences = []
    if recorded["template"] != found["template"]:
        differences.append("the chat template is not the one trained with")
    if recorded.get("vocabulary", found["vocabulary"]) != found["vocabulary"]:  # runs before it was recorded have none
        differences.append("the tokenizer's vocabulary or merges are not those trained with")
    for name, called in _SPECIAL.items():
        if recorded[name] != found[name]:
            differences.append(f"{called} is token {found[name]}, trained with {recorded[name]}")
    if recorded["stop_ids"] != found["stop_ids"]:
        differences.append(f"answers stop at tokens {found['stop_ids']}, trained with {recorded['stop_ids']}")
    for number, (ours, theirs) in enumerate(zip(recorded["tokens"], found["tokens"], strict=True), start=1):
        differences += [
            f"row {number}: {words} differ from position {_first_difference(ours[use], theirs[use])} on"
            for use, words in _USES.items()
            if ours[use] != theirs[use]
        ]
    return differences


def complete_stop_ids(folder: Path, stop_ids: Collection[int]) -> list[int]:
    """Make a model's generation config stop at all tokens that ended its answers; return those that were added.

    A base whose generation config knows one end and whose tokenizer another would, served as it is, run on past the
    end that it was taught.
    """
    file = folder / "generation_config.json"
    config = read_object(file) if file.is_file() else {}
    listed = config.get("eos_token_id")
    known = listed if isinstance(listed, list) else [] if listed is None else [listed]
    added = sorted(set(stop_ids) - set(known))
    if added:
        ids = sorted({*known, *added})
        config["eos_token_id"] = ids[0] if len(ids) == 1 else ids
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return added


def _ask(
    tokenizer: Any, stop_ids: Collection[int], settings: Mapping[str, Any], rows: Sequence[Any], day: str | None
) -> dict[str, Any]:
    renderer = Renderer(Rendering(tokenizer, stop_ids=frozenset(stop_ids), date=day, **settings))
    vocabulary = Vocabulary(tokenizer, stop_ids, date=day, thinking=settings.get("thinking", "as_is"))
    named = templates_of(tokenizer)
    return {
        "template": value_hash(named if len(named) > 1 else named.get("default")),
        "vocabulary": value_hash(_vocabulary(tokenizer)),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "stop_ids": sorted(stop_ids),
        "tokens": [_tokens(renderer, vocabulary, row) for row in rows],
    }


def _is_asked(rendering: Rendering) -> bool:
    """Whether the template is asked about thinking; earlier runs have no word of it in their record."""
    return rendering.thinking != "as_is" and thinks(rendering.tokenizer) is not None


def _day_of(recorded: Mapping[str, Any], tokenizer: Any, stop_ids: Collection[int]) -> str | None:
    """The newest day on which the template prints the recorded prompts, for runs from before the day was recorded."""
    pairs = [(row, tokens["prompt"]) for row, tokens in zip(recorded["rows"], recorded["tokens"], strict=True)]

    def agrees(day: str) -> bool:
        vocabulary = Vocabulary(tokenizer, stop_ids, date=day)
        return all(_prompt(vocabulary, row) == prompt for row, prompt in pairs if prompt)

    latest = date.fromisoformat(today())
    return next(filter(agrees, ((latest - timedelta(back)).isoformat() for back in range(DAYS_BACK))), None)


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    """All that decides how text is cut into tokens: every token with its id, and the order of merges."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return {"tokens": sorted(tokenizer.get_vocab().items()), "merges": model.get("merges")}


def _tokens(renderer: Renderer, vocabulary: Vocabulary, row: Any) -> dict[str, list[int]]:
    """Ids of one row: learned from, as a prompt, and without a template. A row that cannot be rendered has none."""
    plain = vocabulary.encode("\n".join(contents(row)), special=True).ids
    try:
        return {"trained": renderer(row)[0]["input_ids"], "prompt": _prompt(vocabulary, row), "plain": plain}
    except RejectedRow:
        return {"trained": [], "prompt": [], "plain": plain}


def _prompt(vocabulary: Vocabulary, row: Any) -> list[int]:
    if "text" in row:
        return []
    messages = [{key: value for key, value in message.items() if key != "train"} for message in row["messages"]]
    messages, vocabulary = vocabulary.of(messages, row["tools"])
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return vocabulary.encode(vocabulary.render(messages[:last], row["tools"], add_generation_prompt=True)).ids


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    return next(place for place, (one, other) in enumerate(zip_longest(ours, theirs)) if one != other)
