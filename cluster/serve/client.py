"""A run's side of a reward service: asks, checks what it is told, and asks again.

    group of replies ─▶ POST ─┬─ 200, scores that fit ──────────────▶ scores
                              ├─ 503, or nobody there ─▶ wait a little, ask again ┐ within
                              ├─ 5xx, connection lost: a replica died ─▶ likewise ┘ one deadline
                              ├─ 422, or scores that do not fit ─▶ a failed try
                              └─ 401, 412, ... ─▶ the run ends: asking again cannot help

A failed score is never a number: no reply is used without one.
"""

import asyncio
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiohttp

from actors.judges.answers import Scores
from cluster.errors import Unrecoverable
from cluster.scoring import ScoringGroup
from cluster.serve.definitions import Definition, definition, difference
from cluster.serve.token import VARIABLE, read_token
from cluster.serve.wire import ARROW, WireError, checked_scores, decode_scores, encode_request
from configs.errors import ConfigError
from configs.schema import RunConfig
from rl.types import Rollout

logger = logging.getLogger(__name__)

CONNECT_S, LISTING_S = 10.0, 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
BUSY = (408, 429, 503)


class WrongAnswer(RuntimeError):
    """The service answered, and with no score that could be used."""


class ServiceGroup(ScoringGroup):
    """One named reward, judged by a service that may judge for others too.

    Requests of at most `max_replies` replies go out side by side; the replies to one prompt always
    travel together.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        assert config.feedback.service is not None
        self.url = config.feedback.service.rstrip("/")
        reward = config.feedback.rewards[name]
        super().__init__(
            f"reward {name} at {self.url}",
            list,  # it has no workers of its own
            deadline_s=config.feedback.deadline_s,
            attempts=config.feedback.attempts,
            start_deadline_s=config.cluster.reward.start_deadline_s,
            run_dir=config.cluster.run_dir,
        )
        self.reward_name = name
        self.own = definition(reward, config.model.dtype)
        self.headers = headers(config)
        self.max_replies, self.fingerprint = 1, ""

    async def _load(self) -> None:
        listing = await self._listing()
        line = _refusal(self.url, self.reward_name, self.own, listing)
        if line is not None:
            raise Unrecoverable(line)
        self.max_replies = int(listing["max_replies"])
        # A service that comes back with another reward of this name refuses requests with it.
        self.fingerprint = str(listing["rewards"][self.reward_name].get("fingerprint", ""))

    async def _listing(self) -> dict[str, Any]:
        """What is served; a service that is just starting is waited for."""
        for pause in pauses():
            try:
                return await fetch_listing(self.url, self.headers)
            except ConnectionError as error:
                self.hint = str(error)
            await asyncio.sleep(pause)
        raise AssertionError("pauses have no end")

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        """The scores in order, as one part; raises once `attempts` tries of a request failed."""
        await self.ready()
        parts = whole_groups(rollouts, self.max_replies)
        async with aiohttp.ClientSession(
            headers=self.headers, timeout=aiohttp.ClientTimeout(None, sock_connect=CONNECT_S)
        ) as session:
            calls = [
                asyncio.create_task(self._ask(session, [rollouts[row] for row in rows]))
                for rows in parts
            ]
            try:
                found = await asyncio.gather(*calls)
            finally:
                for call in calls:
                    call.cancel()
        if any(part.keys() != found[0].keys() for part in found):
            raise RuntimeError(
                f"{self.name} told other parts of the reward in one answer than in another"
            )
        return [_in_order(found, parts)]

    async def _ask(self, session: aiohttp.ClientSession, rollouts: Sequence[Rollout]) -> Scores:
        try:
            body = encode_request([self.reward_name], rollouts)
        except WireError as error:
            raise Unrecoverable(f"{self.name}: {error}") from error
        reason, cause = "", None
        for attempt, pause in zip(range(1, self.attempts + 1), pauses(), strict=False):
            told: list[str] = []
            try:
                async with asyncio.timeout(self.deadline_s):
                    return await self._until_answered(session, body, rollouts, told)
            except TimeoutError as error:
                reason, cause = "; ".join([self._late(), *told[-1:]]), error
            except WrongAnswer as error:
                reason, cause = str(error), error
            self._note(attempt, reason)
            await asyncio.sleep(pause if attempt < self.attempts else 0)
        raise RuntimeError(
            f"{self.name} failed {self.attempts} times (phase: score); last: {reason}"
        ) from cause

    async def _until_answered(
        self,
        session: aiohttp.ClientSession,
        body: bytes,
        rollouts: Sequence[Rollout],
        told: list[str],
    ) -> Scores:
        """Ask until there is an answer; that a replica or the service is gone is waited out.

        What is waited for is appended to `told`.
        """
        for pause in pauses():
            try:
                async with session.post(
                    f"{self.url}/v1/score",
                    data=body,
                    headers={"Content-Type": ARROW, "If-Match": self.fingerprint},
                    allow_redirects=False,
                ) as response:
                    status, answer = response.status, await response.read()
                    content_type = response.content_type
            except (aiohttp.ClientError, ConnectionError) as error:
                status, answer, content_type = 0, f"{type(error).__name__}: {error}".encode(), ""
            if status == 200:
                return self._checked(answer, content_type, rollouts)
            if status == 422:
                raise WrongAnswer(_line(answer))
            if 0 < status < 500 and not _is_passing(status, answer):
                raise Unrecoverable(f"{self.name} refused a request: {refused(status, answer)}")
            line = f"HTTP {status}: {_line(answer)}" if status else _line(answer)
            if status not in BUSY and line not in told:
                self._note(0, line)
            told.append(line)
            await asyncio.sleep(pause)
        raise AssertionError("pauses have no end")

    def _checked(self, answer: bytes, content_type: str, rollouts: Sequence[Rollout]) -> Scores:
        try:
            scores = decode_scores(answer, content_type)
            return checked_scores(scores, [self.reward_name], rollouts)
        except ValueError as error:
            raise WrongAnswer(str(error)) from error

    def end(self) -> None:
        """The service stays: others may use it."""

    async def respawn(self, spawn: Any) -> None:
        """Only workers of a run can be replaced by others."""
        raise AssertionError(f"{self.name} has no workers")


def pauses() -> Iterator[float]:
    """Seconds between tries, without end: doubling, and random, so that runs do not ask in step."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def whole_groups(rollouts: Sequence[Rollout], most: int) -> list[list[int]]:
    """Rows by request: up to `most`, or one group where it is larger; no group is split."""
    groups: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        groups.setdefault(rollout.group_id, []).append(row)
    parts: list[list[int]] = []
    for rows in groups.values():
        if not parts or len(parts[-1]) + len(rows) > most:
            parts.append([])
        parts[-1] += rows
    return parts


