"""What pages of a long run take: 2,000 steps, two hours of telemetry of three processes."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from cluster.pages.process import start_pages
from tests.unit.watched_runs import write_finished

NUM_STEPS = 2000
PAGES = ("", "curves", "rollouts", "timeline", "faults")
AGAIN = 5
NUM_REQUESTS = 1000


def pages(folder: Path) -> dict[str, Any]:
    """Seconds until the server answers, of each page at first and again, and with a new step."""
    run = write_finished(folder / "run", NUM_STEPS)
    started = time.monotonic()
    server = start_pages(folder, run)
    try:
        _get(f"{server.url}/api/grafana_health")
        found: dict[str, Any] = {"start_s": round(time.monotonic() - started, 2)}
        time.sleep(3.0)  # what the first page needs is being loaded
        for page in PAGES:
            address = f"{server.address}run/run/{page}"
            times = [_seconds(address)]
            for _ in range(AGAIN):
                time.sleep(1.1)  # a drawing is shared for a second
                times.append(_seconds(address))
            name = page or "overview"
            found[f"{name}_first_s"] = round(times[0], 3)
            found[f"{name}_again_s"] = round(median(times[1:]), 3)
        found["overview_with_a_new_step_s"] = round(_with_a_new_step(run, server.address), 3)
        found |= _flood(server.address)
        memory = psutil.Process(server.process.pid).memory_full_info().uss
        return found | {"memory_mib": round(memory / 2**20)}
    finally:
        server.stop()


def _with_a_new_step(run: Path, address: str) -> float:
    """Median seconds of the overview after a row was appended."""
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    times = []
    for step in range(NUM_STEPS + 1, NUM_STEPS + 1 + AGAIN):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row | {"step": step}) + "\n")
        time.sleep(1.1)
        times.append(_seconds(f"{address}run/run/"))
    return median(times)


def _flood(address: str) -> dict[str, float]:
    """Many requests for one page, eight at a time."""
    started = time.monotonic()
    with ThreadPoolExecutor(8) as readers:
        list(readers.map(_get, [f"{address}run/run/"] * NUM_REQUESTS))
    return {"requests_per_s": round(NUM_REQUESTS / (time.monotonic() - started))}


def _seconds(address: str) -> float:
    started = time.monotonic()
    _get(address)
    return time.monotonic() - started


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()
