"""Reads a page as a browser would: its tags, its words, and that every element is closed."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "img", "link", "hr"}

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "&lt;b&gt; &amp;",
    "]]>",
    "{{ 7 * 7 }} {% raw %}",
    "\u2028\u2029\x00\x1b",
    "```python\nprint('<b>')\n```",
    "] | [a](http://b) | `c` **d**",
    "नमस्ते दुनिया",
    "مرحبا",
    "\u202e\u2066abc",
    "\ud83d",
)
"""Texts that would do harm on a page that took them for more than text."""


class Page(HTMLParser):
    """Tags in order with their attributes, texts of elements, contents of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), "an attribute twice"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    @property
    def text(self) -> str:
        """All words in reading order, white space folded and no-break spaces plain."""
        return " ".join(" ".join(self.texts).split())

    @property
    def ids(self) -> set[str | None]:
        return {attrs["id"] for _, attrs in self.tags if "id" in attrs}

    def of(self, tag: str, kind: str) -> list[dict[str, str | None]]:
        """The attributes of each `tag` of a class."""
        return [attrs for name, attrs in self.tags if name == tag and kind in (attrs.get("class") or "").split()]

    def attributes(self, name: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.tags if name in attrs]
