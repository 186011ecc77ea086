"""What the console shows while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.spinner import Spinner

from cluster.event_words import EventWatch
from cluster.figures import BLOCKS, PLAIN_BLOCKS, History, readings
from cluster.live_view import Head, Room, body
from configs.redaction import RedactingFormatter

OUR_LOGGERS = ("actors", "attune", "cluster", "configs", "rl", "__main__")


@functools.cache
def default_console() -> Console:
    """The one console on stderr. Bar and log lines must share it, or they overwrite each other."""
    return Console(stderr=True)


class RunProgress:
    """The console's view of one run of `total_steps` learner steps.

    >>> with RunProgress(60, "RLOO") as progress:
    ...     progress.status("starting 2 engines ...")
    ...     progress.update({"step": 1, "reward/total/mean": 0.41, "kl/ref_k1": 0.02})

    On a terminal a bar with the run's figures is redrawn in place (`cluster.live_view`). Elsewhere
    (a pipe, CI, a log) a plain line is printed for the first and the last step and, between them,
    every `interval_s` seconds.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        console: Console | None = None,
        *,
        run_dir: str | Path | None = None,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`run_dir`: where the run tells what was lost and replaced; it is shown on a terminal."""
        self.console = console or default_console()
        self.total_steps = total_steps
        self.title = title
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._interval_s = interval_s
        self._clock = clock
        self._events = EventWatch(run_dir, clock) if run_dir is not None else None
        self._history = History()
        self._metrics: dict[str, float] = {}
        self._status = ""
        self._links: dict[str, str] = {}
        self._completed = 0
        self._started = clock()
        self._first: tuple[float, int] | None = None
        self._latest = 0.0
        self._last_print: float | None = None
        self._unprinted = False
        self._spinner = Spinner("dots" if self._knows_unicode() else "line")
        self._live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self.is_live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_live:
            self._live.stop()
        elif self._unprinted:
            self._print_line()

    def status(self, text: str) -> None:
        """Say what goes on while no step does: `starting 2 engines ...`."""
        if text and text != self._status and not self.is_live:
            self._print(f"{self.title}  {text}")
        self._status = text

    def links(self, **named_urls: str) -> None:
        """Print where the run can be watched, once: `links(dashboard="http://127.0.0.1:8265")`."""
        new = {name: url for name, url in named_urls.items() if self._links.get(name) != url}
        self._links |= new
        if new:
            self._print("  ".join([self.title, *(f"{name} {url}" for name, url in new.items())]))

    def update(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one finished learner step; `step` counts finished steps, from 1.

        Metrics that come only now and then (validation) stay on view until the next ones.
        """
        self._metrics |= metrics
        self._history.add(metrics)
        self._status = ""
        before, self._completed = self._completed, int(metrics.get("step", self._completed + 1))
        # A run that goes on shows its old steps all at once: the time of each is in its metrics.
        self._latest = metrics.get("time_s", self._clock())
        if self._first is None or self._completed <= before:
            self._first = (self._latest, self._completed)
        self._unprinted = True
        now = self._clock()
        due = self._last_print is None or now - self._last_print >= self._interval_s
        if not self.is_live and (due or self._completed >= self.total_steps):
            self._print_line()

    def _view(self) -> Group:
        width, height = self.console.size
        left = 0.0 if self._completed >= self.total_steps else self._left_s()
        head = Head(
            self.title,
            self._completed,
            self.total_steps,
            _clock_face(self._clock() - self._started),
            _clock_face(left) if left is not None else "-:--",
            str(self._spinner.render(time.monotonic())),
        )
        # One line for the bar, and one for the line above it, which a log may need.
        room = Room(width, height - 2, BLOCKS if self._knows_unicode() else PLAIN_BLOCKS)
        event = self._events.text() if self._events is not None else ""
        return Group(
            head.line(width), *body(self._history, self._metrics, self._status, event, room)
        )

    def _knows_unicode(self) -> bool:
        return self.console.encoding.lower().startswith("utf")

    def _print_line(self) -> None:
        self._last_print, self._unprinted = self._clock(), False
        head = f"{self.title}  step {self._completed}/{self.total_steps}"
        left = self._left_s()
        eta = [f"ETA {_clock_face(left)}"] if left is not None else []
        self._print("  ".join([head, *readings(self._metrics), *eta]))

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left_s(self) -> float | None:
        """From the pace since the first step, whose start-up would spoil the estimate."""
        if self._first is None:
            return None
        start, first_step = self._first
        done, left = self._completed - first_step, self.total_steps - self._completed
        return left * (self._latest - start) / done if done > 0 and left > 0 else None


def quiet_logs(log_file: Path, console: Console | None = None) -> None:
    """Send every log record to `log_file`, and only our own warnings and errors to the console.

    Libraries attach handlers of their own when they are imported; these are taken off here, so
    call this after importing them. A second call replaces the first one's file and console. Give
    `console` where `RunProgress` was given one: the two must share it.
    """
    logging.raiseExceptions = False  # a log that finds no room is the least of a full disk's losses
    log_file.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(log_file, encoding="utf-8")
    to_file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_console = RichHandler(
        logging.WARNING, console or default_console(), show_path=False, markup=False
    )
    to_console.setFormatter(RedactingFormatter("%(message)s"))
    to_console.addFilter(lambda record: record.name.split(".")[0] in OUR_LOGGERS)
    root = logging.getLogger()
    for handler, name in ((to_file, "attune-file"), (to_console, "attune-console")):
        for old in [old for old in root.handlers if old.get_name() == name]:
            root.removeHandler(old)
            old.close()
        handler.set_name(name)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in list(root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)


def _clock_face(seconds: float) -> str:
    """`1:05` or `2:03:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
