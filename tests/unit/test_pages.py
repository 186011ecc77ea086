"""The run pages, asked over HTTP about synthetic runs: what they show, survive and refuse."""

import asyncio
import json
import re
import threading
import time
from urllib.parse import urljoin

import pytest
import yaml

from cluster.pages import catalog
from cluster.pages.app import DRAWINGS
from cluster.pages.library import Library, find_runs, slug_of
from cluster.pages.process import is_slot_taken
from tests.unit.pages_site import get, read, site
from tests.unit.synthetic_runs import small_run, write_offline
from tests.unit.watched_runs import (
    EVIL,
    write_empty,
    write_failure_bundle,
    write_finished,
    write_running,
    write_torn,
)

PAGES = [
    "",
    "curves",
    "curves?board=attune-flow",
    "curves?board=attune-fleet",
    "curves?board=attune-memory&last=50",
    "rollouts",
    "rollouts?sort=score&order=asc&q=MUSEUM&from=1&most=9",
    "timeline",
    "timeline?window=60",
    "timeline?window=all",
    "faults",
    "config",
    "config?with=other",
]
SAMPLES = [
    "sample?id=2-20-1",
    "group?group=20&step=2",
    "group?group=20",
    "step?step=2",
    "prompt?row=6",
]


@pytest.fixture
def runs(tmp_path):
    """A folder with one run of each kind, one of them deeper than the others."""
    write_finished(tmp_path / "finished")
    write_running(tmp_path / "running")
    write_torn(tmp_path / "torn")
    write_empty(tmp_path / "deep" / "empty")
    write_offline(tmp_path / "sft", "sft")
    return tmp_path


def asked(root, run, pages):
    """The answers for some pages of a run."""
    return get(root, *(f"/attune/run/{run}/{page}" for page in pages))


# What is shown.


@pytest.mark.parametrize("run", ["finished", "running", "torn", "deep~empty", "sft"])
def test_every_page_of_every_kind_of_run_is_drawn(runs, run):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    for path, answer in zip(PAGES, asked(runs, run, PAGES), strict=True):
        assert answer.status == 200, (path, answer.text)
        assert answer.page.text.count(run.replace("~", "/")) > 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.parametrize("run", ["finished", "running", "torn"])
def test_samples_are_shown_with_all_that_belongs_to_them(runs, run):
    for path, answer in zip(SAMPLES, asked(runs, run, SAMPLES), strict=True):
        assert answer.status == 200, (path, answer.text)
        assert "when does museum 6 open?" in answer.page.text, path


def test_the_list_tells_where_every_run_stands(runs):
    page = get(runs, "/attune/").page
    for words in ("finished", "running", "torn", "deep/empty", "sft", "rloo", "30 of 30"):
        assert words in page.text
    assert page.text.index("running") < page.text.index("finished"), "what goes on comes first"


def test_a_folder_of_one_run_opens_with_that_run(tmp_path):
    write_finished(tmp_path / "alone")
    for root in (tmp_path, tmp_path / "alone"):
        page = get(root, "/attune/").page
        assert "RLOO raised the true reward" in page.text
        assert "run/alone/curves" in page.addresses


def test_runs_are_found_anew_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.pages.library.LOOK_S", 0.0)
    library = Library(tmp_path)
    assert library.runs() == []
    write_empty(tmp_path / "first")
    assert [run.slug for run in library.runs()] == ["first"]


def test_the_overview_leads_with_what_was_learned_and_ends_with_fresh_replies(runs):
    page = get(runs, "/attune/run/finished/").page
    assert "RLOO raised the true reward of the policy" in page.text
    assert "step 30 of 30" in " ".join(page.text.split())
    assert "Newest replies" in page.text
    assert "when does museum 6 open?" in page.text
    assert "../../run/finished/sample?id=30-300-0" in page.addresses


