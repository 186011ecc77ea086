"""Which runs the pages find and keep, what becomes of bad ones, and of many readers."""

import asyncio
import logging
import re
import shutil
import threading
import time

import pytest
import yaml

from cluster import run_state
from cluster.pages import catalog
from cluster.pages.app import DRAWINGS
from cluster.pages.index import RunList
from cluster.pages.library import Library, find_runs, slug_of
from tests.unit.pages_site import PAGES, asked, get, read, site, write_one_of_each
from tests.unit.synthetic_runs import small_run
from tests.unit.watched_runs import age, write_empty, write_finished


@pytest.fixture
def runs(tmp_path):
    """A folder with one run of each kind."""
    return write_one_of_each(tmp_path)


# Which runs there are.


def test_runs_are_found_anew_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.pages.library.LOOK_S", 0.0)
    library = Library(tmp_path)
    assert library.runs() == []
    write_empty(tmp_path / "first")
    assert [run.slug for run in library.runs()] == ["first"]


def test_a_run_that_just_began_is_found_when_it_is_asked_for(tmp_path):
    library = Library(tmp_path)
    assert library.runs() == []
    write_empty(tmp_path / "first")
    time.sleep(0.25)
    assert library.runs() == []
    assert library.run("first") is not None
    assert library.run("second") is None


def test_names_in_addresses_differ_and_need_no_quoting(tmp_path):
    names = ["a", "a/b", "a~b", "a b", "a_b", "ä/b", "..x", "-", "a/..b"]
    slugs = [slug_of(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._~=_-]+", slug) for slug in slugs)
    assert not any(part in ("", ".", "..") for slug in slugs for part in slug.split("~"))


def test_runs_are_looked_for_two_levels_deep_and_not_inside_runs(tmp_path):
    for path in ("one", "two/run", "two/sft", "three/four/five", "one/mixture", ".hidden/run"):
        write_empty(tmp_path / path) if path != "one/mixture" else (tmp_path / path).mkdir()
    (tmp_path / "one" / "mixture" / "config.yaml").write_text("{}")
    assert [run.name for run in find_runs(tmp_path)] == ["one", "two/run", "two/sft"]


# Runs that go, come back, or are not as they should be.


@pytest.fixture
def at_once(monkeypatch):
    """Nothing is kept for a while."""
    monkeypatch.setattr("cluster.pages.library.LOOK_S", 0.0)
    monkeypatch.setattr("cluster.pages.view.FRESH_S", 0.0)


def steps_of(view):
    with view.opened():
        return [row["step"] for row in view.history.rows], len(view.history.events)


def test_a_run_of_the_same_name_shows_nothing_of_the_one_before(tmp_path, at_once):
    write_finished(tmp_path / "run", 5)
    library = Library(tmp_path)
    before = library.view("run")
    assert steps_of(before) == ([1, 2, 3, 4, 5], 3)
    assert library.view("run") is before
    shutil.rmtree(tmp_path / "run")
    small_run(tmp_path / "run", {"entropy": [1.0, 2.0, 3.0, 2.0, 1.0, 0.5, 0.25]})
    assert steps_of(library.view("run")) == ([1, 2, 3, 4, 5, 6, 7], 0)


def test_a_run_that_was_written_anew_in_its_folder_is_another_one(tmp_path, at_once):
    run = write_empty(tmp_path / "run")
    library = Library(tmp_path)
    found, before = RunList(library), library.view("run")
    assert [line.method for line in found.lines()] == ["rloo"]
    (run / "config.yaml").unlink()
    (run / "config.yaml").write_text("algorithm: {name: sft}\n")
    age(run)
    assert library.view("run") is not before
    assert [line.method for line in found.lines()] == ["sft"]


def test_of_a_run_that_is_gone_nothing_is_kept(tmp_path, at_once):
    for name in ("stays", "goes"):
        write_empty(tmp_path / name)
    library = Library(tmp_path)
    stays, _ = library.view("stays"), library.view("goes")
    shutil.rmtree(tmp_path / "goes")
    library.runs()
    assert list(library._views) == ["stays"]
    assert library.view("stays") is stays
    assert library.view("goes") is None


def test_a_run_whose_configuration_cannot_be_read_is_one_line_of_the_list(runs, caplog):
    bad = write_finished(runs / "bad")
    (bad / "config.yaml").unlink()
    (bad / "config.yaml").mkdir()  # as unreadable as one without rights, also to root
    with caplog.at_level(logging.WARNING):
        library = Library(runs)
        found = RunList(library)
        states = [{line.name: line.state for line in found.lines()} for _ in range(3)]
    assert states[0]["bad"] == "unreadable"
    assert states[0]["finished"] == "finished"
    assert len(states[0]) == 6
    assert len([r for r in caplog.records if "bad cannot be read" in r.getMessage()]) == 1
    page = get(runs, "/attune/").page
    assert "unreadable" in page.text
    assert "30 of 30" in page.text, "the others"
    for path, answer in zip(PAGES, asked(runs, "bad", PAGES), strict=True):
        assert answer.status == 200, (path, answer.text)
    overview, config = asked(runs, "bad", ("", "config"))
    for answer in (overview, config):
        assert "config.yaml: Is a directory; left out." in answer.page.text
    assert "step 30" in overview.page.text


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        ({"feedback": {"rewards": ["gold"]}}, "feedback.rewards should be settings"),
        ({"feedback": {"rewards": {"gold": 3}}}, "feedback.rewards.gold should be settings"),
        ({"feedback": "none"}, "feedback should be settings"),
        ({"algorithm": {"name": "rloo", "optimizer": 3}}, "algorithm.optimizer should be settings"),
        ({"algorithm": {"num_steps": "many"}}, "algorithm.num_steps should be a whole number"),
    ],
)
def test_settings_that_make_no_sense_are_left_out_and_named(tmp_path, wrong, note):
    write_finished(tmp_path / "other", 3)
    run = write_finished(tmp_path / "bad", 3)
    config = yaml.safe_load((run / "config.yaml").read_text()) | wrong
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for path, answer in zip(PAGES, asked(tmp_path, "bad", PAGES), strict=True):
        assert answer.status == 200, (path, answer.text)
        if path in ("", "config"):
            assert f"config.yaml: {note}; left out." in answer.page.text
    for path in ("/attune/", "/attune/compare?run=bad&run=other"):
        answer = get(tmp_path, path)
        assert answer.status == 200, answer.text
        assert "3" in answer.page.text


