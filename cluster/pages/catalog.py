"""Every page: its template, what it takes of a query, and who gathers its values.

All functions here run in threads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cluster.pages import compare, curves, faults, overview, settings, slots, timeline
from cluster.pages.asking import ROLLOUT_FIELDS, Ask
from cluster.pages.index import RunList
from cluster.pages.library import Library, Run
from cluster.pages.page import Look, Page, draw_page
from cluster.pages.view import RunView
from configs.errors import ConfigError

Values = Callable[[Ask], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A page of one run."""

    title: str
    template: str
    values: Values
    asks: tuple[str, ...] = ()
    """Of the query."""
    is_in_menu: bool = True
    has_own_locks: bool = False
    """Its values are gathered outside `RunView.opened`."""
    is_still: bool = False
    """It does not change, also while the run goes on."""


def _later(module: str, name: str) -> Values:
    """A function of a module that is loaded where somebody looks at samples: it takes a second."""

    def values(ask: Ask) -> dict[str, Any]:
        return getattr(import_module(f"cluster.pages.{module}"), name)(ask)

    return values


RUN_PAGES: dict[str, RunPage] = {
    "": RunPage(title="Overview", template="overview.html.jinja", values=overview.values),
    "curves": RunPage(
        title="Curves", template="curves.html.jinja", values=curves.values, asks=("board", "last")
    ),
    "rollouts": RunPage(
        title="Rollouts", template="rollouts.html.jinja", values=_later("rollouts", "values"),
        asks=ROLLOUT_FIELDS, has_own_locks=True,
    ),
    "sample": RunPage(
        title="Sample", template="sample.html.jinja", values=_later("tokens", "values"),
        asks=("id",), is_in_menu=False, has_own_locks=True, is_still=True,
    ),
    "group": RunPage(
        title="Group", template="group.html.jinja", values=_later("rollouts", "group_values"),
        asks=("group", "step"), is_in_menu=False, has_own_locks=True, is_still=True,
    ),
    "step": RunPage(
        title="Step", template="step.html.jinja", values=_later("rollouts", "step_values"),
        asks=("step",), is_in_menu=False, has_own_locks=True, is_still=True,
    ),
    "prompt": RunPage(
        title="Prompt", template="prompt.html.jinja", values=_later("rollouts", "prompt_values"),
        asks=("row",), is_in_menu=False, has_own_locks=True, is_still=True,
    ),
    "timeline": RunPage(
        title="Timeline", template="timeline.html.jinja", values=timeline.values, asks=("window",)
    ),
    "faults": RunPage(title="Faults", template="faults.html.jinja", values=faults.values),
    "config": RunPage(
        title="Config", template="config.html.jinja", values=settings.values, asks=("with",),
        is_still=True,
    ),
}  # fmt: skip
"""By the last part of their address."""


def draw_run(library: Library, slug: str, name: str, query: Mapping[str, str], look: Look) -> Page:
    """A page of a run; raises ConfigError where there is no such run, and Busy."""
    run, view = _found(library, slug)
    page = RUN_PAGES[name]
    ask = Ask(library=library, view=view, query=query)
    # What is slow is gathered before: others may look at the run meanwhile.
    values = page.values(ask) if page.has_own_locks else {}
    with view.opened():
        if not page.has_own_locks:
            values = page.values(ask)
        is_live = values.pop("is_live", view.is_running and not page.is_still)
        return draw_page(page.template, look, is_live=is_live, **_head(run, view, name), **values)


def _found(library: Library, slug: str) -> tuple[Run, RunView]:
    run, view = library.run(slug), library.view(slug)
    if run is None or view is None:
        raise ConfigError(f"There is no run {slug!r} here, or not any more.")
    return run, view


def _head(run: Run, view: RunView, active: str) -> dict[str, Any]:
    """What stands above every page of a run."""
    return {
        "run": run,
        "state": view.state,
        "active": active if RUN_PAGES[active].is_in_menu else "rollouts",
        "page_title": RUN_PAGES[active].title,
        "menu": [(name, page.title) for name, page in RUN_PAGES.items() if page.is_in_menu],
    }


def draw_index(library: Library, found: RunList, look: Look) -> Page:
    """All runs; where there is but one, its first page."""
    runs = library.runs()
    if len(runs) == 1:
        return draw_run(library, runs[0].slug, "", {}, look)
    return draw_page(
        "index.html.jinja", look, is_live=True, lines=found.lines(), root=str(library.root)
    )


def draw_compare(library: Library, slugs: Sequence[str], look: Look) -> Page:
    """Several runs side by side."""
    values = compare.values(library, slugs)
    return draw_page("compare.html.jinja", look, is_live=values.pop("is_live"), **values)


def draw_slot(library: Library, query: Mapping[str, str], look: Look) -> Page:
    """The frame of the dashboard's Metrics page: all panels of a run, at first of the newest."""
    runs = library.runs()
    run = next((one for one in runs if one.slug == query.get("run")), None) or library.newest()
    if run is None:
        return draw_page("waiting.html.jinja", look, is_live=True, root=str(library.root))
    _, view = _found(library, run.slug)
    ask = Ask(library=library, view=view, query=query)
    with view.opened():
        return draw_page(
            "slot.html.jinja", look, is_live=True,
            runs=runs, progress=overview.progress(view), **_head(run, view, ""),
            **curves.values(ask),
        )  # fmt: skip


def draw_solo(library: Library, query: Mapping[str, str], look: Look) -> Page:
    """One panel that fills a card of the dashboard."""
    run = library.run(query.get("run", "")) or library.newest()
    if run is None:
        return draw_page("waiting.html.jinja", look, is_live=True, root=str(library.root))
    _, view = _found(library, run.slug)
    with view.opened():
        figure = slots.solo_figure(view, query.get("panelId", ""))
        return draw_page("solo.html.jinja", look, is_live=True, run=run, figure=figure)
