"""Every query of every panel and alert, asked of a real Prometheus that scrapes a real run."""

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.dashboards.alerts import BY_NAME
from cluster.dashboards.definition import DASHBOARDS
from cluster.dashboards.grafana import dashboard_json
from cluster.events import read_events
from cluster.metrics.table import find
from configs.load import to_yaml
from configs.schema import RunConfig
from rl.world.replies import draw_request, write_prompt
from tests.integration.loop import tiny_run
from tests.integration.processes import wait_for_step
from tests.integration.prometheus import (
    all_queries,
    ask,
    check_all,
    dashboard_of,
    get,
    scraped,
    wait_until,
    why_absent,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="needs Prometheus: the Debian package `prometheus`",
    ),
]
ATTUNE = str(Path(sys.executable).with_name("attune"))


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A run that goes on, and the Prometheus that scrapes it."""

    config: RunConfig
    run: subprocess.Popen[str]
    url: str
    folder: Path


def write_requests(file: Path) -> Path:
    """Prompts that the built-in world's own rule can judge."""
    rng = random.Random(0)
    rows = []
    for _ in range(200):
        place, question = draw_request(rng)
        prompt = write_prompt(rng, place, question)
        rows.append({"prompt": prompt, "place": place, "question": question})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def observed(world_model, tmp_path_factory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("prometheus")
    config = tiny_run(
        world_model, write_requests(folder / "requests.jsonl"), folder / "first",
        "algorithm.num_steps=2000", "algorithm.max_staleness=1",
        "feedback.rewards.gold={kind: gold, weight: 0}", "feedback.label_budget=1000000",
        "cluster.dashboard=true", "cluster.checkpoint.interval=2", "cluster.metrics.interval_s=1",
    )  # fmt: skip
    (folder / "run.yaml").write_text(to_yaml(config))
    token = secrets.token_hex(16)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
    }
    with subprocess.Popen(
        [ATTUNE, "run", str(folder / "run.yaml")], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:  # fmt: skip
        try:
            wait_for_step(folder / "first", 1, run)
            head = dashboard_of(folder / "first", token)
            with scraped(folder / "observe", head, token) as url:
                yield Observed(config=config, run=run, url=url, folder=folder)
        finally:
            run.send_signal(signal.SIGINT)
            try:
                run.communicate(timeout=90)
            except subprocess.TimeoutExpired:
                run.kill()


def test_every_query_of_every_panel_and_alert_has_data(observed):
    lacking: list[str] = ["not asked yet"]

    def is_complete() -> bool:
        assert observed.run.poll() is None, "the run has ended"
        lacking[:] = check_all(observed.url, observed.config)
        return not lacking

    wait_until(is_complete, 60, lambda: "no data for\n" + "\n".join(lacking))
    asked = list(all_queries("first"))
    assert len(asked) > 90
    left_out = [
        name
        for name, _, figures in asked
        if any(why_absent(key, where, observed.config) for key, where in figures)
    ]
    assert len(left_out) < 25, left_out


def test_what_the_configuration_rules_out_is_not_in_the_run(observed):
    rows = (observed.folder / "first" / "metrics.jsonl").read_text().splitlines()
    found = [find(key) for line in rows if line.endswith("}") for key in json.loads(line)]
    there = {metric.key for metric, _ in filter(None, found)}
    assert len(there) > 50
    wrong = {key: why for key in there if (why := why_absent(key, (), observed.config))}
    assert wrong == {}


def test_a_query_without_data_is_named(observed):
    config = observed.config.model_copy(
        update={"algorithm": observed.config.algorithm.model_copy(update={"advantage": "gae"})}
    )
    lacking = check_all(observed.url, config)
    assert len(lacking) == 2
    assert lacking[0].startswith("Attune: Learning / Value loss / value")
    assert lacking[1].startswith("Attune: Learning / Explained variance / critic")


def test_a_run_that_stands_still_keeps_its_figures_and_is_told(observed):
    (started,) = [
        e for e in read_events(observed.folder / "first") if e["kind"] == "learner_started"
    ]
    os.kill(started["pids"][0], signal.SIGSTOP)
    try:
        time.sleep(8)
        (late,) = ask(observed.url, BY_NAME["AttuneNoProgress"].query)
        assert float(late["value"][1]) > 6 / 60  # of a step, which counts a minute at least
        assert check_all(observed.url, observed.config) == []
    finally:
        os.kill(started["pids"][0], signal.SIGCONT)


def test_dashboards_find_the_session_and_the_run_to_choose(observed):
    (session,) = get(f"{observed.url}/api/v1/label/SessionName/values?match[]=ray_attune_step")[
        "data"
    ]
    assert session.startswith("session_")
    runs = get(f"{observed.url}/api/v1/label/run/values?match[]=ray_attune_step")["data"]
    assert runs == ["first"]


def test_queries_are_right_as_grafana_fills_them_in(observed):
    filled = {
        "$SessionName": ".+", "$run": ".+", "$__rate_interval": "1m", "$__interval": "15s",
    }  # fmt: skip
    for dashboard in DASHBOARDS:
        document = dashboard_json(dashboard)
        targets = [target for panel in document["panels"] for target in panel.get("targets", [])]
        for target in [*targets, *(entry["target"] for entry in document["annotations"]["list"])]:
            query = target["expr"]
            for variable, value in filled.items():
                query = query.replace(variable, value)
            assert "$" not in query
            ask(observed.url, query)


def test_labels_that_say_nothing_of_a_run_are_gone_and_rays_own_are_there(observed):
    (step,) = ask(observed.url, "ray_attune_step")
    assert {"run", "SessionName", "WorkerId", "instance"} <= set(step["metric"])
    assert not {"Component", "Version", "otel_scope_name"} & set(step["metric"])
    assert ask(observed.url, 'ray_component_rss_mb{Component!=""} or ray_component_rss_bytes')


def test_no_alert_fires_on_a_healthy_run(observed):
    groups = get(f"{observed.url}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len([name for name, _, _ in all_queries("first") if "alert" in name])
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
    # Most must hold for minutes before they fire; on a healthy run they hold at no time.
    assert [rule["name"] for rule in rules if ask(observed.url, rule["query"])] == []


@pytest.mark.parametrize("words", [["config", "prometheus.yml"], ["rules", "attune-rules.yml"]])
def test_promtool_finds_nothing_wrong(observed, words):
    kind, name = words
    command = ["promtool", "check", kind, str(observed.folder / "observe" / "prometheus" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
