"""A reward service in a process of its own, what it says of its replicas, and others who use it."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType

from configs.load import to_yaml
from configs.schema import RunConfig
from tests.faults.injection import PATIENCE_S
from tests.integration.processes import family, gone

ATTUNE = str(Path(sys.executable).with_name("attune"))

JUDGE = """
import os, time

BUSY = {busy!r}

def score(reply):
    return reply.count(" ") / 24 - 0.1 * reply.count(".")

def reward(prompts, replies, rows):
    mine = os.path.join(BUSY, str(os.getpid()))
    if any("place" in row for row in rows):  # replies of a run, not of another program
        open(mine, "w").close()
    time.sleep({seconds})
    if os.path.exists(mine):
        os.remove(mine)
    return [score(reply) for reply in replies]
"""
"""Judges as `tests.integration.loop.tiny_run` does, takes a while, and says when it is at it."""


def write_judge(path: Path, busy: Path, seconds: float) -> None:
    """The reward function; it keeps a file named after its process in `busy` during a call."""
    busy.mkdir()
    path.write_text(JUDGE.format(busy=str(busy), seconds=seconds))


def expected_score(reply: str) -> float:
    """What the function above says of a reply."""
    return reply.count(" ") / 24 - 0.1 * reply.count(".")


class Service:
    """`attune serve rewards`, started and stopped as a user does.

    >>> # with Service(config) as service: service.wait_for(3)
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        file, self.log = folder / "service.yaml", folder / "service.log"
        file.write_text(to_yaml(config))
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [ATTUNE, "serve", "rewards", str(file)], stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> "Service":
        self.wait_for(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        processes = family(self.process.pid) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            for process in processes:
                if process.is_running():
                    gone([process], within_s=10)
            for process in processes:
                if process.is_running():
                    process.kill()
        assert error is not None or self.process.returncode == 0, self.log.read_text()

    def counts(self) -> list[int]:
        """Running replicas, one number for each change so far."""
        lines = [line for line in self.log.read_text().splitlines() if " replicas: " in line]
        found = [re.search(r"(\d+) running", line) for line in lines]
        return [int(match[1]) if match else 0 for match in found]

    def wait_for(self, count: int) -> float:
        """Until so many replicas run; the seconds it took."""
        began = time.monotonic()
        while self.counts()[-1:] != [count]:
            assert self.process.poll() is None, self.log.read_text()
            if time.monotonic() - began > PATIENCE_S:
                raise TimeoutError(f"not {count} replicas: {self.log.read_text()}")
            time.sleep(0.1)
        return time.monotonic() - began


class Crowd:
    """Another program: threads that ask a service for scores in JSON until they are told to stop.

    >>> # with Crowd(url, 8) as crowd: ...; crowd.statuses[200], crowd.wrong
    """

    def __init__(self, url: str, size: int) -> None:
        self.url, self.statuses, self.wrong = url, Counter[int](), 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(size)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, number: int) -> None:
        asked = 0
        while not self._over.is_set():
            asked += 1
            reply = "a b c ." * (number + asked % 3)
            body = {"rewards": ["judge"], "replies": [{"prompt": "where?", "reply": reply}]}
            request = urllib.request.Request(
                f"{self.url}/v1/score",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
            status, is_right = 0, True
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    scores = json.loads(answer.read())["scores"]["judge"]
                    status, is_right = answer.status, scores == [expected_score(reply)]
            except urllib.error.HTTPError as error:
                status = error.code
            except OSError:
                pass
            with self._lock:
                self.statuses[status] += 1
                self.wrong += not is_right
            if status != 200:
                self._over.wait(0.2)
