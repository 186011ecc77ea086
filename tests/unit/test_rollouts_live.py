"""The index of samples of runs that go on, go back or are torn, and the thread that keeps it up."""

import logging
import os
import shutil
import threading
import time
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from cluster.ledger import Ledger
from cluster.rollouts import browser as browsing
from cluster.rollouts import index as indexing
from cluster.rollouts import keeping
from cluster.rollouts.browser import RolloutBrowser
from cluster.rollouts.files import Changed, Listing
from cluster.rollouts.index import Index
from cluster.rollouts.query import Filter, Query
from configs.errors import ConfigError
from tests.unit.made_up_samples import (
    browse,
    file_of,
    groups_of,
    ids,
    reply,
    reply_text,
    write_run,
    write_step,
)


@pytest.fixture
def own_run(tmp_path):
    return write_run(tmp_path / "run", 3)


def test_new_steps_appear_and_steps_that_were_taken_back_go(own_run):
    browser = browse(own_run)
    assert browser.query(Query()).total == 18
    write_step(own_run, 4, groups_of(4))
    assert ids(browser, limit=1) == ["4-6-0"]
    Ledger(own_run).rewind(2)
    assert browser.query(Query()).total == 12
    assert ids(browser, limit=1) == ["2-2-0"]


def test_folders_that_changed_are_looked_into_again_however_old(tmp_path):
    for step in range(1, 21):
        write_step(tmp_path, step, groups_of(step))
    index = Index(tmp_path)
    assert len(index.refresh()) == 120
    write_step(tmp_path, 1, [[reply(1, 0, 0)]])
    assert len(index.refresh()) == 115
    write_step(tmp_path, 2, [[reply(2, 30, 0)]], rank=1)
    assert len(index.refresh()) == 116
    shutil.rmtree(file_of(tmp_path, 3).parent)
    snapshot = index.refresh()
    assert len(snapshot) == 110
    assert index.refresh() is snapshot, "nothing new, nothing done"


def test_a_step_that_is_written_anew_replaces_its_samples(own_run):
    browser = browse(own_run)
    assert browser.query(Query(filter=Filter(text="of group 4"), budget_s=5)).total == 3
    Ledger(own_run).rewind(2)
    write_step(own_run, 3, [[reply(3, 9, 0, text="anew")]])
    rows = browser.query(Query(filter=Filter(steps=(3, 3)))).rows
    assert [(row.id, row.reply) for row in rows] == [("3-9-0", "anew")]
    assert browser.query(Query(filter=Filter(text="of group 4"), budget_s=5)).total == 0
    assert [
        row.id for row in browser.query(Query(filter=Filter(text="anew"), budget_s=5)).rows
    ] == ["3-9-0"]


def test_a_file_that_is_replaced_unseen_is_noticed_where_its_rows_are_read(tmp_path):
    for step in range(1, 21):
        write_step(tmp_path, step, groups_of(step))
    browser = browse(tmp_path)
    browser.refresh()
    folder = file_of(tmp_path, 1).parent
    times = folder.stat()
    write_step(tmp_path, 1, [[reply(1, 90, k, text="another reply") for k in range(6)]])
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if within one tick of time
    page = browser.query(Query(filter=Filter(steps=(1, 1))))
    assert [row.reply for row in page.rows] == ["another reply"] * 6
    assert {row.group_id for row in page.rows} == {90}, "numbers of one file, texts of another"


def test_a_second_rank_joins_a_step_that_was_seen(own_run):
    browser = browse(own_run)
    assert browser.query(Query()).total == 18
    folder = file_of(own_run, 3).parent
    times = folder.stat()
    write_step(own_run, 3, [[reply(3, 20, 0)]], rank=1)
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert browser.query(Query()).total == 19


