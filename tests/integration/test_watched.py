"""A real run that is watched: by a browser in Ray's dashboard, by a flood of requests, afterwards.

One run is watched and its pages' server flooded and killed; another of the same seeds shows itself
to nobody. They must have written the same tokens.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from cluster.rollouts.follow import follow
from configs.schema import RunConfig
from tests.integration.loop import tiny_run
from tests.integration.processes import read_steps, wait_for_step
from tests.integration.test_run import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NUM_STEPS = 40
NUM_REQUESTS = 1000
KEPT = os.environ.get("ATTUNE_PICTURES")
"""Folder for the pictures of the README, where they are to be made anew."""


@dataclass(kw_only=True)
class Watched:
    """A run of the public command that goes on."""

    config: RunConfig
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def address(self, name: str) -> str:
        """Of `pages` or `dashboard`, as the run says it."""
        for _ in range(600):
            found = re.search(rf"{name} (http://\S+)", "".join(self.lines))
            if found:
                return found[1]
            time.sleep(0.1)
        raise AssertionError(f"no address of {name} in {self.lines}")

    def pages(self) -> psutil.Process:
        """The process of its pages' server."""
        children = psutil.Process(self.process.pid).children()
        (found,) = [child for child in children if "cluster.pages" in child.cmdline()]
        return found

    def finish(self) -> None:
        """Wait for its end."""
        assert self.process.wait(300) == 0, "".join(self.lines)
        self._reader.join(10)


JUDGE = """def reward(prompts, replies, rows):
    words = [reply.split() for reply in replies]
    return [sum(word[0] < "f" for word in own) / max(1, len(own)) for own in words]
"""
"""How many words begin early in the alphabet: learned within some steps."""


def config_of(model: Path, prompts: Path, run_dir: Path, *overrides: str) -> RunConfig:
    judge = run_dir.parent / "early.py"
    judge.write_text(JUDGE)
    return tiny_run(
        model, prompts, run_dir, f"feedback.rewards.judge.path={judge}", "algorithm.kl.coef=0",
        f"algorithm.num_steps={NUM_STEPS}", "data.prompts_per_step=4",
        "algorithm.max_staleness=0", "cluster.checkpoint.interval=20", *overrides,
    )  # fmt: skip


@dataclass(kw_only=True)
class Seen:
    """What became of the watched run."""

    config: RunConfig
    first: dict[int, float]
    """Step -> reward in the browser's first look."""
    last: dict[int, float]
    answers: list[int]
    """Status of each request of the flood."""
    killed_at: int
    """Step after which the pages' server was killed."""
    is_dashboard_alive: bool
    """Whether the dashboard answered after that."""


def rewards_shown(frame) -> dict[int, float]:
    """Step -> combined reward, from the chart's own titles."""
    figure = frame.locator("figure", has_text="Reward it learns from")
    titles = figure.locator("g.strip title").all_text_contents()
    found = (re.search(r"step ([\d,]+)\n(?:combined|judge): ([−-]?[\d.]+)", t) for t in titles)
    return {
        int(m[1].replace(",", "")): float(m[2].replace("−", "-")) for m in found if m is not None
    }


def watch(run: Watched) -> tuple[dict[int, float], dict[int, float]]:
    """The reward curve in the dashboard's Metrics page, some steps apart."""
    from playwright.sync_api import sync_playwright

    run_dir = Path(run.config.cluster.run_dir)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{run.address('dashboard')}/#/metrics", wait_until="domcontentloaded")
        frame = page.frame_locator("iframe").first
        frame.locator("figure", has_text="Reward it learns from").wait_for(timeout=60_000)
        first = rewards_shown(frame)
        wait_for_step(run_dir, NUM_STEPS * 3 // 4, run.process)
        frame.locator("g.strip title", has_text=f"step {NUM_STEPS * 3 // 4}\n").first.wait_for(
            state="attached", timeout=20_000
        )
        last = rewards_shown(frame)
        if KEPT:
            page.screenshot(path=Path(KEPT) / "dashboard.png")
        browser.close()
    return first, last


def flood(url: str) -> list[int]:
    """Many requests, eight at a time."""

    def ask(index: int) -> int:
        part = ("", "run/first/", "run/first/curves", "run/first/rollouts")[index % 4]
        try:
            with urllib.request.urlopen(f"{url}{part}", timeout=60) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, range(NUM_REQUESTS)))


