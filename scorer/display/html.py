"""Blocks and plots as HTML, by the templates in this package. Everything is escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.display.tables import CAUTION
from scorer.display.words import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jinja2

    from scorer.display.blocks import Block


_TEMPLATES = Path(__file__).with_name("templates")


def card(title: str, blocks: Sequence[Block], more: str = "") -> str:
    """Return a card for a notebook cell as HTML."""
    return _cards().render(title=title, blocks=blocks, more=more)


def page(name: str, /, **values: Any) -> str:  # noqa: ANN401 - any value that the template shows
    """Return a complete page from a template, with its style sheet and script inside.

    The page's content security policy allows only these two, by their digests: no request and no other script.
    """
    style, script = ((_TEMPLATES / Path(name).with_suffix(kind)).read_text("utf-8") for kind in (".css", ".js"))
    allowed = f"style-src {_source(style)}; script-src {_source(script)}; img-src data:"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    return template(name).render(style=style, script=script, policy=policy, **values)


@cache
def _cards() -> jinja2.Template:
    """Return the template of cards, cached: compiling it takes a hundred times as long as filling it in."""
    import jinja2  # noqa: PLC0415 - only notebooks and reports show HTML

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["visible"] = visible
    return environment.from_string((_TEMPLATES / "cell.html").read_text("utf-8"), {"caution": CAUTION})


@cache
def template(name: str) -> jinja2.Template:
    """Return the template of a page, cached: compiling it takes six times as long as filling it in."""
    import jinja2  # noqa: PLC0415 - only notebooks and reports show HTML

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string((_TEMPLATES / name).read_text("utf-8"))


def _source(text: str) -> str:
    """Return the content security policy's name for an inline style or script: its digest."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
