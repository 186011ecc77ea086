"""The index of a run's samples: numbers, order, filters, and texts in time."""

import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.ledger import ROWS_PER_GROUP
from cluster.rollouts.browser import RolloutBrowser
from cluster.rollouts.index import Index
from cluster.rollouts.query import Filter, Query, ranked, run_query
from cluster.rollouts.rows import excerpt
from cluster.rollouts.scan import Scans
from configs.errors import ConfigError
from tests.unit.made_up_samples import (
    browse,
    file_of,
    groups_of,
    ids,
    name_of,
    prompt_text,
    reply,
    reply_text,
    stored,
    write_run,
    write_step,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", 4)


@pytest.fixture
def own_run(tmp_path):
    return write_run(tmp_path / "run", 3)


# ---- what a page says ----------------------------------------------------------------------------


def test_a_row_says_what_the_file_says(run_dir):
    page = browse(run_dir).query(Query(limit=3))
    assert page.total == page.num_samples == 24
    assert page.is_whole
    third = page.rows[2]
    assert (third.id, third.prompt_row, third.prompt) == ("4-6-2", 0, prompt_text(0))
    assert third.reply == reply_text(6, 2)
    # (7*6 + 3*2) % 11 / 4 - 1 + 6/1024
    assert third.score == 0.0 + 6 / 1024
    assert (third.length, third.finish_reason, third.engine, third.source) == (
        4, "length", "engine-0", "policy",
    )  # fmt: skip
    # Tokens at places 3 to 6 behind the prompt: 0.5, -0.5, 0.5, -0.5 beside the score.
    assert third.advantage == pytest.approx(third.score, abs=1e-6)
    # Versions 1 and 3 wrote it for step 4.
    assert (third.staleness, third.newest_version) == (2, 3)
    assert third.rewards == {"gold": third.score / 2, "gold/polite": 2.0}


def test_files_of_before_say_the_same(run_dir, tmp_path):
    old = browse(write_run(tmp_path / "old", 4, is_old=True))
    assert "num_tokens" not in pq.ParquetFile(file_of(tmp_path / "old", 1)).schema_arrow.names
    assert old.query(Query()).rows == browse(run_dir).query(Query()).rows


def test_files_of_both_kinds_stand_in_one_index(own_run):
    expected = ids(browse(own_run), sort="advantage")
    write_step(own_run, 2, groups_of(2), is_old=True)
    assert ids(browse(own_run), sort="advantage") == expected


def test_a_file_with_few_columns_leaves_the_others_open(tmp_path):
    write_step(tmp_path, 1, groups_of(1))
    path = file_of(tmp_path, 1)
    few = pq.ParquetFile(path).read(["group_id", "sample", "prompt", "reply", "score"])
    pq.write_table(few, path)
    browser = browse(tmp_path)
    row = browser.query(Query(limit=1)).rows[0]
    assert row.score is not None
    assert (row.prompt_row, row.length, row.staleness, row.advantage, row.engine, row.rewards) == (
        None, None, None, None, "", {},
    )  # fmt: skip
    assert browser.sample(row.id).lineage.spans == []


def test_losses_of_whole_replies_have_no_advantage_and_stored_replies_no_age(tmp_path):
    pair = [reply(1, 0, k, source="stored", label=1.0 - k) for k in range(2)]
    own = [reply(1, 1, k) for k in range(2)]
    for is_old in (False, True):
        write_step(tmp_path, 1, [pair, own], has_advantages=False, is_old=is_old)
        rows = browse(tmp_path).query(Query(sort="advantage")).rows
        assert [row.advantage for row in rows] == [None] * 4
        assert [row.staleness for row in rows] == [None, None, 0, 0]
        assert {row.source for row in rows} == {"stored", "policy"}


def test_numbers_that_are_not_finite_come_last_and_as_none(tmp_path):
    write_step(tmp_path, 1, groups_of(1))
    table = pq.ParquetFile(file_of(tmp_path, 1)).read()
    scores = [0.5, math.nan, -1.0, math.nan, 2.0, 0.0]
    at = table.schema.get_field_index("score")
    pq.write_table(table.set_column(at, "score", [scores]), file_of(tmp_path, 1))
    browser = browse(tmp_path)
    for descending in (True, False):
        page = browser.query(Query(sort="score", descending=descending))
        known = sorted([0.5, -1.0, 2.0, 0.0], reverse=descending)
        assert [row.score for row in page.rows] == [*known, None, None]
        assert [row.id for row in page.rows[-2:]] == ["1-0-1", "1-1-0"]


# ---- order and filters ---------------------------------------------------------------------------

KEYS = {
    "score": lambda row: row["score"],
    "advantage": lambda row: np.float32(np.mean(row["advantages"])),
    "length": lambda row: len(row["tokens"]),
    "staleness": lambda row: row["step"] - 1 - min(s["version"] for s in row["versions"]),
    "step": lambda row: row["step"],
    "rewards/gold/polite": lambda row: dict(row["rewards"])["gold/polite"],
}


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("key", KEYS)
def test_pages_of_any_order_are_those_of_sorted(run_dir, key, descending):
    browser = browse(run_dir)
    expected = sorted(stored(run_dir), key=KEYS[key], reverse=descending)
    if descending:  # sorted(reverse=True) keeps equals in their order, as the pages do
        assert expected[0] is not None
    names = [name_of(row) for row in expected]
    query = Query(sort=key, descending=descending, limit=5)
    pages = [browser.query(replace(query, offset=offset)) for offset in range(0, 25, 5)]
    assert [row.id for page in pages for row in page.rows] == names
    assert {page.total for page in pages} == {24}


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, 40), (777, 800), (3990, 5000), (9000, 9005)]
)
def test_ranks_are_those_of_a_stable_sort(start, stop):
    random = np.random.default_rng(0)
    for values in (random.normal(size=4000), random.integers(0, 5, 4000), np.full(4000, np.nan)):
        keys = values.astype(np.float64)
        keys[random.random(4000) < 0.3] = np.nan
        expected = np.argsort(keys, kind="stable")[start:stop]
        assert np.array_equal(ranked(keys, start, stop), expected)


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (Filter(steps=(2, 3)), lambda row: 2 <= row["step"] <= 3),
        (Filter(steps=(None, 1)), lambda row: row["step"] == 1),
        (Filter(scores=(0.25, None)), lambda row: row["score"] >= 0.25),
        (Filter(scores=(None, 0.0)), lambda row: row["score"] <= 0.0),
        (Filter(finish_reason="length"), lambda row: row["sample"] == 2),
        (Filter(engine="engine-1"), lambda row: row["group_id"] % 2 == 1),
        (Filter(source="policy"), lambda row: True),
        (Filter(source="stored"), lambda row: False),
        (Filter(group_id=5), lambda row: row["group_id"] == 5),
        (Filter(prompt_row=1), lambda row: row["group_id"] % 6 == 1),
        # Sample 2 of step 4 was written by versions 1 and 3, not by 2.
        (Filter(version=2), lambda row: 2 in [s["version"] for s in row["versions"]]),
        (Filter(text="GROUP 7."), lambda row: row["group_id"] == 7),
        (Filter(text="straße UND är"), lambda row: row["sample"] == 1),
        (Filter(text="3 plus 3?"), lambda row: row["group_id"] % 6 == 3),
        (Filter(text="5.*"), lambda row: False),
        (Filter(text="reply 0", engine="engine-0", steps=(2, None)),
         lambda row: row["sample"] == 0 and row["group_id"] % 2 == 0 and row["step"] >= 2),
    ],
)  # fmt: skip
def test_a_filter_finds_what_passes_it_and_nothing_else(run_dir, wanted, passes):
    page = browse(run_dir).query(Query(filter=wanted, budget_s=5))
    expected = [name_of(row) for row in stored(run_dir) if passes(row)]
    assert [row.id for row in page.rows] == expected
    assert page.total == len(expected)
    assert page.is_whole


