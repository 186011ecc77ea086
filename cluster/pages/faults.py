"""What failed, what was replaced, and what became of it."""

from collections import Counter
from typing import Any

from cluster.dashboards.definition import ENGINES, FAULTS
from cluster.dashboards.panel import Panel
from cluster.events import tone
from cluster.failure import bundles
from cluster.faults import MOST_EVENTS, events_of, read_failure
from cluster.metrics.history import RunHistory
from cluster.pages.asking import Ask

MOST_BUNDLES = 5


def values(ask: Ask) -> dict[str, Any]:
    """What the template shows; inside `view.opened()`."""
    view, history = ask.view, ask.view.history
    # The table tells events; of the others, what happened at all.
    panels = [panel for panel in FAULTS.panels[1:] if _has_any(history, panel)]
    kinds = Counter(str(event.get("kind")) for event in history.events)
    return {
        "events": events_of(history.events),
        "num_left_out": max(0, len(history.events) - MOST_EVENTS),
        "kinds": [(kind, count, tone(kind)) for kind, count in kinds.most_common()],
        "failures": [read_failure(folder) for folder in bundles(view.path)[:MOST_BUNDLES]],
        "restarts": view.record.summary.get("restarts"),
        "figures": [one for panel in (*panels, ENGINES) if (one := view.figure(panel))],
    }


def _has_any(history: RunHistory, panel: Panel) -> bool:
    """Whether any of its figures was ever other than 0."""
    return any(any(line.y) for curve in panel.curves for line in history.lines(curve))
