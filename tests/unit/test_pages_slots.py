"""The run pages within the Ray dashboard: its questions, its frames, its addresses."""

import json
import re
from urllib.parse import urljoin

import pytest

from cluster.pages.process import is_slot_taken
from tests.unit.pages_site import get, write_one_of_each
from tests.unit.watched_runs import write_finished


@pytest.fixture
def runs(tmp_path):
    """A folder with one run of each kind."""
    return write_one_of_each(tmp_path)


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


def test_frames_show_the_last_steps_where_they_are_asked_for(runs):
    write_finished(runs / "long", 60)
    whole, last, other = get(
        runs, "/d/attune/?run=long", "/d/attune/?run=long&last=50", "/d/attune/?run=long&last=7"
    )
    assert whole.page.text.count("step 11\n") > 0
    assert last.page.text.count("step 10\n") == 0, "the first of 60 without the last 50"
    assert last.page.text.count("step 11\n") == whole.page.text.count("step 11\n")
    assert re.search(r'last=50[^"]*" aria-current="page"', last.text)
    assert '<input type="hidden" name="last" value="50">' in last.text, "kept with another run"
    assert 'name="last"' not in whole.text
    assert other.text == whole.text


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
