"""What mkdocs is told beyond mkdocs.yml: links that leave docs/, and a list of those that leave the repository.

A page of docs/ may link to a file of the repository (`../../BENCHMARKS.md`), for those who read it there. On the site
BENCHMARKS.md, LOG.md and the other documents of the root are pages of their own, under `repository/`; a link to any
other file of the repository (code, configs) becomes its text. External links are listed and not fetched: a build needs
no network.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md", "examples/README.md")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")

_external: set[str] = set()


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the documents of the root as pages."""
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, _page_of(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Send links that leave docs/ to those pages, or make text of them."""
    source = page.file.src_uri
    here = next((posixpath.dirname(name) for name in DOCUMENTS if _page_of(name) == source), None)
    folder = f"docs/{posixpath.dirname(source)}" if here is None else here

    def target(match: re.Match[str]) -> str:
        text, link = match.groups()
        if re.match(r"[a-z]+:", link):
            _external.add(link)
            return match[0]
        path, _, anchor = link.partition("#")
        if not path:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, path))
        if path in DOCUMENTS:
            path = f"docs/{_page_of(path)}"
        elif not path.startswith("docs/"):
            return text
        start = f"docs/{posixpath.dirname(source)}"
        return f"[{text}]({posixpath.relpath(path, start)}{'#' if anchor else ''}{anchor})"

    parts = re.split(r"(^```.*?^```$|^    .*?$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else LINK.sub(target, part) for number, part in enumerate(parts))


def on_post_build(**_: Any) -> None:
    """Name every external link once."""
    print(f"External links, not fetched ({len(_external)}):")
    print("\n".join(f"  {link}" for link in sorted(_external)))


def _page_of(name: str) -> str:
    return f"repository/{name.removesuffix('.md').replace('/', '-').lower()}.md"