def test_a_torn_file_is_named_and_the_others_are_shown(own_run):
    path = file_of(own_run, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    browser = browse(own_run)
    page = browser.query(Query())
    assert page.total == 12
    assert page.is_whole
    assert page.notes == ("experience/step=000002/rank=0.parquet: torn and left out.",)
    with pytest.raises(ConfigError, match=r"step=000002/rank=0\.parquet: torn"):
        browser.sample("2-2-0")
    path.write_bytes(whole)  # from a copy
    os.utime(path.parent)
    page = browser.query(Query())
    assert (page.total, page.notes) == (18, ())


def test_pages_that_cannot_be_read_are_named_in_their_rows(own_run):
    path = file_of(own_run, 3)
    parquet = pq.ParquetFile(path)
    names = [parquet.metadata.row_group(0).column(i).path_in_schema for i in range(29)]
    column = parquet.metadata.row_group(0).column(names.index("reply"))
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    browser = browse(own_run)
    page = browser.query(Query(sort="score"))
    assert page.total == 18, "its numbers can be read"
    assert sum("torn" in row.prompt for row in page.rows) == 6
    found = browser.query(Query(filter=Filter(text="group"), budget_s=5))
    assert (found.total, found.is_whole) == (12, True)


def test_a_run_without_samples_is_empty(tmp_path):
    page = browse(tmp_path).query(Query())
    assert (page.rows, page.total, page.files, page.is_whole) == ([], 0, 0, True)
    assert RolloutBrowser(tmp_path).overview().last_step is None
    (tmp_path / "experience" / "step=000001").mkdir(parents=True)
    (tmp_path / "experience" / "notes.txt").write_text("mine")
    for name in (".rank=0.parquet.77", ".rank=0.parquet", "rank=0.json"):
        (tmp_path / "experience" / "step=000001" / name).write_bytes(b"half")
    page = browse(tmp_path).query(Query())
    assert (page.total, page.notes) == (0, ())


def test_a_browser_keeps_up_by_itself_and_writes_nothing(own_run):
    before = sorted(str(path) for path in own_run.rglob("*"))
    others = threading.enumerate()
    with RolloutBrowser(own_run) as browser:
        assert ids(browser, limit=1) == ["3-4-0"], "the first page is there at once"
        assert sorted(str(path) for path in own_run.rglob("*")) == before
        write_step(own_run, 4, groups_of(4))
        until = time.monotonic() + 10
        while browser.query(Query()).total < 24 and time.monotonic() < until:
            time.sleep(0.05)
        assert browser.query(Query()).total == 24
    begun = [thread for thread in threading.enumerate() if thread not in others]
    assert [thread.name for thread in begun if thread.name == "rollouts"] == []


def test_many_threads_read_while_steps_are_rewritten(tmp_path):
    for step in range(1, 11):
        write_step(tmp_path, step, groups_of(step))
    spare = file_of(tmp_path, 5).read_bytes()
    ended, wrong = threading.Event(), []

    def read():
        try:
            while not ended.is_set():
                page = browser.query(Query(sort="score", limit=60, filter=Filter(text="reply")))
                wrong.extend(
                    row.id for row in page.rows if row.reply != reply_text(row.group_id, row.sample)
                )
        except Exception as error:  # noqa: BLE001 - in a thread, where nobody else would see it
            wrong.append(error)

    with RolloutBrowser(tmp_path) as browser:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            shutil.rmtree(file_of(tmp_path, 5).parent)
            file_of(tmp_path, 5).parent.mkdir()
            partial = tmp_path / "partial"
            partial.write_bytes(spare)
            partial.replace(file_of(tmp_path, 5))
            time.sleep(0.01)
        ended.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_step_that_is_replaced_again_and_again_is_said_to_be(own_run, monkeypatch):
    browser, read_rows, left = browse(own_run), browsing.read_rows, [2]

    def read(snapshot, rows, *rest):
        if left[0]:
            left[0] -= 1
            raise Changed(snapshot.files[0])
        return read_rows(snapshot, rows, *rest)

    monkeypatch.setattr(browsing, "read_rows", read)
    assert [group.group_id for group in browser.groups_of_step(2)] == [2, 3]
    left[0] = 99
    with pytest.raises(ConfigError, match=r"^step 2 is being written anew; ask again$"):
        browser.groups_of_step(2)


# ---- the thread that keeps up --------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch):
    """Times at which a run's folders were looked at; with a list of errors to raise there."""
    times, errors, look = [], [], Listing.look

    def counted(listing):
        times.append(time.monotonic())
        if errors:
            raise errors[0]
        return look(listing)

    monkeypatch.setattr(Listing, "look", counted)
    monkeypatch.setattr(keeping, "INTERVAL_S", 0.05)
    return times, errors


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def rests(times, count=3):
    """Seconds between the next looks."""
    before = len(times)
    wait_until(lambda: len(times) > before + count)
    return [b - a for a, b in pairwise(times[before:])]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "rollouts"]


@pytest.mark.parametrize("error", [PermissionError(13, "away"), RuntimeError("no more threads")])
def test_what_fails_is_tried_again_and_logged_once(own_run, looks, caplog, error):
    times, errors = looks
    with RolloutBrowser(own_run) as browser, caplog.at_level(logging.WARNING):
        assert browser.query(Query()).total == 18
        write_step(own_run, 4, groups_of(4))
        errors.append(error)
        failing_from = len(times)
        wait_until(lambda: len(times) > failing_from + 3)
        assert browser.query(Query()).total in (18, 24), "what is known can be asked"
        errors.clear()
        wait_until(lambda: browser.query(Query()).total == 24)
    told = [record for record in caplog.records if "cannot be indexed" in record.getMessage()]
    assert len(told) == 1
    assert str(error) in told[0].getMessage()


def test_the_longer_looking_takes_the_longer_is_rested(own_run, looks, monkeypatch):
    times, _ = looks
    look = Listing.look
    monkeypatch.setattr(Listing, "look", lambda listing: time.sleep(0.02) or look(listing))
    with RolloutBrowser(own_run) as browser:
        wait_until(lambda: len(browser._index.snapshot) == 18)
        assert min(rests(times)) >= keeping.REST * 0.02


def test_a_file_that_never_stays_the_same_is_not_asked_for_without_rest(
    own_run, looks, monkeypatch
):
    times, _ = looks
    read = indexing.read_numbers

    def changing(file):
        if file.step == 2:
            raise Changed(file)
        return read(file)

    monkeypatch.setattr(indexing, "read_numbers", changing)
    with RolloutBrowser(own_run) as browser:
        wait_until(lambda: len(browser._index.snapshot) == 12)
        assert min(rests(times)) >= keeping.INTERVAL_S
        assert browser.query(Query()).is_whole is False


def test_the_thread_ends_where_nobody_asks_and_comes_back_with_the_next_request(
    own_run, looks, monkeypatch
):
    monkeypatch.setattr(keeping, "IDLE_S", 0.3)
    times, _ = looks
    with RolloutBrowser(own_run) as browser:
        for _ in range(10):
            time.sleep(0.1)
            assert browser.query(Query()).total == 18
            assert len(threads()) == 1, "somebody asks"
        wait_until(lambda: not threads(), 3)
        before = len(times)
        time.sleep(0.3)
        assert len(times) == before
        write_step(own_run, 4, groups_of(4))
        assert browser.query(Query()).total == 24, "the request looks itself"
        assert len(threads()) == 1
        write_step(own_run, 5, groups_of(5))
        wait_until(lambda: browser.query(Query()).total == 30)
    assert threads() == []
