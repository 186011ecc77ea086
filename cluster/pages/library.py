"""Which runs a folder holds: itself, what lies in it, and one level below; found as they come."""

import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.pages.view import RunView

DEPTH = 2
LOOK_S = 2.0
"""How old a list of runs may be."""
NEW_S = 0.2
"""The same where a run that somebody asks for is not in it."""
MOST_FOLDERS = 5000
"""Looked at for runs: someone may have given the root of a disk."""
MOST_OPEN = 8
"""Runs whose figures are kept in memory, those looked at last."""
MARKS = ("config.yaml", "metrics.jsonl")
"""A folder with one of these is a run."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run is, and what it is called."""

    slug: str
    """In addresses; letters, digits and ._~=- alone."""
    name: str
    """For people: its path below the folder that is shown."""
    path: Path


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return any((folder / mark).is_file() for mark in MARKS)


def find_runs(root: Path) -> list[Run]:
    """All runs in `root`, by name; `root` itself where it is one, and nothing below it."""
    if is_run(root):
        name = root.resolve().name or "run"
        return [Run(slug=slug_of(name), name=name, path=root)]
    paths = sorted(_below(root, DEPTH, iter(range(MOST_FOLDERS))))
    names = {path: path.relative_to(root).as_posix() for path in paths}
    return [Run(slug=slug_of(names[path]), name=names[path], path=path) for path in paths]


def slug_of(name: str) -> str:
    """A name as one part of an address, different for different names.

    >>> slug_of("demo/run"), slug_of("a b")
    ('demo~run', 'a_b~7dbde9')
    """
    parts = name.split("/")
    if all(_PLAIN.fullmatch(part) for part in parts):
        return "~".join(parts)
    plain = "~".join(re.sub(r"[^A-Za-z0-9._=-]", "_", part).lstrip(".") or "_" for part in parts)
    return f"{plain}~{hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()[:6]}"


def _below(folder: Path, depth: int, budget: Iterator[int]) -> Iterator[Path]:
    """Runs in a folder; what a run holds is its own. Folders without rights are left out."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in found if not entry.name.startswith(".")]
    except OSError:
        return
    for name in names:
        path = folder / name
        try:
            if not path.is_dir():
                continue
            if next(budget, None) is None:
                return
            if is_run(path):
                yield path
            elif depth > 1:
                yield from _below(path, depth - 1, budget)
        except OSError:
            continue


Identity = tuple[tuple[int, ...], tuple[int, ...]]


def identity_of(run_dir: Path) -> Identity:
    """What another run in a folder of the same name does not share: folder, and configuration."""
    return _facts(run_dir, "st_dev", "st_ino"), _facts(
        run_dir / "config.yaml", "st_ino", "st_ctime_ns"
    )


def _facts(path: Path, *names: str) -> tuple[int, ...]:
    """Of the file system; none of what cannot be reached."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return tuple(getattr(found, name) for name in names)


class Library:
    """The runs of a folder and what is known of them; used from several threads.

    >>> # library = Library(Path("runs")); library.runs(); library.view("demo~run")
    """

    def __init__(self, root: Path, first: Path | None = None) -> None:
        """`first`: the run that goes on now, shown first."""
        self.root = root
        self.first = first.resolve() if first is not None else None
        self._lock = threading.Lock()
        self._runs: list[Run] = []
        self._looked = -LOOK_S
        self._views: OrderedDict[str, tuple[Identity, RunView]] = OrderedDict()

    def runs(self) -> list[Run]:
        """By name, at most a few seconds old."""
        with self._lock:
            return self._found()

    def _found(self, at_most_s: float = LOOK_S) -> list[Run]:
        if time.monotonic() - self._looked >= min(at_most_s, LOOK_S):
            self._runs = find_runs(self.root)
            self._looked = time.monotonic()
            there = {run.slug for run in self._runs}
            for slug in [slug for slug in self._views if slug not in there]:
                self._forget(slug)
        return self._runs

    def _forget(self, slug: str) -> None:
        self._views.pop(slug)[1].close()

    def run(self, slug: str) -> Run | None:
        """The run of that name in addresses; no path is ever made from what was asked for."""
        for age_s in (LOOK_S, NEW_S):  # asked for where it is not in the list yet: it may be new
            with self._lock:
                runs = self._found(age_s)
            if found := next((run for run in runs if run.slug == slug), None):
                return found
        return None

    def view(self, slug: str) -> RunView | None:
        """What is known of a run; None where there is no such run."""
        run = self.run(slug)
        if run is None:
            return None
        identity = identity_of(run.path)
        with self._lock:
            if slug in self._views and self._views[slug][0] != identity:
                self._forget(slug)  # what is known of it is another run's
            if slug not in self._views:
                self._views[slug] = identity, RunView(run.path)
            self._views.move_to_end(slug)
            while len(self._views) > MOST_OPEN:
                self._forget(next(iter(self._views)))
            return self._views[slug][1]

    def close(self) -> None:
        """Forget all runs."""
        with self._lock:
            for slug in list(self._views):
                self._forget(slug)

    def newest(self) -> Run | None:
        """The run that goes on, else the one that was written to last."""
        from cluster.run_state import last_written

        runs = self.runs()
        own = [run for run in runs if self.first is not None and run.path.resolve() == self.first]
        return own[0] if own else max(runs, key=lambda run: last_written(run.path), default=None)
