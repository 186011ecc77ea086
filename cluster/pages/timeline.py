"""Who did what when: phases of every process over the last minute, five, or the whole run."""

from typing import Any

from cluster.dashboards.gantt import gantt
from cluster.pages.asking import Ask

WINDOWS = {"60": "Last minute", "300": "Last 5 minutes", "900": "Last 15 minutes", "all": "All"}


def values(ask: Ask) -> dict[str, Any]:
    """What the template shows; inside `view.opened()`."""
    view, chosen = ask.view, ask.word("window")
    if chosen not in WINDOWS:
        chosen = "60" if view.is_running else "all"
    now = view.now
    began = view.history.began or now
    start = began if chosen == "all" else max(began, now - float(chosen))
    origin = start if chosen == "all" else now
    return {
        "windows": WINDOWS,
        "chosen": chosen,
        "gantt": gantt(view.history, start, now, origin=origin),
    }
