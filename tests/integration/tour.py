"""A newcomer's way through the pages of a run, in a real browser; pictures of it for the README."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from cluster.pages.process import start_pages

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def walk(root: Path, run: str, pictures: Path) -> dict[str, str]:
    """From the overview to the best reply, how it was made, and who did what when.

    Writes `pages*.png` to `pictures`; returns what the browser showed: name of the page -> text.
    """
    from playwright.sync_api import sync_playwright

    pages = start_pages(root, tempfile.mkdtemp())  # its log is nobody's
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 1010})
            page.goto(f"{pages.address}run/{run}/")
            seen = _pages(page, pictures)
            dark = browser.new_page(
                viewport={"width": 1280, "height": 800}, color_scheme="dark"
            )  # fmt: skip
            dark.goto(f"{pages.address}run/{run}/curves?board=attune-flow")
            dark.screenshot(path=pictures / "pages-dark.png")
            browser.close()
    finally:
        pages.stop()
    return seen


def _pages(page: Any, pictures: Path) -> dict[str, str]:
    seen = {"overview": _shot(page, pictures / "pages.png", 1010)}
    page.get_by_role("link", name="Rollouts", exact=True).click()
    page.locator("select[name=sort]").select_option("score")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**sort=score**")
    _shot(page, pictures / "pages-rollouts.png", 640)
    seen["rewards"] = " ".join(page.locator(".row .score").all_inner_texts())
    page.get_by_role("link", name="Look into it").first.click()
    page.locator(".tokens span").nth(4).hover()
    seen["token"] = page.inner_text(".tip")
    seen["sample"] = _shot(page, pictures / "pages-sample.png", 720)
    page.get_by_role("link", name="Timeline", exact=True).click()
    page.locator(".gantt .span").first.wait_for()
    seen["timeline"] = _shot(page, pictures / "pages-timeline.png", 470)
    return seen


def _shot(page: Any, path: Path, height: int) -> str:
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1280, "height": height})
    return page.inner_text("main")