def test_a_run_that_is_removed_while_it_is_looked_at_takes_no_other_with_it(runs, monkeypatch):
    state_of = run_state.state_of

    def look(run_dir, failures):
        if run_dir.name == "sft":
            raise FileNotFoundError(2, "No such file or directory", str(run_dir))
        return state_of(run_dir, failures)

    monkeypatch.setattr(run_state, "state_of", look)
    answer, own = get(runs, "/attune/", "/attune/run/sft/")
    assert answer.status == 200
    assert "unreadable" in answer.page.text
    assert "30 of 30" in answer.page.text
    assert (own.status, own.headers["Retry-After"]) == (503, "2"), "asked again"
    assert "No such file" in own.page.text


# Many readers.


def test_a_thousand_requests_cost_a_few_drawings(runs, monkeypatch):
    drawn = []
    draw = catalog.draw_page
    monkeypatch.setattr(catalog, "draw_page", lambda *a, **k: drawn.append(a[0]) or draw(*a, **k))

    async def ask():
        async with site(runs) as client:
            paths = [f"/attune/run/finished/?from=now-{n}" for n in range(1000)]
            answers = await asyncio.gather(*(read(client, path) for path in paths))
            return {answer.status for answer in answers}

    started = time.monotonic()
    assert asyncio.run(ask()) == {200}
    assert len(drawn) <= 2 + (time.monotonic() - started)


def test_a_disk_that_hangs_is_answered_for_in_time_and_other_runs_go_on(runs, monkeypatch):
    hang = threading.Event()
    draw = catalog.draw_run

    def slow(library, slug, *rest):
        if slug == "torn":
            hang.wait(20)
        return draw(library, slug, *rest)

    monkeypatch.setattr("cluster.pages.app.draw_run", slow)

    async def ask():
        async with site(runs) as client:
            client.app[DRAWINGS].limit_s = 1.0
            hung = await read(client, "/attune/run/torn/")
            started = time.monotonic()
            again = await read(client, "/attune/run/torn/")
            waited = time.monotonic() - started
            other = await asyncio.wait_for(read(client, "/api/grafana_health"), 1.0)
            hang.set()
            return hung, again, waited, other

    hung, again, waited, other = asyncio.run(ask())
    assert (hung.status, again.status, other.status) == (503, 503, 200)
    assert hung.headers["Retry-After"]
    assert waited < 0.9, "everyone who asks for the same is told at once"


def test_only_so_many_runs_are_kept_in_memory(tmp_path):
    for number in range(12):
        small_run(tmp_path / f"run-{number}", {"entropy": [1.0, 2.0]})
    library = Library(tmp_path)
    views = [library.view(f"run-{number}") for number in range(12)]
    assert library.view("run-11") is views[11]
    assert library.view("run-0") is not views[0]
    assert len(library._views) == 8
