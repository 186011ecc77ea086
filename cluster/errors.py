"""Failures that a run treats in different ways, and what an error tells of its causes."""

from collections.abc import Mapping, Sequence
from typing import Any


class Unrecoverable(RuntimeError):
    """Trying again from the last checkpoint would fail the same way: the run ends at once."""


class StorageFull(Unrecoverable):
    """A disk has no room left; the message names the folder and what to do."""


class Fenced(RuntimeError):
    """The caller was replaced while it was out of reach; its successor goes on with the run."""


def with_batch(error: BaseException, rows: Sequence[Mapping[str, Any]]) -> BaseException:
    """The same error, carrying the samples that it arose on, for the failure bundle.

    `rows`: one mapping per sample, of JSON-like values. They travel in the error's own attributes,
    so Ray and Ray Train take them along: `raise with_batch(RuntimeError("..."), rows) from cause`.
    """
    error.__dict__["batch"] = [dict(row) for row in rows]
    return error


def carrying(error: BaseException, source: BaseException) -> BaseException:
    """The same error with the samples that `source`, which it stands for, carries, if any.

    An error that travels between processes leaves its `__cause__` behind.
    """
    rows = batch_of(source)
    return error if rows is None else with_batch(error, rows)


def batch_of(error: BaseException) -> list[dict[str, Any]] | None:
    """The samples that an error, or anything behind it, carries; None where nothing does."""
    for one in behind(error):
        rows = one.__dict__.get("batch")
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            return rows
    return None


def behind(error: BaseException, depth: int = 10) -> list[BaseException]:
    """An error and all that caused it, of every rank, through Ray's and Ray Train's wrappers."""
    inner = list((getattr(error, "worker_failures", None) or {}).values())
    inner += [getattr(error, "health_check_failure", None), getattr(error, "cause", None)]
    inner.append(error.__cause__)
    return [error] + [
        cause
        for one in inner
        if isinstance(one, BaseException) and depth > 0
        for cause in behind(one, depth - 1)
    ]


def chain(error: BaseException) -> list[BaseException]:
    """An error, what caused it, and so on; of several ranks the first, outermost first."""
    found: list[BaseException] = []
    while not any(error is one for one in found):
        found.append(error)
        failures = getattr(error, "worker_failures", None)
        inner = (
            next(iter(failures.values()), None)
            if failures
            else getattr(error, "cause", None) or error.__cause__
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    return found


def last_line(error: BaseException) -> str:
    """The last line of what an error says, where Ray has put the tracebacks before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def root_cause(error: BaseException) -> str:
    """One line: the first error of a chain of Ray, Ray Train and plain exceptions."""
    error = chain(error)[-1]
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    name = type(error).__name__
    return text if isinstance(error, ValueError) or text.startswith(name) else f"{name}: {text}"


class NotBegun(RuntimeError):
    """The collector was started anew and waits for the learner to begin again."""