@pytest.mark.parametrize(
    "wrong", [{"sort": "beauty"}, {"offset": -1}, {"limit": 0}, {"limit": 1001}]
)
def test_a_query_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError):
        Query(**wrong)


def test_long_texts_are_cut_around_what_was_looked_for(tmp_path):
    text = "x" * 2000 + " Needle " + "y" * 2000
    write_step(tmp_path, 1, [[reply(1, 0, 0, text=text)]])
    shown = browse(tmp_path).query(Query(filter=Filter(text="needle"), budget_s=5)).rows[0].reply
    assert "Needle" in shown
    assert shown.startswith("…x")
    assert shown.endswith("y…")
    assert len(shown) == 402
    assert excerpt("short") == "short"


# ---- time ----------------------------------------------------------------------------------------


def test_the_first_page_needs_the_newest_files_alone(tmp_path):
    for step in range(1, 31):
        write_step(tmp_path, step, groups_of(step))
    index = Index(tmp_path)
    page = run_query(index.refresh(0.0), Scans(), Query(limit=1))
    assert page.rows[0].step == 30
    assert not page.is_whole
    assert page.files_indexed < page.files == 30
    page = run_query(index.refresh(), Scans(), Query())
    assert page.is_whole
    assert page.total == 180


def test_a_search_without_time_goes_on_where_it_stopped(tmp_path):
    for step in range(1, 13):
        write_step(tmp_path, step, groups_of(step))
    browser = browse(tmp_path)
    browser.refresh()
    query = Query(filter=Filter(text="Reply 1 of"), budget_s=0.0)
    pages = [browser.query(query)]
    while not pages[-1].is_whole:
        assert len(pages) < 13, "it does not come to an end"
        pages.append(browser.query(query))
    assert len(pages) > 3, "each call took more than its share"
    scanned = [page.scanned for page in pages]
    assert scanned == sorted(set(scanned)), "each call comes further"
    assert [page.scanned_to for page in pages] == sorted(
        {page.scanned_to for page in pages}, reverse=True
    ), "newest step first"
    assert pages[-1].total == 24
    assert pages[-1].scanned == pages[-1].to_scan == 72
    # What is known stays known: another order and a narrower filter cost no scan.
    again = browser.query(replace(query, sort="score", filter=replace(query.filter, steps=(3, 5))))
    assert again.is_whole
    assert again.total == 6
    # And a new step is all that is left to scan.
    write_step(tmp_path, 13, groups_of(13))
    browser.refresh()
    assert browser.query(query).total == 26


