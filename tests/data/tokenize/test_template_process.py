"""What a chat template may compute: bombs end in one error, right templates print what Transformers prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import DataSettings
from qdora_fast.data import choose_template, prepare
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize import template_process
from qdora_fast.data.tokenize.chat_text import check_template, render_chat
from qdora_fast.data.tokenize.render import Rendering
from qdora_fast.data.tokenize.template_process import BeyondLimits, render
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.limits import TEMPLATE_CHARACTERS, TEMPLATE_FAILURES

ASKED = [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "4"}]
USUAL = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}"
QUICK = {
    "a text of 20 GB": "{% set x = 'a' * 20000000000 %}{{ x | length }}",
    "a number of two billion digits": "{{ '%2000000000d' % 1 }}",
    "a power": "{{ (9 ** (9 ** 8)) % 7 }}",
    "a power of a negative": "{{ ((-9) ** (9 ** 8)) % 7 }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "an endless macro": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a loop in itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "loops in loops": "{% for i in [1] %}" * 30 + "x" + "{% endfor %}" * 30,
    "padding": "{{ 'a'.ljust(2000000000) }}",
    "a filter that pads": "{{ 'a' | center(2000000000) }}",
    "an indent": "{{ [1] | tojson(indent=2000000000) }}",
    "a form": "{{ '{:>2000000000}'.format(1) }}",
    "a long template": "{# " + "a" * TEMPLATE_CHARACTERS + " #}x",
    "a long text": "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
    "a long number": "{{ " + "9" * 5000 + " }}",
}
SLOW = {
    "loops": LOOPS,
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(30) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a join": "{{ range(99999) | join('a'.ljust(100000)) }}",
    "lines": "{{ ('\\n' * 90000) | indent(90000, blank=true) }}",
    "macros": "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "a cycler": "{% set c = cycler(1, 2) %}" + LOOPS.replace("{% set x = i * j %}", "{% set x = c.next() %}"),
    "sorting": "{% set a = 'a'.ljust(40000000) %}{% set n = namespace(l=[a ~ 'c', a ~ 'd']) %}{% for i in range(15) %}"
    "{% set n.l = n.l + n.l %}{% endfor %}{{ n.l | sort(case_sensitive=true) | length }}",
}


@pytest.fixture(autouse=True)
def uncounted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process whose templates were never stopped."""
    monkeypatch.setattr(template_process._OWN, "failures", 0)
    return


@pytest.mark.parametrize("bomb", QUICK)
def test_a_bomb_is_one_error(bomb: str) -> None:
    with pytest.raises(ConfigError, match=r"^mine[: ]"):
        check_template(QUICK[bomb], "mine")


@pytest.mark.exhaustive
@pytest.mark.parametrize("bomb", SLOW)
def test_a_bomb_that_takes_time_is_one_error(bomb: str) -> None:
    with pytest.raises(ConfigError, match=r"^mine: it (computes for more than|needs more than)"):
        check_template(SLOW[bomb], "mine")


def test_after_an_error_the_next_template_is_rendered(base_tokenizer: Any) -> None:
    base_tokenizer.chat_template = USUAL
    before = render_chat(base_tokenizer, ASKED)
    with pytest.raises(BeyondLimits):
        render("{{ 'a' * 20000000000 }}", {"messages": ASKED})
    assert render_chat(base_tokenizer, ASKED) == before


def test_a_template_that_is_stopped_again_and_again_ends_the_command() -> None:
    for _ in range(TEMPLATE_FAILURES - 1):
        with pytest.raises(BeyondLimits):
            render("{{ 'a' * 20000000000 }}", {"messages": ASKED})
    with pytest.raises(ConfigError, match=f"stopped {TEMPLATE_FAILURES} times"):
        render("{{ 'a' * 20000000000 }}", {"messages": ASKED})


def test_a_large_prompt_and_a_large_conversation_are_right() -> None:
    assert len(render("{{ 'word ' * 100000 }}", {"messages": ASKED})) == 500_000
    book = [{"role": "user", "content": "word " * 1_000_000}]
    assert render("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", {"messages": book}) == (
        book[0]["content"] + "\n"
    )
    assert render("{{ 2 ** 10 * 3 }}{{ '-' * 3 }}{{ 0 ** 5 }}", {"messages": []}) == "3072---0"


def test_text_of_every_kind_passes_unchanged() -> None:
    content = "\ud83d half a pair, \x00, \U0001f600, \u202e"
    assert render("{{ messages[0].content }}", {"messages": [{"content": content}]}) == content


def test_what_a_template_says_of_one_row_is_its_row(tmp_path: Path, base_tokenizer: Any) -> None:
    file = tmp_path / "own.jinja"
    loops = "{% if 'loop' in m.content %}{{ 'a' * 20000000000 }}{% endif %}"
    says = "{% if 'no' in m.content %}{{ raise_exception('not that word') }}{% endif %}"
    file.write_text(USUAL.replace("{{ m.role", loops + says + "{{ m.role"))
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(30)]
    rows[3]["question"], rows[7]["question"] = "A loop?", "A no?"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choose_template(base_tokenizer, str(file))
    settings = DataSettings(path=str(tmp_path / "rows.jsonl"), cache=False)
    prepared = prepare(settings, seed=1, rendering=Rendering(base_tokenizer, 256))
    rejected = [json.loads(line) for line in (prepared.folder / "rejected.jsonl").read_text().splitlines()]
    told = {line["place"].rpartition(":")[2]: line["detail"] for line in rejected}
    assert set(told) == {"4", "8"}
    assert "MiB of memory" in told["4"] and told["8"] == "not that word"


def test_real_templates_print_what_transformers_prints(base_tokenizer: Any) -> None:
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    files = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    assert len(files) > 20
    tools = [{"type": "function", "function": {"name": "add", "description": "x", "parameters": {"type": "object"}}}]
    day = datetime(2001, 2, 3).strftime
    rendered = 0
    for file in files:
        base_tokenizer.chat_template = file.read_text(encoding="utf-8")
        for these in (None, tools):
            given = {"messages": ASKED, "tools": these, "documents": None, "strftime_now": day}
            given |= {"add_generation_prompt": False, **base_tokenizer.special_tokens_map}
            try:
                theirs = base_tokenizer.apply_chat_template(ASKED, tools=these, tokenize=False, strftime_now=day)
            except Exception:  # noqa: BLE001 - one for images, for instance
                with pytest.raises(RejectedRow):
                    render(base_tokenizer.chat_template, given)
                continue
            assert render(base_tokenizer.chat_template, given) == theirs, file.stem
            rendered += 1
    assert rendered > 20
