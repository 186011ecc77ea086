"""`python -m tests.bench.rollouts FOLDER`: how long a browser of samples lets one wait.

FOLDER is a run such as `python -m tests.bench.million` writes. Each request is asked several times,
with other numbers and words each time; lowest, median and highest are told, in seconds. Files come
from the page cache, but for `cold`, where they were dropped from it. Prints one JSON line.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cluster.rollouts.browser import RolloutBrowser
from cluster.rollouts.query import SORT_KEYS, Filter, Page, Query

ROOT = Path(__file__).parents[2]
TIMES = 5
WORDS = ("zebra", "Lovely Choice", "soup", "tram 3 to the castle", "i had")
"""Looked for in all prompts and replies; the first stands in none."""


def seconds(asks: Iterable[Callable[[], Any]]) -> list[float]:
    """Lowest, median and highest time of the calls."""
    taken = []
    for ask in asks:
        started = time.monotonic()
        ask()
        taken.append(time.monotonic() - started)
    return [round(f(taken), 4) for f in (min, statistics.median, max)]


def measure(folder: Path) -> dict[str, Any]:
    """All requests on one run."""
    size = sum(file.stat().st_size for file in (folder / "experience").rglob("*.parquet"))
    read_before = bytes_read()
    figures: dict[str, Any] = {"opened_s": seconds([lambda: opened(folder)] * TIMES)}
    figures["read_share_first_page"] = round((bytes_read() - read_before) / TIMES / size, 4)
    read_before = bytes_read()
    browser = RolloutBrowser(folder)
    figures["indexed_s"] = seconds([browser.refresh])[0]
    figures["read_share_index"] = round((bytes_read() - read_before) / size, 4)
    figures["indexed_again_s"] = seconds([browser.refresh] * TIMES)
    read_before = bytes_read()
    figures |= requests(browser)
    figures["read_share_requests"] = round((bytes_read() - read_before) / size, 4)
    figures |= searches(browser)
    figures["samples"] = browser.overview().num_samples
    figures["files"] = browser.overview().files
    figures["experience_mib"] = round(size / 2**20)
    figures["cold"] = cold(folder)
    return figures


def opened(folder: Path) -> Page:
    """The first page of a browser that is made anew."""
    return RolloutBrowser(folder).query(Query())


def requests(browser: RolloutBrowser) -> dict[str, list[float]]:
    """Pages, orders, filters and details, once the run is indexed."""
    last = browser.overview().last_step or 1
    steps = [1 + last * k // TIMES for k in range(TIMES)]

    def ask(**query: Any) -> Callable[[], Page]:
        return lambda: browser.query(Query(**query))

    found = {"page_s": seconds(ask(offset=9973 * k) for k in range(TIMES))}
    for key in SORT_KEYS:
        orders = [(bool(k % 2), 50 * k) for k in range(TIMES)]
        found[f"sort_{key}_s"] = seconds(
            ask(sort=key, descending=down, offset=offset) for down, offset in orders
        )
    found["sort_deep_s"] = seconds(ask(sort="score", offset=181_003 * k) for k in range(1, 6))
    filters = {
        "steps": [Filter(steps=(step, step + 99)) for step in steps],
        "scores": [Filter(scores=(0.2 * k, 0.2 * k + 0.1)) for k in range(TIMES)],
        "words": [Filter(engine=f"engine-{k % 4}", finish_reason="length") for k in range(TIMES)],
        "group": [Filter(group_id=100 * step) for step in steps],
        "prompt_row": [Filter(prompt_row=step) for step in steps],
        "version": [Filter(version=step) for step in steps],
    }
    for name, wanted in filters.items():
        found[f"filter_{name}_s"] = seconds(ask(filter=one, sort="score") for one in wanted)
    names = [browser.query(Query(filter=Filter(steps=(s, s)), limit=1)).rows[0].id for s in steps]
    found["sample_s"] = seconds(lambda name=name: browser.sample(name) for name in names)
    found["group_s"] = seconds(
        lambda name=name: browser.group(int(name.split("-")[1])) for name in names
    )
    found["groups_of_step_s"] = seconds(lambda s=step: browser.groups_of_step(s) for step in steps)
    return found


def searches(browser: RolloutBrowser) -> dict[str, Any]:
    """Each word, asked again until all texts were looked at: time of each request, and of all."""
    taken: list[float] = []
    whole: list[float] = []
    for word in WORDS:
        query, page = Query(filter=Filter(text=word), sort="score"), None
        before = len(taken)
        while page is None or not page.is_whole:
            started = time.monotonic()
            page = browser.query(query)
            taken.append(time.monotonic() - started)
        whole.append(sum(taken[before:]))
    reward = Query(sort="rewards/gold")
    return {
        "search_s": [round(f(taken), 4) for f in (min, statistics.median, max)],
        "search_all_texts_s": [round(f(whole), 2) for f in (min, statistics.median, max)],
        "sort_reward_s": seconds([lambda: browser.query(reward)] * TIMES),
    }


def cold(folder: Path) -> dict[str, float]:
    """The first page and the whole index, of files that are not in the page cache."""
    forget(folder)
    browser = RolloutBrowser(folder)
    first = seconds([lambda: browser.query(Query())])[0]
    return {"opened_s": first, "indexed_s": round(first + seconds([browser.refresh])[0], 4)}


def forget(folder: Path) -> None:
    """Drop the run's files from the page cache; needs no rights but to read them."""
    for file in (folder / "experience").rglob("*.parquet"):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)  # pages that are still to be written would stay
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def bytes_read() -> int:
    """That this process asked for so far, whether from the disk or from the page cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def rollouts(folder: Path) -> dict[str, Any]:
    """A million samples in 2,000 files, written and browsed in processes of their own."""
    run = folder / "million"
    subprocess.run([sys.executable, "-m", "tests.bench.million", str(run)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "tests.bench.rollouts", str(run)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The run of the given folder."""
    figures = measure(Path(sys.argv[1]).absolute())
    print(json.dumps({"benchmark": "rollouts", **figures}), flush=True)


if __name__ == "__main__":
    main()
