"""What a terminal shows of a run while it goes on, in as many lines as there is room for.

⠹ rloo ━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━ step 57/200  0:03:20  ETA 0:08:10
  reward   ▁▁▂▂▂▃▃▃▄▄▄▄▅▅▅▅▆▆▆▆▆▆▇▇▇▇▇▇█    0.412             +0.371
  KL       ▁▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇▇▇████     2.10 nats         +2.10
  step 3.2 s: sample 41%, score 10%, train 35%, sync 9%, idle 5%
  engine-0 replaced after 7 s (12 s ago)
"""

from collections.abc import Mapping
from typing import NamedTuple

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.figures import (
    BLOCKS,
    NUM_KEPT,
    WITH_ENTROPY,
    Figure,
    History,
    present,
    sparkline,
)

INDENT = "  "
LABEL, VALUE, UNIT, CHANGE = 9, 9, 9, 10
"""Widths of a row's parts, in letters."""
LEAST_SPARK = 8
"""A narrower sparkline shows nothing."""
WIDE, MIDDLE, NARROW = 60, 48, 30
"""Widths from which the bar's line has the time, the ETA, and the bar itself."""
PHASES = ("sample", "score", "train", "sync", "checkpoint", "idle")


class Head(NamedTuple):
    """The line with the bar."""

    title: str
    completed: int
    total: int
    elapsed: str
    eta: str
    spinner: str

    def line(self, width: int) -> Table:
        """Title, bar, step, time and ETA; fewer of them on a narrow terminal."""
        after = f"step {self.completed}/{self.total}"
        if width >= WIDE:
            after += f"  {self.elapsed}"
        if width >= MIDDLE:
            after += f"  ETA {self.eta}"
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True, width=1)
        longest = width - len(after) - 4 - (NARROW // 3 if width >= NARROW else 0)
        title = Text(self.title, style="bold", overflow="ellipsis", no_wrap=True)
        title.truncate(max(4, longest), overflow="ellipsis")
        table.add_column(no_wrap=True, width=title.cell_len)
        if width >= NARROW:
            table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=self.total, completed=self.completed)
        shown = (bar,) if width >= NARROW else ()
        table.add_row(Text(self.spinner, style="progress.spinner"), title, *shown, after)
        return table


class Room(NamedTuple):
    """Letters, lines, and what a sparkline is made of."""

    width: int
    height: int
    blocks: str = BLOCKS


def body(
    history: History, metrics: Mapping[str, float], status: str, event: str, room: Room
) -> list[Text]:
    """The lines under the bar, at most `room.height`.

    A short terminal loses the time's line first, then the event, then figures from the last one.
    """
    rows = [_row(history, figure, room) for figure in present(WITH_ENTROPY, metrics)]
    first = [_line(status)] if status else []
    shares = where_time_goes(metrics)
    time = [_line(shares)] if shares and not status else []
    last = [_line(event, style="yellow")] if event else []
    if len(first) + len(rows) + len(time) + len(last) > room.height:
        time = []
    return [*first, *rows, *time, *last][: room.height]


def where_time_goes(metrics: Mapping[str, float]) -> str:
    """Who waited for whom in the last step: shares of it, by phase; empty before there is one.

    Engines of a synchronous run wait while it trains and syncs, the learner while it samples and
    scores. In an asynchronous one these go on beside each other, and the learner's share is told.
    """
    step = metrics.get("time/step", 0.0)
    if step <= 0:
        return ""
    idle = metrics.get("time/idle")
    beside = idle is not None and idle == metrics.get("time/wait")
    parts = []
    for phase in PHASES:
        if f"time/{phase}" not in metrics or (beside and phase in ("sample", "score")):
            continue
        name = "waits for samples" if beside and phase == "idle" else phase
        parts.append(f"{name} {metrics[f'time/{phase}'] / step:.0%}")
    return f"step {step:.1f} s: {', '.join(parts)}" if parts else ""


def _row(history: History, figure: Figure, room: Room) -> Text:
    """Name, sparkline, newest value and its change since the first; less on a narrow terminal."""
    values = history.last(figure.metric)
    row = Text(f"{INDENT}{figure.label or 'speed':<{LABEL}}", overflow="ellipsis", no_wrap=True)
    left = room.width - len(INDENT) - LABEL - VALUE - UNIT
    has_change = left >= LEAST_SPARK + CHANGE
    spark = min(NUM_KEPT, left - CHANGE * has_change)
    if spark >= LEAST_SPARK:
        row.append(f"{sparkline(values, spark, room.blocks):<{spark}}", style="cyan")
    value = f"{values[-1]:{figure.form}}"
    row.append(f"{value:>{VALUE}}" if spark >= LEAST_SPARK else value, style="bold")
    row.append(f"{figure.unit:<{UNIT}}")
    if has_change:
        change = figure.change(values[-1] - history.first[figure.metric])
        row.append(f"{change:>{CHANGE}}", style="dim")
    return row


def _line(text: str, style: str = "dim") -> Text:
    return Text(INDENT + text, style=style, overflow="ellipsis", no_wrap=True)
