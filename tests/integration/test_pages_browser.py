"""The run pages in a real browser: they keep up, answer pointer and keyboard, and fit a phone."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.pages.process import start_pages
from tests.unit.synthetic_runs import online_row
from tests.unit.watched_runs import write_failure_bundle, write_finished, write_running

CHROMIUM = os.environ.get("ATTUNE_CHROMIUM") or shutil.which("chromium") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium"),
]
PAGES = [
    "", "run/finished/", "run/finished/curves", "run/finished/rollouts?q=museum",
    "run/finished/sample?id=2-20-1", "run/finished/group?group=20&step=2",
    "run/finished/step?step=2", "run/finished/prompt?row=6", "run/finished/timeline?window=all",
    "run/finished/faults", "run/finished/config?with=running", "compare?run=finished&run=running",
    "../d/attune/?theme=dark", "../d-solo/attune/x?panelId=41&theme=light",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_finished(root / "finished")
    write_failure_bundle(root / "finished")
    write_running(root / "running")
    return root


@pytest.fixture(scope="module")
def address(runs, tmp_path_factory) -> Iterator[str]:
    pages = start_pages(runs, tmp_path_factory.mktemp("driver"))
    yield pages.address
    pages.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()


def test_a_page_keeps_up_with_its_run_without_being_loaded_again(page, address, runs):
    page.goto(f"{address}run/running/")
    page.evaluate("window.stays = true")
    assert "step 30 of 30" in page.inner_text(".progress")
    row = online_row(2, 30, np.random.default_rng(0)) | {"step": 31}
    with (runs / "running" / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps(row) + "\n")
    page.locator(".progress", has_text="step 31").wait_for()
    assert page.evaluate("window.stays") is True
    assert page.inner_text("#live") == "live"


def test_whoever_looks_at_a_value_is_told_it_and_not_disturbed(page, address):
    page.goto(f"{address}run/finished/")
    page.locator("figure svg .strip rect").nth(5).hover()
    assert page.inner_text(".tip").startswith("step 6\n")
    page.goto(f"{address}run/finished/timeline?window=all")
    page.locator(".gantt .span").first.hover()
    assert page.inner_text(".tip").startswith("collector: ")


def test_tokens_are_shaded_as_chosen_and_told_by_pointer_and_keyboard(page, address):
    page.goto(f"{address}run/finished/sample?id=2-20-0")
    shade = "getComputedStyle(document.querySelectorAll('.tokens span')[1]).backgroundColor"
    expected = page.evaluate(shade)
    page.locator("label", has_text="KL").click()
    assert page.evaluate(shade) != expected
    assert page.locator('.shade-legend[data-shade="k"]').is_visible()
    page.locator(".tokens span").nth(2).hover()
    assert "log-prob: −2.5000" in page.inner_text(".tip")
    page.locator(".tokens").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.inner_text(".tip").startswith("token 1,")
    assert "KL: 1.0000" in page.inner_text(".tip")


def test_charts_are_found_by_their_title(page, address):
    page.goto(f"{address}run/finished/curves")
    page.fill("#find", "entropy")
    shown = page.locator("figure:visible figcaption b").all_inner_texts()
    assert shown == ["Entropy"]


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_every_page_fits_and_says_nothing_on_the_console(browser, address, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    for path in PAGES:
        assert page.goto(f"{address}{path}").status == 200
        wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert (path, wider) == (path, 0)
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        asked = path.partition("theme=")[2] or scheme
        assert (sum(map(int, back[4:-1].split(","))) < 200) == (asked == "dark"), (path, back)
    assert said == []
    context.close()


def test_pages_can_be_read_and_searched_without_scripts(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}run/finished/rollouts")
    page.fill("input[name=q]", "museum 6")
    page.click("button[type=submit]")
    assert "q=museum+6" in page.url
    assert page.locator(".row").count() > 0
    assert page.locator("mark").first.inner_text() == "museum 6"
    context.close()


def test_a_server_that_is_gone_is_said_and_found_again(page, runs, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(runs / "running", alone)
    (alone / "metrics.jsonl").touch()  # it goes on
    pages = start_pages(alone, tmp_path)
    page.goto(pages.address)
    pages.stop()
    page.locator("#live", has_text="no answer").wait_for()
    again = start_pages(alone, tmp_path, port=pages.port)
    page.locator("#live:not(.lost)").wait_for(state="attached", timeout=60_000)
    again.stop()
