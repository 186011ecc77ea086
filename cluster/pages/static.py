"""The style sheet and the script of the pages, and addresses under which browsers keep them."""

import hashlib
from functools import cache
from pathlib import Path

from cluster.templates import render_page

FOLDER = Path(__file__).parent
SHEETS = ("page.css.jinja", "widgets.css.jinja", "pages/pages.css.jinja")


@cache
def files() -> dict[str, tuple[str, bytes]]:
    """Name -> content type and content."""
    css = "".join(render_page(name) for name in SHEETS)
    icon = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
        'rx="7" fill="#2563c9"/><path d="M6 23l6-8 5 4 9-11" fill="none" stroke="#fff" '
        'stroke-width="3" stroke-linecap="round" stroke-linejoin="round"/></svg>'
    )
    return {
        "pages.css": ("text/css", css.encode()),
        "pages.js": ("text/javascript", (FOLDER / "pages.js").read_bytes()),
        "icon.svg": ("image/svg+xml", icon.encode()),
    }


@cache
def addresses() -> dict[str, str]:
    """Name -> address below that of all pages; another one for every content."""
    return {
        name: f"static/{name}?v={hashlib.blake2b(content, digest_size=6).hexdigest()}"
        for name, (_, content) in files().items()
    }
