"""A page as it is sent: whole at first, then only the parts that are new.

A template marks what changes by itself with `{% call part("name") %}`. The script of a page tells
which parts it has, by digest, and is sent the others. Where the layout around them is another one,
such as after the first step, it fetches the whole page again.
"""

import gzip
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from cluster.pages.static import addresses
from cluster.templates import render_page

THEMES = ("light", "dark")
LIVE_MS, STILL_MS = 2000, 15000
"""How often a page asks for what is new while its run goes on, and after."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""For NULs, which HTML may not hold, whatever a model or an address does."""
LAYOUT = ""
"""In place of a part's name: the digest of the layout."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a page is looked at: from which address, asked for what, in which colours."""

    base: str
    """From the page's address back to that of all pages: `../../`."""
    theme: str = ""
    """One of THEMES; empty follows the system."""
    asked: tuple[tuple[str, str], ...] = ()
    """What the page takes of its address's query."""

    def turned(self, theme: str) -> str:
        """A relative address of this very page in other colours."""
        return f"?{urlencode([*self.asked, *([('theme', theme)] if theme else [])])}"

    def link(self, path: str = "", **query: object) -> str:
        """A relative address of another page that keeps the theme; empty values are left out."""
        given = {"theme": self.theme, **query}
        kept = {name: value for name, value in given.items() if value not in (None, "", [])}
        asked = f"?{urlencode(kept, doseq=True)}" if kept else ""
        return f"{self.base}{path}{asked}" or "./"


@dataclass(frozen=True)
class Page:
    """A drawn page."""

    whole: bytes
    layout: str
    """Digest of what stands around the parts."""
    parts: Mapping[str, tuple[str, str]]
    """Name -> (digest, HTML)."""
    poll_ms: int

    @cached_property
    def zipped(self) -> bytes:
        """The whole page, gzipped."""
        return gzip.compress(self.whole, 4, mtime=0)

    def news(self, known: str) -> bytes:
        """What is new to someone who knows `LAYOUT,NAME.DIGEST,...`, as JSON."""
        layout, *have = known.split(",")
        if layout != self.layout:
            return json.dumps({"anew": True, "poll": self.poll_ms}).encode()
        has = set(have)
        new = {name: part for name, part in self.parts.items() if f"{name}.{part[0]}" not in has}
        return json.dumps({"poll": self.poll_ms, "parts": new}).encode()


def draw_page(template: str, look: Look, *, is_live: bool, **values: Any) -> Page:
    """Fill a template of this package."""
    parts: dict[str, tuple[str, str]] = {}
    poll_ms = LIVE_MS if is_live else STILL_MS
    given = {"look": look, "link": look.link, "static": addresses(), "poll_ms": poll_ms}
    places = Places()
    page = render_page(
        f"pages/{template}",
        part=_recorder(parts, places),
        layout=places.hold(LAYOUT),
        **given,
        **values,
    )
    layout = _digest(places.fill(page, lambda name: f"({name})"))

    def content(name: str) -> str:
        if name == LAYOUT:
            return layout
        digest, html = parts[name]
        return f'<div data-part="{name}" data-digest="{digest}">{html}</div>'

    return Page(places.fill(page, content).encode(), layout, parts, poll_ms)


class Places:
    """Marks in a page that is drawn, which nothing that is shown in it can be taken for.

    >>> places = Places()
    >>> places.fill(f"a\\0b {places.hold('rows')}", str.upper)
    'a\N{REPLACEMENT CHARACTER}b ROWS'
    """

    def __init__(self) -> None:
        self._word = secrets.token_hex(8)
        self._pattern = re.compile(f"\x00{self._word}:([^\x00]*)\x00")

    def hold(self, name: str) -> Markup:
        """The mark of a place."""
        return Markup(f"\x00{self._word}:{name}\x00")

    def fill(self, text: str, content: Callable[[str], str]) -> str:
        """The text with what belongs in its places."""
        filled = self._pattern.sub(lambda place: content(place[1]), text)
        return filled.replace("\x00", REPLACEMENT)


def _recorder(parts: dict[str, tuple[str, str]], places: Places) -> Callable[..., Markup]:
    """What templates call `part`: keeps the block aside and leaves its place."""

    def part(name: str, *, caller: Callable[[], str]) -> Markup:
        assert name not in parts, f"two parts called {name}"
        html = str(caller()).replace("\x00", REPLACEMENT)
        parts[name] = (_digest(html), html)
        return places.hold(name)

    return part


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
