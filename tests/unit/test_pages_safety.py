"""What the run pages refuse, and to whom; what models, logs and addresses cannot do to them."""

import asyncio

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.pages_site import PAGES, SAMPLES, asked, get, read, site, write_one_of_each
from tests.unit.watched_runs import (
    EVIL,
    SCHEMA,
    sample_row,
    write_failure_bundle,
    write_finished,
)


@pytest.fixture
def runs(tmp_path):
    """A folder with one run of each kind."""
    return write_one_of_each(tmp_path)


# What models wrote.


def test_what_models_and_logs_hold_cannot_act_on_a_page(runs):
    write_failure_bundle(runs / "finished")
    paths = [f"/attune/run/finished/{page}" for page in (*PAGES, *SAMPLES)]
    paths += [f"/attune/run/finished/rollouts?q={part}" for part in ("<script", "b>", "&")]
    shown = 0
    for answer in get(runs, *paths):
        page = answer.page  # no handlers, no style attributes, all tags closed
        assert page.tags.count("script") == 1, "the page's own"
        assert "<b>bold" not in answer.text
        shown += EVIL in page.text
    assert shown >= 8


@pytest.mark.parametrize(
    "query", ["q=%3Cscript%3Ealert(1)%3C/script%3E", "from=%22%3E%3Cscript%3E"]
)
def test_what_an_address_holds_cannot_act_on_a_page(runs, query):
    answer = get(runs, f"/attune/run/finished/rollouts?{query}&theme=%22%3E%3Cscript%3E")
    assert answer.page.tags.count("script") == 1


NULS = "a\x00b\x00part:rows\x00rows\x00 \x00layout\x00"
"""As a model may write them, around names of what a page holds."""


def test_nul_bytes_are_shown_as_unknown_letters_and_stand_for_nothing(tmp_path):
    run = write_finished(tmp_path / "run", 3)
    folder = run / "experience" / "step=000004"
    folder.mkdir()
    rows = [sample_row(4, 40, 0, reply=NULS)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "rank=0.parquet")
    pages = ("sample?id=4-40-0", "group?group=40&step=4", "rollouts", "rollouts?q=%00a",
             "rollouts?q=b%00part%3Arows%00", "")  # fmt: skip
    sample, group, rollouts, other, found, overview = asked(tmp_path, "run", pages)
    for answer in (sample, group, rollouts, other, found, overview):
        assert answer.status == 200, answer.text
        assert "\x00" not in answer.text
        assert answer.text.count('data-part="rows"') <= 1
        assert answer.page
    for answer in (sample, group, rollouts, found, overview):
        assert NULS.replace("\x00", "\N{REPLACEMENT CHARACTER}") in answer.page.text
    assert 'value="\N{REPLACEMENT CHARACTER}a"' in other.text


# What is refused.


@pytest.mark.parametrize(
    "path",
    ["/", "/favicon.ico", "/api/jobs/", "/attune/nothing", "/attune/run/finished/nothing",
     "/attune/static/../app.py", "/attune/static/app.py", "/nodes?view=summary", "/api/v0/actors"],
)  # fmt: skip
def test_what_is_not_ours_is_left_to_the_dashboard_in_silence(runs, path):
    answer = get(runs, path)
    assert (answer.status, answer.text) == (404, "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_but_reading_is_taken(runs, method):
    ours, other = get(
        runs, "/attune/", "/api/jobs/", method=method, options={"data": b"x" * 100_000}
    )
    assert (ours.status, ours.text) == (405, "")
    assert (other.status, other.text) == (404, "")


@pytest.mark.parametrize("run", ["..", "%2e%2e", "..%2f..", "finished%2f..%2ftorn", "nowhere", "~"])
def test_no_path_is_made_of_what_was_asked_for(runs, run):
    answer = get(runs, f"/attune/run/{run}/config")
    assert answer.status in (404, 410)
    assert "model:" not in answer.text


def test_what_is_not_there_is_said_in_one_line(runs):
    words = {
        "sample?id=999-1-1": "no sample 999-1-1",
        "sample?id=../../x": "STEP-GROUP-SAMPLE",
        "group?group=4711": "no samples of a group 4711",
        "group?group=x": "no whole number",
        "step?step=77": "the run holds nothing of it",
    }
    answers = asked(runs, "finished", words)
    for line, answer in zip(words.values(), answers, strict=True):
        assert answer.status == 410
        assert line in answer.page.text


def test_a_search_that_makes_no_sense_is_said_beside_the_form(runs):
    answer = get(runs, "/attune/run/finished/rollouts?from=early")
    assert answer.status == 200
    assert "from: 'early' is no number" in answer.page.text


# Who may read.


def test_answers_let_a_browser_run_nothing_but_our_own_script(runs):
    answer = get(runs, "/attune/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8265", 200), ("127.0.0.1", 200), ("[::1]:9", 200), ("10.0.0.7:80", 200),
     ("evil.example", 421), ("localhost.evil.example", 421), ("", 421)],
)  # fmt: skip
def test_another_name_for_this_machine_is_refused(runs, host, status):
    assert get(runs, "/attune/", options={"headers": {"Host": host}}).status == status


def test_beyond_this_machine_a_token_is_asked_for_once(runs):
    async def ask():
        async with site(runs, host="0.0.0.0", token="right") as client:
            without = await read(client, "/attune/")
            wrong = await read(client, "/attune/?token=wrong")
            first = await read(client, "/attune/run/sft/?token=right&theme=dark")
            after = await read(client, "/attune/run/sft/?theme=dark")
            return without, wrong, first, after

    without, wrong, first, after = asyncio.run(ask())
    assert (without.status, wrong.status) == (401, 401)
    assert "finished" not in without.text
    assert first.status == 303
    assert first.headers["Location"] == "/attune/run/sft/?theme=dark", "not kept in the history"
    cookie = first.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "right" not in cookie
    assert after.status == 200


@pytest.mark.parametrize("path", ["/", "/api/version", "/attune/nothing"])
@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
def test_what_is_not_ours_is_left_to_the_dashboard_whoever_asks(runs, path, host):
    for token in (None, "right"):
        answer = get(runs, path, token=token, options={"headers": {"Host": host}})
        assert (answer.status, answer.text) == (404, "")
