"""Pages from the Jinja templates of this package."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from cluster.charts import number


def render_page(template: str, **values: Any) -> str:
    """A template of this package, filled; everything in it is escaped unless it is Markup."""
    return environment().get_template(template).render(values)


@cache
def environment() -> jinja2.Environment:
    """Templates by their path in this package, such as `report.html.jinja`."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    made.filters |= {"number": number, "marked": marked, "exact": exact}
    return made


def marked(text: str, words: str) -> Markup:
    """The text with what was looked for in <mark>, small and capital letters alike.

    >>> marked("A <b> is a B", "b")
    Markup('A &lt;<mark>b</mark>&gt; is a <mark>B</mark>')
    """
    if not words:
        return escape(text)
    pieces = re.split(f"({re.escape(words)})", text, flags=re.IGNORECASE)
    return Markup("").join(
        Markup("<mark>{}</mark>").format(piece) if i % 2 else escape(piece)
        for i, piece in enumerate(pieces)
    )


def exact(value: float | None) -> str:
    """Four decimals, a true minus sign; a dash where nothing was recorded."""
    return "–" if value is None else f"{value:.4f}".replace("-", "−")