@pytest.fixture(scope="module")
def seen(world_model, world_prompts, tmp_path_factory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("watched")
    config = config_of(world_model, world_prompts, folder / "first", "cluster.dashboard=true")
    run = Watched(config=config, process=start(config))
    try:
        wait_for_step(folder / "first", 2, run.process)
        answers: list[int] = []
        flooding = threading.Thread(target=lambda: answers.extend(flood(run.address("pages"))))
        flooding.start()
        first, last = watch(run) if CHROMIUM else ({}, {})
        flooding.join(120)
        killed_at = read_steps(folder / "first")[-1]
        run.pages().send_signal(signal.SIGKILL)
        version = f"{run.address('dashboard')}/api/version"
        with urllib.request.urlopen(version, timeout=20) as answer:
            is_alive = answer.status == 200
        run.finish()
        yield Seen(
            config=config, first=first, last=last, answers=answers, killed_at=killed_at,
            is_dashboard_alive=is_alive,
        )  # fmt: skip
    finally:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGINT)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: the Debian package `chromium`")
def test_the_dashboard_shows_the_reward_rising_while_one_watches(seen):
    assert len(seen.first) >= 2
    assert len(seen.last) > len(seen.first) + NUM_STEPS // 4
    assert {step: seen.last[step] for step in seen.first} == seen.first
    steps = sorted(seen.last)
    begin, end = (
        sum(seen.last[step] for step in part) / len(part) for part in (steps[:5], steps[-5:])
    )
    assert end > begin + 0.1


def test_a_flood_of_requests_is_answered(seen):
    assert len(seen.answers) == NUM_REQUESTS
    assert set(seen.answers) <= {200, 503}
    assert seen.answers.count(200) > NUM_REQUESTS // 2


def test_without_its_pages_the_dashboard_answers_and_the_run_goes_on(seen):
    assert seen.is_dashboard_alive
    assert seen.killed_at < NUM_STEPS
    assert read_steps(Path(seen.config.cluster.run_dir))[-1] == NUM_STEPS


def samples_of(run_dir: str) -> list[tuple[int, int, int, list[int]]]:
    rows = [
        (row["step"], row["group_id"], row["sample"], row["tokens"])
        for file in Path(run_dir, "experience").rglob("*.parquet")
        for row in pq.ParquetFile(file).read(["step", "group_id", "sample", "tokens"]).to_pylist()
    ]
    return sorted(rows)


def test_a_run_that_nobody_watches_writes_the_same_tokens(
    seen, world_model, world_prompts, tmp_path_factory
):
    config = config_of(
        world_model, world_prompts, tmp_path_factory.mktemp("unwatched") / "second",
        "cluster.metrics.enabled=false",
    )  # fmt: skip
    run = Watched(config=config, process=start(config))
    run.finish()
    assert not (Path(config.cluster.run_dir) / "telemetry").exists()
    assert "pages" not in "".join(run.lines)
    watched = samples_of(seen.config.cluster.run_dir)
    assert len(watched) == NUM_STEPS * 16
    assert samples_of(config.cluster.run_dir) == watched


def test_any_sample_can_be_followed_to_its_prompt_weights_and_step_and_back(seen):
    run_dir = Path(seen.config.cluster.run_dir)
    ids = [f"{step}-{group}-{sample}" for step, group, sample, _ in samples_of(str(run_dir))]
    chosen = random.Random(0).sample(ids, 100)
    assert len({one.partition("-")[0] for one in chosen}) > NUM_STEPS // 2
    for one in chosen:
        follow(run_dir, one)
