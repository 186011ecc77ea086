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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from configs.redaction import RedactingFormatter

FIELDS: tuple[tuple[str, str, str, str], ...] = (
    # metric, label, format, unit; the first of several metrics with one label wins
    ("reward/total/mean", "reward", ".3f", ""),
    ("reward/gold/mean", "gold", ".3f", ""),
    ("validation/accuracy", "accuracy", ".1%", ""),
    ("accuracy", "accuracy", ".1%", ""),
    ("kl/ref_k1", "KL", ".2f", " nats"),
    ("length/mean", "length", ".1f", " tokens"),
    ("loss/total", "loss", ".4g", ""),
    ("loss/nll", "loss", ".4g", ""),
    ("loss/bradley_terry", "loss", ".4g", ""),
    ("loss/policy", "loss", ".4g", ""),
    ("loss/preference", "loss", ".4g", ""),
    ("tokens_per_s", "", ",.0f", " tokens/s"),
)
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

    On a terminal a bar is redrawn in place. Elsewhere (a pipe, CI, a log) a plain line is printed
    for the first and the last step and, between them, every `interval_s` seconds.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        console: Console | None = None,
        *,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or default_console()
        self.total_steps = total_steps
        self.title = title
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._interval_s = interval_s
        self._clock = clock
        self._metrics: dict[str, float] = {}
        self._status = ""
        self._completed = 0
        self._first: tuple[float, int] | None = None
        self._last_print: float | None = None
        self._unprinted = False
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, style="bold"),
            BarColumn(bar_width=None),
            TextColumn("step"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=total_steps)
        self._live = Live(console=self.console, get_renderable=self._view, refresh_per_second=8)

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

    def update(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one finished learner step; `step` counts finished steps, from 1.

        Metrics that come only now and then (validation) stay on view until the next ones.
        """
        self._metrics |= metrics
        self._status = ""
        self._completed = int(metrics.get("step", self._completed + 1))
        self._bar.update(self._task, completed=self._completed)
        now = self._clock()
        if self._first is None:
            self._first = (now, self._completed)
        self._unprinted = True
        due = self._last_print is None or now - self._last_print >= self._interval_s
        if not self.is_live and (due or self._completed >= self.total_steps):
            self._print_line()

    def _view(self) -> Group:
        line = self._status or "   ".join(_readings(self._metrics))
        return Group(self._bar, Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True))

    def _print_line(self) -> None:
        self._last_print, self._unprinted = self._clock(), False
        head = f"{self.title}  step {self._completed}/{self.total_steps}"
        self._print("  ".join([head, *_readings(self._metrics), *self._eta()]))

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _eta(self) -> list[str]:
        """From the pace since the first step, whose start-up would spoil the estimate."""
        assert self._first is not None
        start, first_step = self._first
        done, left = self._completed - first_step, self.total_steps - self._completed
        if done <= 0 or left <= 0:
            return []
        return [f"ETA {_clock_face(left * (self._clock() - start) / done)}"]


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


def _readings(metrics: Mapping[str, float]) -> list[str]:
    """`reward 0.412`, `KL 2.10 nats`, ...: what there is, in the order of `FIELDS`."""
    shown: dict[str, str] = {}
    for metric, label, form, unit in FIELDS:
        if metric in metrics and label not in shown:
            shown[label] = f"{label} {metrics[metric]:{form}}{unit}".strip()
    return list(shown.values())


def _clock_face(seconds: float) -> str:
    """`1:05` or `2:03:09`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
