"""All panels of a run, a dashboard at a time."""

from typing import Any

from cluster.dashboards.definition import DASHBOARDS, LEARNING
from cluster.dashboards.drawing import (
    WHOLE,
    Figure,
    Window,
    figure_of_key,
    keys_without_panel,
)
from cluster.dashboards.panel import Dashboard
from cluster.pages.asking import Ask
from cluster.pages.view import RunView

LAST = (0, 1000, 200, 50)
"""Steps that may be asked for, from the last one back; 0 is all."""
REST = "Everything else that was measured"


def values(ask: Ask) -> dict[str, Any]:
    """What the template shows; inside `view.opened()`."""
    view, board = ask.view, board_of(ask.word("board"))
    last = int(ask.word("last")) if ask.word("last") in map(str, LAST) else 0
    window = window_of(view, last)
    sections = [
        (section.title, [view.figure(panel, window) for panel in section.panels])
        for section in board.sections
    ]
    if board is LEARNING:
        keys = keys_without_panel(view.history)
        sections.append((REST, [figure_of_key(view.history, key, window) for key in keys]))
    found: list[tuple[str, list[Figure]]] = [
        (title, [one for one in figures if one is not None]) for title, figures in sections
    ]
    return {
        "board": board,
        "boards": DASHBOARDS,
        "sections": [(title, figures) for title, figures in found if figures],
        "last": last,
        "choices": [n for n in LAST if not n or n < len(view.history.rows)],
    }


def board_of(uid: str) -> Dashboard:
    """The dashboard of that uid, else the first."""
    return next((one for one in DASHBOARDS if one.uid == uid), LEARNING)


def window_of(view: RunView, last: int) -> Window:
    """The last so many steps, and the time they took; 0 for all."""
    rows = view.history.rows
    if not last or len(rows) <= last:
        return WHOLE
    row = rows[-last]
    moment = row.get("unix_time")
    return Window(step=row["step"], time=moment if isinstance(moment, int | float) else 0.0)
