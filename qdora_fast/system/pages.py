"""HTML pages that stand alone: rendered from templates, with everything in them.

A page opens from a folder without a network, can be sent to somebody, and looks the same in ten years. What comes from
data is text and stays text: Jinja escapes every value, JSON goes in without a single "<", secrets are taken out, and a
content security policy forbids every request. The layout, styles and script that several pages share are in
`page_templates/` beside this file; a page's own templates lie beside the module that fills them. Nothing is measured
or drawn here.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from qdora_fast.system.redact import redact

TEMPLATES = "system/page_templates"
NO_NUMBER = "–"
NO_BREAK = "\u00a0"


def render(template: str, folder: str, **values: Any) -> str:
    """A page from a template. Values are escaped and secrets taken out; numbers have the filters count, share, decimal
    and width, objects and lists of files that may be broken pairs and entries.

    Args:
        template: name of a file in `folder`.
        folder: the page's own templates, below the package; they may use the shared ones.
    """
    page: str = _templates(folder).get_template(template).render(values)
    return redact(page.encode(errors="replace").decode())  # half a surrogate, as in a broken file name, becomes "?"


@functools.cache
def _templates(folder: str) -> Any:
    """The environment of the templates, compiled once a process."""
    import jinja2

    loaders = [jinja2.PackageLoader("qdora_fast", path) for path in dict.fromkeys((folder, TEMPLATES))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        finalize=lambda value: "" if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": count, "share": share, "decimal": decimal, "width": width}
    environment.filters |= {"pairs": _pairs, "entries": _entries}
    return environment


def embedded(value: object) -> Any:
    """JSON that no text can break out of: ASCII, and without the characters that mean something in HTML."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=True)  # U+2028, U+2029 and half surrogates become \\u escapes, too
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def is_number(value: object) -> TypeGuard[float]:
    """A finite number, and neither True nor False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Keys and values; none of what is no object."""
    return list(value.items()) if isinstance(value, Mapping) else []


def _entries(value: Any) -> list[Any]:
    """The entries of a list; none of what is no list."""
    return list(value) if isinstance(value, list | tuple) else []


def count(value: Any) -> str:
    """12,345; a dash where there is no number."""
    return f"{round(value):,}" if is_number(value) else NO_NUMBER


def share(value: Any) -> str:
    """A share as per cent, with one decimal below 10 % and above 90 %; never 0 or 100 % for nearly none and all."""
    if not is_number(value):
        return NO_NUMBER
    percent = 100 * value
    if 0 < percent < 0.1:
        return f"<{NO_BREAK}0.1{NO_BREAK}%"
    if 99.9 < percent < 100:
        return f">{NO_BREAK}99.9{NO_BREAK}%"
    digits = 1 if percent < 10 or 90 < percent < 100 else 0
    text = f"{percent:.{digits}f}"
    return f"{text.removesuffix('.0')}{NO_BREAK}%"


def decimal(value: Any) -> str:
    """Three digits that count: 0.87, 12.3; 1.2e+08 for what has no place in a table."""
    return f"{value:.3g}" if is_number(value) else NO_NUMBER


def width(part: Any) -> str:
    """A share as a CSS width, kept between nothing and all."""
    return f"{min(100.0, max(0.0, 100 * part)):.2f}%" if is_number(part) else "0%"
