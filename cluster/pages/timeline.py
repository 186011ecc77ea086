"""Who did what when: phases of every process over the last minute, five, or the whole run."""

from typing import Any

from cluster.dashboards.gantt import gantt
from cluster.pages.asking import Ask

WINDOWS = {"60": "1 min", "300": "5 min", "900": "15 min", "all": "All"}
"""Seconds that may be asked for, up to now."""


def values(ask: Ask) -> dict[str, Any]:
    """What the template shows; inside `view.opened()`."""
    view, chosen = ask.view, ask.word("window")
    if chosen not in WINDOWS:
        chosen = "60" if view.is_running else "all"
    now = view.now
    began = view.history.began or now
    length = now if chosen == "all" else float(chosen)
    start = max(began, view.history.phases_from, now - length)
    origin = start if chosen == "all" else now
    drawn = gantt(view.history, start, now, origin=origin)
    return {
        "windows": WINDOWS,
        "chosen": chosen,
        "gantt": drawn,
        # A long time is much to draw, and hardly changes in two seconds.
        "is_live": view.is_running and (drawn is None or not drawn.is_binned),
    }
