"""The first page of a run: what it learned so far, how it does, who does what."""

import itertools
import os
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from cluster.dashboards.definition import LEARNED, OVERVIEW
from cluster.dashboards.drawing import Figure
from cluster.dashboards.gantt import seconds, style
from cluster.faults import newest_failure
from cluster.pages.asking import Ask
from cluster.pages.view import RunView

if TYPE_CHECKING:
    from cluster.rollouts.rows import Row

OFFLINE = ("sft", "reward_model")
RECENT_STEPS = 20
MOST_REPLIES = 3
TRIES = 3
"""Steps that are looked at for replies, where files of the last ones are torn."""
SILENT_S = 20.0
"""What a process does is not told of one that told nothing for so long."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    step: int
    num_steps: int | None
    percent: float
    pace: str
    """Seconds a step, of the last steps; empty before there are any."""
    left: str
    """Time until the end at that pace; empty where nobody knows."""


def values(ask: Ask) -> dict[str, Any]:
    """What the template shows; inside `view.opened()`."""
    from cluster.headline import display_name, sentence
    from cluster.run_facts import settings, tiles

    view, record = ask.view, ask.view.record
    return {
        "headline": sentence(record),
        "method": display_name(record),
        "record_notes": record.notes,
        "tiles": tiles(record),
        "progress": progress(view),
        "roles": roles(view),
        "figures": overview_figures(view),
        "failure": newest_failure(view.path) if view.state == "failed" else None,
        "settings": settings(record),
        "replies": newest_replies(view),
    }


def newest_replies(view: RunView) -> "list[Row]":
    """A sample each of some prompts of the last step that is stored whole.

    The first ones, so that none is picked for its looks.
    """
    for step in _stored_steps(view)[:TRIES]:
        if view.newest_replies[0] != step:
            view.newest_replies = step, _first_replies(view, step)
        if view.newest_replies[1]:
            break
    return view.newest_replies[1]


def _stored_steps(view: RunView) -> list[int]:
    """The newest first."""
    try:
        names = os.listdir(view.path / "experience")
    except OSError:
        return []
    numbers = [name.removeprefix("step=") for name in names if name.startswith("step=")]
    return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)


def _first_replies(view: RunView, step: int) -> "list[Row]":
    """Of one step alone: to show three replies not all of a run has to be indexed."""
    from cluster.rollouts.browser import RolloutBrowser
    from cluster.rollouts.query import Query

    rows = RolloutBrowser(view.path, step).query(Query(limit=MOST_REPLIES * 16)).rows
    first = {row.group_id: row for row in reversed(rows)}
    return sorted(first.values(), key=lambda row: row.group_id)[:MOST_REPLIES]


def progress(view: RunView) -> Progress:
    """From the rows of the steps."""
    step, planned = view.step, view.record.num_steps
    lengths = _lengths(view)
    pace = median(lengths) if lengths else 0.0
    left = (planned - step) * pace if view.is_running and planned and pace else 0.0
    return Progress(
        step=step,
        num_steps=planned,
        percent=min(100.0, 100 * step / planned) if planned else 0.0,
        pace=f"{seconds(pace)} a step" if pace else "",
        left=f"about {seconds(left)} left" if left > 0 else "",
    )


def _lengths(view: RunView) -> list[float]:
    """Seconds of the last steps, from when each was finished."""
    times = [row.get("unix_time") or row.get("time_s") for row in view.history.rows[-RECENT_STEPS:]]
    known = [time for time in times if isinstance(time, int | float)]
    return [b - a for a, b in itertools.pairwise(known) if b > a]


def roles(view: RunView) -> list[tuple[str, str, str, str]]:
    """(process, style, phase, for how long) of each that is at work now."""
    if not view.is_running:
        return []
    now = view.now
    found = []
    for role, changes in sorted(view.history.phases.items()):
        if changes and now - view.history.last_told[role] < SILENT_S:
            since, phase = changes[-1]
            found.append((role, style(phase), phase, seconds(max(0.0, now - since))))
    return found


def overview_figures(view: RunView) -> list[Figure]:
    """What a person looks at first; of methods without rewards, their losses."""
    is_offline = view.record.method in OFFLINE
    panels = (*LEARNED.panels[:3], *OVERVIEW) if is_offline else OVERVIEW
    return [drawn for panel in panels if (drawn := view.figure(panel)) is not None]
