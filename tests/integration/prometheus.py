"""A real Prometheus over a run that goes on, and which queries it can answer."""

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner

from cluster.cli import app
from cluster.dashboards.alerts import ALERTS
from cluster.dashboards.definition import DASHBOARDS
from cluster.dashboards.promql import Labels, Scope, queries
from cluster.driver_record import FILE as DRIVER_FILE
from configs.schema import OFFLINE, RunConfig
from rl.methods import preference_loss
from tests.integration.processes import free_port


def get(url: str, token: str = "") -> Any:
    """The JSON that a URL answers with."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def dashboard_of(run_dir: Path, token: str = "") -> str:
    """HOST:PORT of Ray's dashboard of a run that goes on with a Ray of its own."""
    facts = json.loads((run_dir / DRIVER_FILE).read_text())
    for mark in facts["ray"]:
        process = psutil.Process(mark["pid"])
        if not any(word.endswith("dashboard/dashboard.py") for word in process.cmdline()):
            continue
        for connection in process.net_connections("inet"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            address = f"127.0.0.1:{connection.laddr.port}"
            try:
                if get(f"http://{address}/api/prometheus/sd", token):
                    return address
            except (OSError, ValueError):
                continue
    raise LookupError(f"no dashboard of Ray belongs to {run_dir}")


@contextmanager
def scraped(folder: Path, head: str, token: str = "") -> Iterator[str]:
    """The URL of a Prometheus that reads the cluster at `head`, by the settings we write."""
    url = f"http://127.0.0.1:{free_port()}"
    words = ["metrics", "install", "--out", str(folder), "--head", head, "--prometheus", url]
    if token:
        file = folder.with_name("token")
        file.write_text(token)
        words += ["--token-file", str(file)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus/prometheus.yml",
        f"--storage.tsdb.path={folder}/prometheus/data",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            wait_until(lambda: is_ready(url), 20, log.read_text)
            yield url
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], limit_s: float, said: Callable[[], str]) -> None:
    """Until `holds()`; after `limit_s` an error with what `said()`."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"not after {limit_s:.0f} s: {said()}"
        time.sleep(0.5)


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The series of an instant query; its mistakes are errors."""
    try:
        answer = get(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    except urllib.error.HTTPError as error:
        raise ValueError(f"{query}: {json.load(error)['error']}") from error
    return answer["data"]["result"]


def has_data(url: str, query: str) -> bool:
    """Whether any series has a number now."""
    return any(math.isfinite(float(series["value"][1])) for series in ask(url, query))


def all_queries(run: str) -> Iterator[tuple[str, str, list[tuple[str, Labels]]]]:
    """(name, query, figures that it needs) of every panel and alert, for one run."""
    scope = Scope(matchers=('SessionName=~"session_.+"', f'run="{run}"'), window="30s")
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in queries(panel, scope):
                name = f"{dashboard.title} / {panel.title} / {query.legend}"
                yield name, query.expr, [(query.key, query.where)]
    for alert in ALERTS:
        yield f"alert {alert.name}", alert.query, [(key, ()) for key in alert.keys]


def check_all(url: str, config: RunConfig) -> list[str]:
    """Queries of panels and alerts that should have data for this run and have none, one a line.

    Left out are those whose figure the run's own configuration rules out: see `why_absent`.
    """
    lacking = []
    for name, query, figures in all_queries(Path(config.cluster.run_dir).name):
        is_expected = not any(why_absent(key, where, config) for key, where in figures)
        if is_expected and not has_data(url, query):
            lacking.append(f"{name}: {query}")
    return lacking


def why_absent(key: str, where: Labels, config: RunConfig) -> str:
    """Why a run of this configuration cannot have a figure; empty where it must."""
    name, algorithm, feedback = config.algorithm.name, config.algorithm, config.feedback
    loss = algorithm.loss.name
    is_gradient = name not in OFFLINE and loss is None
    of_name = {
        "loss/nll": ("sft",),
        "loss/bradley_terry": ("reward_model",),
        "accuracy": ("reward_model",),
        "margin": ("reward_model",),
        "validation/accuracy": ("reward_model",),
        "validation/loss": OFFLINE,
    }
    if key in of_name:
        return "" if name in of_name[key] else f"{name} does not train on {of_name[key]}'s rows"
    of_policy_gradients = (
        "loss/policy", "clip_fraction", "approx_kl", "ratio/mean", "entropy", "length/max",
        "eos_rate", "kl/ref_k3", "kl/coef",
    )  # fmt: skip
    if (key in of_policy_gradients or key.startswith("correction/")) and not is_gradient:
        return f"{name} has no policy gradient"
    if key in ("loss/value", "explained_variance") and algorithm.advantage != "gae":
        return f"advantage {algorithm.advantage} has no critic"
    of_preferences = ("loss/preference", "units", "groups")
    if (key in of_preferences or key.startswith("preference/")) and loss is None:
        return f"{name} compares no replies"
    if key == "preference/explored_log_ratio" and "explored" not in preference_loss(loss).needs:
        return f"{loss} explores nothing"
    if key.startswith("feedback/decides/"):
        is_so = feedback.combine in ("minimum", "group_minimum")
        return "" if is_so else f"combine {feedback.combine} adds rewards up"
    if key.startswith(("feedback/multiplier/", "feedback/slack/")):
        return "" if feedback.combine == "lagrangian" else "there are no constraints"
    if key == "feedback/kept_fraction" and feedback.curate_by is None:
        return "nothing is curated"
    if key == "labels/budget" and feedback.label_budget is None:
        return "labels have no budget"
    if key == "memory/device_mib" and config.cluster.device == "cpu":
        return "there is no device"
    if key.startswith("engine/") and not config.cluster.metrics.engine_metrics:
        return "engines do not measure themselves"
    if key.startswith("reward/{reward}"):
        return _why_no_reward(dict(where), config)
    return ""


def _why_no_reward(where: Mapping[str, str], config: RunConfig) -> str:
    kinds = [reward.kind for reward in config.feedback.rewards.values()]
    match where.get("of"):
        case "gold":
            return "" if "gold" in kinds else "no reward is the truth by rule"
        case "part":
            has_parts = "gold" in kinds or "ensemble" in kinds
            return "" if has_parts else f"rewards of kind {kinds} have no parts"
        case "judge":
            return "" if set(kinds) - {"gold"} else "no reward is a judge"
    return ""
