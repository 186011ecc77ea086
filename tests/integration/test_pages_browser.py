"""The run pages in a real browser: they keep up, answer pointer and keyboard, and fit a phone."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.pages.process import start_pages
from tests.unit.synthetic_runs import online_row
from tests.unit.watched_runs import (
    SCHEMA,
    sample_row,
    write_failure_bundle,
    write_finished,
    write_running,
    write_samples,
)

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
    for name in ("running", "hovered", "typing"):
        write_running(root / name)
    write_finished(root / "shaded", 3)
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


def go_on(run: Path) -> Path:
    """A run is taken to go on for some seconds after it was written to."""
    (run / "metrics.jsonl").touch()
    return run


def add_step(run: Path, step: int) -> None:
    row = online_row(2, 30, np.random.default_rng(0)) | {"step": step}
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps(row) + "\n")


def test_a_page_keeps_up_with_its_run_without_being_loaded_again(page, address, runs):
    run = go_on(runs / "running")
    page.goto(f"{address}run/running/")
    page.evaluate("window.stays = true")
    assert "step 30 of 30" in page.inner_text(".progress")
    add_step(run, 31)
    page.locator(".progress", has_text="step 31").wait_for()
    assert page.evaluate("window.stays") is True
    assert page.inner_text("#live") == "live"


def test_whoever_looks_at_a_value_is_told_it(page, address):
    page.goto(f"{address}run/finished/")
    page.locator("figure svg .strip rect").nth(5).hover()
    assert page.inner_text(".tip").startswith("step 6\n")
    page.goto(f"{address}run/finished/timeline?window=all")
    page.locator(".gantt .span").first.hover()
    assert page.inner_text(".tip").startswith("collector: ")


def test_whoever_looks_at_a_value_is_not_disturbed_by_a_new_step(page, address, runs):
    run = go_on(runs / "hovered")
    page.goto(f"{address}run/hovered/")
    page.locator("figure").first.locator(".strip rect").nth(5).hover()
    strips = "[...document.querySelectorAll('figure')].map((one) => one.querySelector('.strip'))"
    page.evaluate(f"[window.seen, window.other] = {strips}")
    told = page.inner_text(".tip")
    add_step(run, 31)
    page.locator(".progress", has_text="step 31").wait_for()
    assert page.evaluate("window.other.isConnected") is False, "other charts were drawn anew"
    assert page.evaluate("window.seen.isConnected") is True
    assert (page.is_visible(".tip"), page.inner_text(".tip")) == (True, told)
    page.mouse.move(0, 0)
    page.wait_for_function("() => !window.seen.isConnected", timeout=10_000)


def wait_for_layout(page, before: str) -> None:
    page.wait_for_function("before => document.body.dataset.layout !== before", arg=before)


def test_whoever_types_keeps_words_place_and_filters_where_the_layout_changes(page, address, runs):
    run = go_on(runs / "typing")
    page.goto(f"{address}run/typing/rollouts")
    layout = page.evaluate("document.body.dataset.layout")
    page.locator(".filters summary").click()
    page.fill("input[name=least]", "0.5")
    page.locator("select[name=order]").select_option("asc")
    page.locator("input[name=q]").press_sequentially("museum")
    page.evaluate("document.activeElement.setSelectionRange(2, 4)")
    assert page.locator("select[name=engine]").count() == 0
    folder = run / "experience" / "step=000031"
    folder.mkdir()
    row = sample_row(31, 310, 0) | {"engine": "engine-1"}  # a second one can be chosen from
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), folder / "rank=0.parquet")
    add_step(run, 31)
    wait_for_layout(page, layout)
    assert page.locator("select[name=engine]").is_visible(), "filters are open"
    assert page.input_value("input[name=q]") == "museum"
    assert page.input_value("input[name=least]") == "0.5"
    assert page.input_value("select[name=order]") == "asc"
    focus = "(({name, selectionStart, selectionEnd}) => [name, selectionStart, selectionEnd])"
    assert page.evaluate(f"{focus}(document.activeElement)") == ["q", 2, 4]
    page.keyboard.type("-")
    assert page.input_value("input[name=q]") == "mu-um"


def test_the_chosen_shade_stays_where_the_layout_changes_and_chosen_text_keeps_it(
    page, address, runs
):
    run = runs / "shaded"
    page.goto(f"{address}run/shaded/sample?id=2-20-0")
    layout = page.evaluate("document.body.dataset.layout")
    page.locator("label", has_text="KL").click()
    page.locator("summary", has_text="The text alone").click()
    shutil.rmtree(run / "experience" / "step=000002")
    write_samples(run, (2,), samples=3)  # a third reply to the same prompt
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.prompt'))")
    look = "document.dispatchEvent(new Event('visibilitychange'))"
    page.wait_for_timeout(1100)  # a drawing is shared for a second
    with page.expect_response("**known=**"):
        page.evaluate(look)
    page.wait_for_timeout(500)
    assert page.evaluate("document.body.dataset.layout") == layout, "somebody copies"
    page.evaluate("getSelection().removeAllRanges()")
    page.evaluate(look)
    wait_for_layout(page, layout)
    assert page.locator("nav.tabs a").count() == 4
    assert page.is_checked("#shade-k")
    assert page.locator('.shade-legend[data-shade="k"]').is_visible()
    assert page.locator("details[open] .reply").is_visible()


def test_nothing_is_loaded_before_it_is_asked_for(page, address):
    page.goto(f"{address}run/finished/rollouts")
    page.evaluate("window.stays = true")
    for _ in range(2):
        page.press("select[name=sort]", "ArrowDown")
    page.wait_for_timeout(300)
    assert page.evaluate("window.stays") is True
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**sort=advantage**")
    for path, button in (("compare", "Compare"), ("run/finished/config", "Show")):
        page.goto(f"{address}{path}")
        assert page.get_by_role("button", name=button).is_visible()
    page.goto(f"{address}compare")
    for name in ("finished", "running"):
        page.get_by_label(name, exact=True).check()
    assert page.url == f"{address}compare"
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?run=finished&run=running")


def test_values_are_told_to_a_finger_until_it_taps_elsewhere(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(f"{address}run/finished/sample?id=2-20-0")
    page.locator(".tokens span").nth(2).tap()
    page.wait_for_timeout(300)
    assert "log-prob: −2.5000" in page.inner_text(".tip")
    assert "log-prob: −2.5000" in page.text_content("[aria-live=polite]")
    page.locator("h1").tap()
    assert page.is_hidden(".tip")
    page.goto(f"{address}run/finished/")
    for chart in range(2):
        page.locator("figure").nth(chart).locator(".strip rect").nth(5).tap()
        page.wait_for_timeout(300)
        assert page.inner_text(".tip").startswith("step 6\n")
    page.locator("h1").tap()
    assert page.is_hidden(".tip")
    context.close()


def test_values_of_a_chart_are_told_to_the_arrow_keys(page, address):
    page.goto(f"{address}run/finished/")
    page.locator("figure").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".tip").startswith("step 30\n"), "the newest first"
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".tip").startswith("step 29\n")
    assert page.text_content("[aria-live=polite]").startswith("step 29\n")
    visible = "getComputedStyle(document.querySelector('.strip.at path')).visibility"
    assert page.evaluate(visible) == "visible"
    page.keyboard.press("Tab")
    assert page.is_hidden(".tip")
    assert page.locator(".strip.at").count() == 0


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
    assert "KL: 1.0000" in page.text_content("[aria-live=polite]")
    assert page.get_attribute(".tokens", "role") == "group"


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


def test_a_server_that_does_not_answer_is_said_after_a_while(page, address):
    page.goto(f"{address}run/running/")
    page.route("**known=**", lambda route: None)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("#live.lost", has_text="no answer").wait_for(state="attached", timeout=25_000)
