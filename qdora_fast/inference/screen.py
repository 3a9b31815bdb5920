"""A conversation on a terminal: answers as they are written, and in dim text what is to be said about them.

Answers go to standard output, everything else to standard error. Base and tuned stand side by side where the terminal
is wide enough, else one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from qdora_fast.data.tokenize.thinking import in_words
from qdora_fast.system import console
from qdora_fast.system.terminal import Terminal
from qdora_fast.system.visible import visible

WIDE = 100
"""Columns from which two answers stand side by side."""

CHAT_HELP = """\
/new            start over
/system TEXT    start over with this system message; without TEXT, without one
/quit           leave; so does Ctrl-D
Ctrl-C stops an answer. A message that begins with a slash: put a blank before it."""

_ENDS = {
    "finished": "",
    "limit": "cut at {most} tokens (--max-new-tokens)",
    "full": "cut: the model's {length:,} tokens are full (/new starts over)",
    "stopped": "stopped",
}


def conversation(source: Any, sampling: Any, *, compare: bool) -> None:
    """What one talks to, and how."""
    how = f"temperature {sampling.temperature:g}" if sampling.temperature else "greedy"
    console.line("model", f"{source.name}: {source.about}")
    console.line(
        "answers",
        f"{how}, {sampling.max_new_tokens:,} tokens at most; a whole conversation {source.max_length:,}",
    )
    _thinking(source)
    if compare:
        console.line("base", "its adapter switched off; asked with the same template, which it never saw")


def serving(source: Any, address: str, port: int, *, open_to_all: bool) -> None:
    """What is served, where, and how to ask it."""
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}/v1"
    message = '{"messages": [{"role": "user", "content": "Hello"}]}'
    console.line("model", f"{source.name}: {source.about}; a whole conversation {source.max_length:,} tokens")
    _thinking(source)
    console.line("server", f"{url}, model name {source.name}; Ctrl-C stops it")
    console.line("try", f"curl {url}/chat/completions -H 'Content-Type: application/json' -d '{message}'")
    if open_to_all:
        console.line("warning", f"{address} can be reached from other machines, and there is no password")


def _thinking(source: Any) -> None:
    """The mode that the model was trained in; nothing where there is none."""
    told = source.vocabulary.render_mode.switches
    if told:
        console.line("thinking", f"{source.vocabulary.render_mode.mode}, as it was trained ({in_words(told)})")


def loading(source: Any) -> Any:
    """A spinner while weights are read."""
    return console.status(f"loading {source.name}")


@contextmanager
def exchange(titles: Sequence[str]) -> Iterator[_Below | _SideBySide]:
    """Where the answers to one message are written: `write(title, text)`, then `close(title, words)`, for each title
    in turn."""
    out = Terminal()
    if len(titles) < 2 or not out.is_terminal or out.width < WIDE:
        yield _Below(out, titled=len(titles) > 1)
        return
    columns = _SideBySide(out, titles)
    with Live(console=out, get_renderable=columns.newest, transient=True, refresh_per_second=10):
        yield columns
    out.print(columns.whole())


def about_answer(answer: Any, sampling: Any, source: Any) -> str:
    """What is said below an answer: its end where it has none of its own, tokens and speed."""
    lost = f"{answer.dropped} oldest messages did not fit and were dropped" if answer.dropped else ""
    end = _ENDS[answer.end].format(most=sampling.max_new_tokens, length=source.max_length)
    empty = "" if answer.text else "it ended while thinking" if answer.in_thought else "an empty answer"
    speed = f"{answer.tokens} tokens in {answer.seconds:.1f} s, {answer.tokens / answer.seconds:.0f} tokens/s"
    return " · ".join(filter(None, (lost, empty, end, speed)))


class _Below:
    """One answer below the other, each written as it comes."""

    def __init__(self, out: Terminal, *, titled: bool) -> None:
        self._out, self._titled = out, titled
        self._begun = ""

    def write(self, title: str, text: str) -> None:
        """More of an answer."""
        self._begin(title)
        self._out.out(visible(text), end="", highlight=False)

    def close(self, title: str, words: str) -> None:
        """An answer has ended; `words` about it."""
        self._begin(title)
        self._out.out()
        console.aside(words)

    def _begin(self, title: str) -> None:
        if self._titled and self._begun != title:
            self._out.out(f"{title}:", style="bold", highlight=False)
        self._begun = title


class _SideBySide:
    """A column for each answer."""

    def __init__(self, out: Terminal, titles: Sequence[str]) -> None:
        self._out = out
        self._texts, self._words = dict.fromkeys(titles, ""), dict.fromkeys(titles, "")

    def write(self, title: str, text: str) -> None:
        """More of an answer."""
        self._texts[title] += visible(text)

    def close(self, title: str, words: str) -> None:
        """An answer has ended; `words` about it."""
        self._words[title] = words

    def newest(self) -> Table:
        """While it is written: as many of the last lines as the terminal shows."""
        width, height = self._out.width // 2 - 4, max(1, self._out.height - 4)
        shown = (Text(text).wrap(self._out, width)[-height:] for text in self._texts.values())
        return self._table([Text("\n").join(lines) for lines in shown])

    def whole(self) -> Table:
        """When all is written."""
        return self._table([Text(text) for text in self._texts.values()])

    def _table(self, texts: Sequence[Text]) -> Table:
        table = Table.grid(padding=(0, 2))
        table.width = self._out.width - 4  # room for the ^C that a terminal shows
        for _ in texts:
            table.add_column(ratio=1)
        table.add_row(*(Text(title, style="bold") for title in self._texts))
        table.add_row(*texts)
        table.add_row(*(Text(words, style="dim") for words in self._words.values()))
        return table