def _in_order(found: Sequence[Scores], parts: Sequence[Sequence[int]]) -> Scores:
    """The scores of several requests by row again."""
    rows = [row for part in parts for row in part]
    together = {name: [x for part in found for x in part[name]] for name in found[0]}
    return {
        name: tuple(value for _, value in sorted(zip(rows, values, strict=True)))
        for name, values in together.items()
    }


def headers(config: RunConfig) -> dict[str, str]:
    """Of every request of a run."""
    token = read_token(config)
    return {} if token is None else {"Authorization": f"Bearer {token}"}


async def fetch_listing(url: str, sent: Mapping[str, str]) -> dict[str, Any]:
    """What a service says it serves.

    Raises ConnectionError where there is nobody, or nobody ready, and Unrecoverable where what
    answers is no reward service, or refuses.
    """
    timeout = aiohttp.ClientTimeout(LISTING_S, sock_connect=CONNECT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=sent) as session,
            session.get(f"{url}/v1/rewards", allow_redirects=False) as response,
        ):
            status, answer = response.status, await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ConnectionError(
            f"{url} does not answer ({str(error) or type(error).__name__}): start it with "
            "`attune serve rewards`, or mend feedback.service"
        ) from error
    if status >= 500 or _is_passing(status, answer):
        raise ConnectionError(f"{url} is not ready (HTTP {status}: {_line(answer)})")
    if status in (401, 403):
        raise Unrecoverable(f"{url} refuses this run: {refused(status, answer)}")
    try:
        listing = json.loads(answer)
        found = {
            "rewards": {str(name): dict(told) for name, told in listing["rewards"].items()},
            "max_replies": max(1, int(listing["max_replies"])),
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unrecoverable(
            f"{url} is no reward service (HTTP {status}): mend feedback.service"
        ) from error
    return found


def _refusal(url: str, name: str, own: Definition, listing: Mapping[str, Any]) -> str | None:
    """Why a service cannot judge for a reward of this run."""
    there = listing["rewards"]
    if name not in there:
        names = ", ".join(there) or "none"
        return f"feedback.rewards.{name}: {url} serves no reward of this name; there are {names}"
    line = difference(own, there[name])
    if line is None:
        return None
    return (
        f"feedback.rewards.{name}: {url} serves another reward of this name: {line}; give both "
        "the same settings"
    )


def check_service(config: RunConfig) -> None:
    """Refuse a service that is not there, or that serves other rewards than the run names."""
    assert config.feedback.service is not None
    url = config.feedback.service.rstrip("/")
    try:
        listing = asyncio.run(fetch_listing(url, headers(config)))
    except (ConnectionError, Unrecoverable) as error:
        raise ConfigError(f"feedback.service: {error}") from error
    for name, reward in config.feedback.rewards.items():
        own = definition(reward, config.model.dtype)
        line = _refusal(url, name, own, listing)
        if line is not None:
            raise ConfigError(line)


def refused(status: int, answer: bytes) -> str:
    """What an answer other than 200 says, with what to do about it."""
    remedy = ""
    if status in (401, 403):
        remedy = f"; give it in {VARIABLE} or cluster.reward_service.token_file"
    if status == 413:
        remedy = "; raise cluster.reward_service.max_request_mib of the service, or lower its "
        remedy += "cluster.reward_service.max_replies"
    return f"HTTP {status}: {_line(answer)}{remedy}"


def _is_passing(status: int, answer: bytes) -> bool:
    """Whether a status below 500 is of a service that is busy, or has not deployed its rewards."""
    return status in BUSY or (status == 404 and _error_in(answer) is None)


def _error_in(answer: bytes) -> str | None:
    """What the service itself says; None where a proxy speaks for it."""
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, TypeError, KeyError):
        return None


def _line(answer: bytes) -> str:
    """The error in an answer, or how it begins."""
    text = _error_in(answer) or answer.decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "an empty answer"
