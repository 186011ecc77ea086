"""The HTTP application: which address shows what. Nothing here reads a file or draws.

    /attune/                      the list of runs, or the run where there is but one
    /attune/run/SLUG/PAGE         a page of a run
    /attune/compare?run=&run=     several runs
    /attune/static/NAME           style sheet and script
    /d/UID/  /d-solo/UID[/...]    frames of the Ray dashboard, and its two questions after health

All links are relative: the same pages are reached directly and through the dashboard. What is not
listed is answered 404 without a body: the dashboard takes that for "answer it yourself".
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from aiohttp import web

from cluster.pages import slots
from cluster.pages.access import Access, guard
from cluster.pages.catalog import (
    RUN_PAGES,
    draw_compare,
    draw_index,
    draw_run,
    draw_slot,
    draw_solo,
)
from cluster.pages.index import RunList
from cluster.pages.library import Library
from cluster.pages.page import THEMES, Look, Page, draw_page
from cluster.pages.sharing import Busy, Drawings
from cluster.pages.static import files
from configs.errors import ConfigError

logger = logging.getLogger(__name__)

DRAWINGS = web.AppKey("drawings", Drawings)
LONGEST_VALUE = 500
"""Letters of a query's value that are read."""


def make_app(library: Library, access: Access, *, with_slots: bool = True) -> web.Application:
    """The pages of a library.

    `with_slots`: answer what the Ray dashboard asks Grafana and Prometheus for.
    """
    server = Server(library)
    app = web.Application(middlewares=[guard(access)])
    app[DRAWINGS] = server.drawings
    app.router.add_get("/attune", server.index)
    app.router.add_get("/attune/", server.index)
    app.router.add_get("/attune/compare", server.compare)
    app.router.add_get("/attune/static/{name}", server.static)
    app.router.add_get("/attune/run/{run}/", server.run)
    app.router.add_get("/attune/run/{run}/{page}", server.run)
    if with_slots:
        for path, answer in slots.HEALTH.items():
            app.router.add_get(path, _always(answer))
        app.router.add_get("/d/{uid}/", server.slot)
        app.router.add_get("/d/{uid}/{name}", server.slot)
        app.router.add_get("/d-solo/{uid}", server.solo)
        app.router.add_get("/d-solo/{uid}/", server.solo)
        app.router.add_get("/d-solo/{uid}/{name}", server.solo)
    app.on_cleanup.append(server.close)
    return app


def _always(answer: Mapping[str, Any]) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(answer)

    return handler


class Server:
    """The handlers."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.list = RunList(library)
        self.drawings = Drawings()

    async def close(self, app: web.Application) -> None:
        self.drawings.close()
        self.library.close()

    async def static(self, request: web.Request) -> web.Response:
        kind, content = files().get(request.match_info["name"], ("", b""))
        if not kind:
            raise web.HTTPNotFound
        return web.Response(
            body=content,
            content_type=kind,
            charset="utf-8",
            headers={"Cache-Control": "max-age=31536000, immutable"},
        )

    async def index(self, request: web.Request) -> web.Response:
        look = _look(request)
        return await self._answer(
            request, look, ("index",), lambda: draw_index(self.library, self.list, look)
        )

    async def run(self, request: web.Request) -> web.Response:
        slug, name = request.match_info["run"], request.match_info.get("page", "")
        if name not in RUN_PAGES:
            raise web.HTTPNotFound
        asked = _asked(request, RUN_PAGES[name].asks)
        look = _look(request, asked.items())
        return await self._answer(
            request,
            look,
            (slug, name),
            lambda: draw_run(self.library, slug, name, asked, look),
        )

    async def compare(self, request: web.Request) -> web.Response:
        slugs = [value[:LONGEST_VALUE] for value in request.query.getall("run", [])]
        look = _look(request, (("run", slug) for slug in slugs))
        return await self._answer(
            request, look, ("compare",), lambda: draw_compare(self.library, slugs, look)
        )

    async def slot(self, request: web.Request) -> web.Response:
        board = slots.board_uid(request.match_info["uid"])
        asked = {"board": board} | _asked(request, ("run", "board", "last"))
        look = _look(request, asked.items())
        return await self._answer(
            request, look, ("slot",), lambda: draw_slot(self.library, asked, look)
        )

    async def solo(self, request: web.Request) -> web.Response:
        asked = _asked(request, ("run", "panelId"))
        look = _look(request, asked.items())
        return await self._answer(
            request, look, ("solo",), lambda: draw_solo(self.library, asked, look)
        )

    async def _answer(
        self,
        request: web.Request,
        look: Look,
        key: tuple[Hashable, ...],
        draw: Callable[[], Page],
    ) -> web.Response:
        """The page, or what is new of it to someone who has it.

        `key`, with `look`, says which page it is.
        """
        known = request.query.get("known")
        try:
            page = await self.drawings.get((look, *key), lambda: _zipped(draw()))
        except Busy:
            return _later(look, "This takes too long just now; it is asked again.")
        except ConfigError as error:
            return _problem(look, 410, str(error))
        except OSError as error:  # a folder that is moved under way, a disk that is gone
            logger.warning("%s cannot be read: %s", request.path, error)
            why = error.strerror or type(error).__name__
            return _later(look, f"This cannot be read just now ({why}); it is asked again.")
        except Exception as error:
            logger.exception("%s could not be drawn", request.path)
            return _problem(look, 500, f"{type(error).__name__}: {error}")
        if known is not None:
            return web.Response(body=page.news(known), content_type="application/json")
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            return web.Response(
                body=page.zipped, content_type="text/html", charset="utf-8", headers=headers
            )
        return web.Response(body=page.whole, content_type="text/html", charset="utf-8")


def _zipped(page: Page) -> Page:
    """Zipped in the thread that drew it, not where all others wait."""
    assert page.zipped
    return page


def _look(request: web.Request, asked: Iterable[tuple[str, str]] = ()) -> Look:
    """From where the page is looked at: links lead up to the root and down to /attune/ again."""
    depth = request.path.count("/") - 1
    theme = request.query.get("theme", "")
    is_inside = request.path.startswith("/attune/")
    base = "../" * (depth - 1) if is_inside else "../" * depth + "attune/"
    return Look(base=base, theme=theme if theme in THEMES else "", asked=tuple(asked))


def _asked(request: web.Request, names: tuple[str, ...]) -> dict[str, str]:
    """What a page takes of a query, so that nothing else makes another drawing."""
    given = {name: request.query[name] for name in names if name in request.query}
    return {name: value[:LONGEST_VALUE] for name, value in given.items()}


def _later(look: Look, text: str) -> web.Response:
    """A page that says why there is none yet."""
    return _problem(look, 503, text, {"Retry-After": "2"})


def _problem(
    look: Look, status: int, text: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A page that says in one line why there is none."""
    page = draw_page("problem.html.jinja", look, is_live=status == 503, text=text[:1000])
    return web.Response(
        body=page.whole, status=status, content_type="text/html", charset="utf-8", headers=headers
    )