def test_a_page_reads_its_columns_and_no_file_whole(tmp_path):
    for step in (1, 2):
        groups = [[reply(step, 2 * step, k, num_tokens=40_000) for k in range(30)]]
        write_step(tmp_path, step, groups)
    size = sum(file_of(tmp_path, step).stat().st_size for step in (1, 2))
    assert size > 2_000_000
    browser = RolloutBrowser(tmp_path)
    before = bytes_read()
    browser.query(Query(sort="score", limit=10))
    assert bytes_read() - before < size / 20


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def test_rows_of_several_row_groups_are_found(tmp_path):
    count = 2 * ROWS_PER_GROUP + 10
    write_step(tmp_path, 1, [[reply(1, 0, k) for k in range(count)]])
    assert pq.ParquetFile(file_of(tmp_path, 1)).num_row_groups == 3
    browser = browse(tmp_path)
    shown = browser.query(Query(offset=ROWS_PER_GROUP - 2, limit=4)).rows
    for row in shown:
        assert row.reply == reply_text(0, row.sample)
    assert [row.sample for row in shown] == list(range(ROWS_PER_GROUP - 2, ROWS_PER_GROUP + 2))
    assert browser.sample(f"1-0-{count - 1}").reply == reply_text(0, count - 1)
    query = Query(filter=Filter(text=f"Reply {count - 1} of"), budget_s=0.0)
    scanned = [browser.query(query).scanned for _ in range(3)]
    assert scanned == [ROWS_PER_GROUP, 2 * ROWS_PER_GROUP, count], "a large file is read in parts"
    found = browser.query(query)
    assert [row.sample for row in found.rows] == [count - 1]
    assert ids(browser, sort="rewards/gold/polite", limit=1, budget_s=5) == [f"1-0-{count - 1}"]


# ---- what belongs together -----------------------------------------------------------------------


def test_groups_are_found_from_their_step_and_from_their_prompt(run_dir):
    browser = browse(run_dir)
    groups = browser.groups_of_step(2)
    assert [group.group_id for group in groups] == [2, 3]
    # Group 2: (14 + 3k) % 11 / 4 - 1 = -0.25, 0.5, 1.25, and 2/1024.
    assert groups[0].samples == ["2-2-2", "2-2-1", "2-2-0"]
    assert (groups[0].best, groups[0].worst) == (1.25 + 2 / 1024, -0.25 + 2 / 1024)
    assert groups[0].mean == pytest.approx(0.5 + 2 / 1024)
    assert groups[0].rewards["gold/polite"] == 1.0
    assert groups[0].prompt == prompt_text(2)
    assert browser.groups_of_step(9) == []
    assert [(g.step, g.group_id) for g in browser.groups_of_prompt(1)] == [(4, 7), (1, 1)]
    assert len(browser.groups_of_prompt(1, limit=1)) == 1


def test_an_overview_names_what_can_be_chosen(run_dir):
    overview = browse(run_dir).overview()
    assert overview.num_samples == 24
    assert (overview.first_step, overview.last_step) == (1, 4)
    assert overview.finish_reasons == ["length", "stop"]
    assert overview.engines == ["engine-0", "engine-1"]
    assert overview.rewards == ["gold", "gold/polite"]