def test_a_running_run_tells_what_everyone_does_now(tmp_path):
    run = write_running(tmp_path / "run")
    with (run / "telemetry" / "learner-0.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time() - 3, "phase": "update"}) + "\n")
    text = " ".join(get(run, "/attune/").page.text.split())
    assert re.search(r"learner-0 update \d", text)
    assert "engine-0 " not in text, "it has been silent for an hour"


def test_torn_files_are_named(runs):
    overview, rollouts, faults = asked(runs, "torn", ("", "rollouts", "faults"))
    assert "metrics.jsonl: 2 lines are torn" in overview.page.text
    assert "config.yaml: not YAML, line" in overview.page.text
    assert "summary.json: torn" in overview.page.text
    assert re.search(r"step=0*30.*(torn|damaged|cannot)", rollouts.page.text)
    assert "failure.json is torn" in faults.page.text


def test_faults_tell_cause_and_remedy_and_events_newest_first(runs):
    write_failure_bundle(runs / "finished")
    page = get(runs, "/attune/run/finished/faults").page
    for words in ("CUDA out of memory", "a GPU ran out", "lower the batch", "the last words"):
        assert words in page.text
    events = page.text.partition("Facts")[2]
    told = [events.index(kind) for kind in ("checkpoint_saved", "engine_replaced", "engine_lost")]
    assert told == sorted(told)
    assert "sk-1234567890abcdef12" not in page.text, "a secret of a log"


def test_settings_differ_from_another_run_by_name(runs):
    text = get(runs, "/attune/run/finished/config?with=sft").page.text
    assert "+ algorithm.name: rloo" in text
    assert "- algorithm.name: sft" in text
    assert "algorithm.kl.coef" not in text.partition("The whole configuration")[0]


def test_secrets_of_a_configuration_are_not_shown(runs):
    with (runs / "finished" / "config.yaml").open("a") as file:
        file.write("extra:\n  api_key: very-secret-word\n")
    assert "very-secret-word" not in get(runs, "/attune/run/finished/config").text


def test_up_to_five_runs_are_compared(runs):
    for number in range(4):
        small_run(runs / f"small-{number}", {"reward/total/mean": [0.1 * number, 0.5, 0.9]})
    query = "&".join(f"run=small-{n}" for n in range(4)) + "&run=finished&run=running&run=nowhere"
    page = get(runs, f"/attune/compare?{query}").page
    assert "Reward it learns from" in page.text
    assert "../attune" not in " ".join(page.addresses)
    assert page.text.count("0.00 → 0.90") == 1, "the first of them"
    assert "run/finished/" in page.addresses
    assert "run/running/" not in page.addresses, "the sixth"


def test_no_part_of_a_page_is_sent_twice(runs):
    async def ask():
        async with site(runs) as client:
            first = await read(client, "/attune/run/running/")
            layout = re.search(r'data-layout="(\w+)"', first.text)[1]
            parts = re.findall(r'data-part="([\w-]+)" data-digest="(\w+)"', first.text)
            known = ",".join([layout, *(f"{name}.{digest}" for name, digest in parts)])
            nothing = await read(client, f"/attune/run/running/?known={known}")
            one = await read(client, f"/attune/run/running/?known={known.replace('tiles.', 'x.')}")
            anew = await read(client, "/attune/run/running/?known=other")
            return nothing, one, anew

    nothing, one, anew = (json.loads(answer.text) for answer in asyncio.run(ask()))
    assert nothing == {"poll": 2000, "parts": {}}
    assert list(one["parts"]) == ["tiles"]
    assert anew["anew"] is True


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


# The Ray dashboard's slots.


def test_the_dashboard_is_told_that_there_is_something_to_show(runs):
    grafana, prometheus, database, query = get(
        runs, "/api/grafana_health", "/api/prometheus_health", "/api/health",
        "/api/v1/query?query=vector(1)",
    )  # fmt: skip
    told = json.loads(grafana.text)
    assert told["result"] is True
    assert told["data"]["grafanaHost"] == "."
    assert told["data"]["dashboardUids"] == {"default": "attune"}, "or `Ray Data` is shown"
    assert json.loads(prometheus.text)["result"] is True
    assert json.loads(database.text) == {"database": "ok"}
    assert json.loads(query.text)["status"] == "success"
    assert "no-store" in grafana.headers["Cache-Control"]


FRAMES = {
    "metrics": "/d/attune/?orgId=1&theme=dark&kiosk=1&refresh=5s&from=now-5m&to=now&timezone=UTC"
    "&var-SessionName=s&var-datasource=attune",
    "metrics of Ray's own uid": "/d/rayDefaultDashboard/?theme=light",
    "utilisation": "/d-solo/attune/default-dashboard?orgId=1&theme=dark&panelId=41&refresh=",
    "node count": "/d-solo/attune/default-dashboard?orgId=1&theme=dark&panelId=24&from=17&to=now",
    "serve": "/d-solo/serveUid?orgId=1&theme=light&panelId=7",
    "serve, system": "/d-solo/attune?panelId=23",
    "a later version's": "/d-solo/attune/x?panelId=999",
}


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_of_the_dashboard_are_filled(runs, frame):
    path = FRAMES[frame]
    answer = get(runs, path, first=runs / "finished")
    assert answer.status == 200
    assert "svg" in answer.page.tags
    assert "X-Frame-Options" not in answer.headers
    theme = re.search(r"theme=(\w+)", path)
    assert ('data-theme="dark"' in answer.text) == (theme is not None and theme[1] == "dark")
    titles = {"utilisation": "True reward", "node count": "Engines"}
    assert titles.get(frame, "") in answer.page.text


def test_frames_show_the_run_that_goes_on_and_others_by_name(runs):
    newest, chosen = get(runs, "/d/attune/", "/d/attune/?run=sft", first=runs / "torn")
    assert "../../attune/run/torn/" in newest.page.addresses
    assert "../../attune/run/sft/" in chosen.page.addresses


def test_frames_of_a_folder_without_a_run_wait_for_one(tmp_path):
    for answer in get(tmp_path, "/d/attune/", "/d-solo/attune?panelId=24", "/attune/"):
        assert answer.status == 200
        assert "No run is in" in answer.page.text


def test_the_slots_are_left_to_a_grafana_of_the_users(runs):
    for answer in get(runs, "/d/attune/", "/api/grafana_health", "/api/v1/query", with_slots=False):
        assert (answer.status, answer.text) == (404, "")
    assert is_slot_taken({"RAY_PROMETHEUS_HOST": "http://prometheus:9090"})
    assert not is_slot_taken({"RAY_GRAFANA_HOST": ""})


@pytest.mark.parametrize("path", ["/attune/", "/attune/run/finished/curves", "/d/attune/"])
def test_all_addresses_are_relative_and_lead_somewhere(runs, path):
    page = get(runs, path).page
    assert page.addresses
    for address in page.addresses:
        assert not re.match(r"/|https?:", address), address
        # As a browser would: from below any prefix, so also behind the dashboard.
        joined = urljoin(f"http://host{path}", address)
        assert get(runs, joined.removeprefix("http://host")).status == 200, address


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


# Names.


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


def test_both_replies_of_a_pair_stand_side_by_side(tmp_path):
    run = write_finished(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"pairing": "best_worst", "seed": 0}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = get(run, "/attune/run/run/group?group=20&step=2").text
    chosen, rejected = text.index('class="sample chosen"'), text.index('class="sample rejected"')
    assert "Pairs that the loss compared" in text
    assert text.index("sample 1 ·") > chosen, "the reply of the higher score"
    assert text.index("sample 0 ·") > rejected > chosen


def test_lineage_leads_from_a_sample_to_step_group_prompt_engine_and_weights(runs):
    page = get(runs, "/attune/run/finished/sample?id=2-20-1").page
    for path in (
        "step?step=2",
        "group?group=20&step=2",
        "prompt?row=6",
        "sample?id=2-20-0",
        "rollouts?engine=engine-0",
        "rollouts?version=0",
        "rollouts?version=1",
    ):
        assert f"../../run/finished/{path}" in page.addresses, path
    assert "version 00–2" in page.text, "three tokens by the older weights"
    assert "version 13–4" in page.text


def test_tokens_are_shaded_by_surprise_drift_and_advantage(runs):
    text = get(runs, "/attune/run/finished/sample?id=2-20-1").text
    shades = re.findall(r'<span class="([^"]+)" title="token (\d)', text)
    assert [css for css, _ in shades] == [
        "s1 k0 ap4 v0",  # −log p 0.1, KL 0, the largest advantage
        "s2 kp3 ap4 v0",  # 0.7, 1.0
        "s4 kn2 an3 v0",  # 2.5, −0.5, half of the largest below 0
        "s0 k0 ap4 v1",
        "s5 kp2 ap4 v1",  # 5.0, 0.25
    ]
