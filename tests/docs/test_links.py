"""Every link of the documents leads somewhere: to a file, and to a heading in it. External ones are not fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import DOCS, OTHERS, PAGES, ROOT, anchors, links, name_of, prose

NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}: {name_of(target)} has no such heading"


def test_every_page_is_in_the_navigation_and_can_be_reached_from_another() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", NAV))
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    reached = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    assert not [name for name in listed if (DOCS / name) not in reached and name != "index.md"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_has_one_title_and_is_not_too_long(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^# ", prose(page), flags=re.M)) == 1
    assert "Written by `python -m" in text or len(text.splitlines()) <= 150


def test_pictures_are_small() -> None:
    pictures = list((DOCS / "images").iterdir())
    assert pictures
    assert not [picture for picture in pictures if picture.stat().st_size > 200 * 1024]
