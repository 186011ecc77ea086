"""`ray job submit` to a cluster with tokens: twice with one id after a kill, stopped, refused.

Its head was told where a run's pages will be.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.ledger import read_ledger
from configs.load import to_yaml
from tests.integration.loop import tiny_run
from tests.integration.processes import free_port, gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
OURS = ("Collector", "LoggedEngine", "RewardWorker", "ReferenceWorker", "RayTrainWorker", "Monitor")
START_S, STEP_S, END_S = 120, 240, 400


@dataclass(frozen=True)
class Head:
    """A cluster of one node that `ray start` made, with token authentication."""

    gcs: str
    dashboard: str
    pages_port: int
    """Where the dashboard asks for pages first."""
    home: Path
    """Home of the client, which holds nothing of Ray's."""

    def client(self, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of somebody at another machine: a path, a home and a token."""
        own = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(self.home), "RAY_AUTH_MODE": "token"}
        return own | ({"RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"})

    def ray_job(self, *arguments: str, token: str | None = TOKEN, timeout: float = END_S) -> Any:
        verb, *others = arguments
        return subprocess.run(
            [str(BIN / "ray"), "job", verb, "--address", self.dashboard, *others],
            capture_output=True, text=True, timeout=timeout, check=False,
            env=self.client(token), cwd=ROOT,
        )  # fmt: skip

    def submit(self, job: str, file: Path, *options: str, token: str | None = TOKEN) -> Any:
        """The command of the documentation, for the run that `file` describes."""
        return self.ray_job(
            "submit", "--submission-id", job, "--working-dir", ".",
            "--runtime-env", "runtime_env.yaml", *options, "--",
            "attune", "run", str(file), "--resume", "cluster.address=auto", token=token,
        )  # fmt: skip

    def read(self, path: str) -> str:
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    def get(self, path: str) -> Any:
        return json.loads(self.read(path))

    def status(self, job: str) -> str:
        return self.get(f"/api/jobs/{job}")["status"]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    temp = Path("/tmp") / f"attune-{os.getpid()}"  # sockets: their paths must be short
    ports = {name: free_port() for name in (
        "port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port",
    )}  # fmt: skip
    pages_port = free_port()
    (folder / "home").mkdir()
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "8",
             "--dashboard-host", "127.0.0.1", "--temp-dir", str(temp), "--disable-usage-stats",
             "--object-store-memory", "200000000",
             "--proxy-server-url", f"http://127.0.0.1:{pages_port}",
             *(part for name, port in ports.items() for part in (f"--{name}", str(port)))],
            stdout=log, stderr=subprocess.STDOUT, cwd=folder,
            env={
                "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder / "home"),
                "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            },
        )  # fmt: skip
    found = Head(
        gcs=f"127.0.0.1:{ports['port']}",
        dashboard=f"http://127.0.0.1:{ports['dashboard-port']}",
        pages_port=pages_port,
        home=folder / "home",
    )
    family: list[psutil.Process] = []
    try:
        wait_until(lambda: answers(found), START_S, (folder / "head.log").read_text)
        yield found
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        process.terminate()
        if not gone(family, 30):
            for one in family:
                if one.is_running():
                    one.kill()
        process.wait(30)


def answers(head: Head) -> bool:
    try:
        return bool(head.get("/api/version"))
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def wait_until(
    holds: Callable[[], bool], within_s: float, explain: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cluster.demo import write_world_and_model

    folder = tmp_path_factory.mktemp("world")
    write_world_and_model(folder, 0)
    return folder


def run_file(world: Path, folder: Path, num_steps: int, *overrides: str) -> Path:
    config = tiny_run(
        world / "model", world / "prompts.parquet", folder / "run",
        f"algorithm.num_steps={num_steps}", "cluster.checkpoint.interval=3",
        *overrides,
    )  # fmt: skip
    file = folder / "run.yaml"
    file.write_text(to_yaml(config))
    return file


def steps(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def driver_of(run: Path) -> psutil.Process:
    return psutil.Process(json.loads((run / "driver.json").read_text())["driver"]["pid"])


def test_a_job_whose_driver_is_killed_goes_on_when_it_is_submitted_again(
    head: Head, world: Path, tmp_path: Path
) -> None:
    file, run = run_file(world, tmp_path, 12), tmp_path / "run"
    first = head.submit("twice", file, "--no-wait")
    assert first.returncode == 0, first.stderr
    explain = lambda: head.ray_job("logs", "twice").stdout  # noqa: E731
    wait_until(lambda: len(steps(run)) >= 5, STEP_S, explain)
    metadata = head.get("/api/jobs/twice")["metadata"]
    assert metadata["attune_method"] == "rloo"
    assert metadata["attune_run_dir"] == str(run)
    driver_of(run).send_signal(signal.SIGKILL)
    wait_until(lambda: head.status("twice") == "FAILED", 60, explain)
    assert len(steps(run)) < 12, "it had finished: the kill shows nothing"

    assert "already exists" in head.submit("twice", file).stderr
    assert head.ray_job("delete", "twice").returncode == 0
    second = head.submit("twice", file)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "step 12/12" in second.stdout, "its log is streamed"
    assert TOKEN not in second.stdout
    assert steps(run) == list(range(1, 13))
    ids = read_ledger(run)["group_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 12 * 8
    discarded = list((run / "discarded" / "ledger").glob("*"))
    assert len(discarded) <= 3, "the last checkpoint was gone on from"


def test_a_job_that_is_stopped_ends_in_order_and_goes_on_later(
    head: Head, world: Path, tmp_path: Path
) -> None:
    pages = f"cluster.metrics.pages_port={head.pages_port}"
    file, run = run_file(world, tmp_path, 500, pages), tmp_path / "run"
    assert head.submit("stopped", file, "--no-wait").returncode == 0
    explain = lambda: head.ray_job("logs", "stopped").stdout  # noqa: E731
    wait_until(lambda: len(steps(run)) >= 2, STEP_S, explain)
    driver = driver_of(run)
    assert {"Collector", "LoggedEngine", "Monitor"} <= set(living(head))
    check_pages(head)
    stopped = head.ray_job("stop", "stopped")
    assert stopped.returncode == 0, stopped.stderr
    assert gone([driver], 60)
    assert head.status("stopped") == "STOPPED"
    log = head.ray_job("logs", "stopped").stdout
    assert "stopped; go on with: attune run" in log
    assert "--resume" in log
    assert "Traceback" not in log
    assert not (run / "failure").exists(), "to be stopped is no failure"
    assert not (run / "driver.json").exists()
    wait_until(lambda: not living(head), 60, lambda: str(living(head)))
    assert head.get("/api/version"), "without pages the dashboard answers by itself"
    done = len(steps(run))
    shorter = subprocess.run(
        [str(BIN / "attune"), "run", str(file), "--resume", f"cluster.address={head.gcs}",
         f"algorithm.num_steps={done + 1}"],
        capture_output=True, text=True, timeout=END_S, check=False,
        env=head.client() | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert shorter.returncode == 0, shorter.stderr
    assert steps(run) == list(range(1, done + 2))


def check_pages(head: Head) -> None:
    """The dashboard of the cluster shows the job's pages, behind its own token."""
    metadata = head.get("/api/jobs/stopped")["metadata"]
    assert metadata["attune_pages"] == f"http://127.0.0.1:{head.pages_port}/attune/"
    assert head.get("/api/grafana_health")["data"]["grafanaHost"] == "."
    overview = head.read("/attune/")
    assert "of 500" in overview
    assert "Reward it learns from" in head.read("/d/attune/")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.dashboard}/attune/", timeout=30)


def living(head: Head) -> list[str]:
    """Classes of the runs' own actors that live on the cluster."""
    answer = head.get("/api/v0/actors?detail=1&limit=1000")
    rows = answer["data"]["result"]["result"]
    return [
        row["class_name"] for row in rows if row["state"] == "ALIVE" and row["class_name"] in OURS
    ]


@pytest.mark.parametrize("token", ["wrong" * 12, None], ids=["wrong", "off"])
def test_without_the_token_one_line_says_so_at_once(
    head: Head, world: Path, tmp_path: Path, token: str | None
) -> None:
    file = run_file(world, tmp_path, 2)
    started = time.monotonic()
    result = subprocess.run(
        [str(BIN / "attune"), "run", str(file), f"cluster.address={head.gcs}"],
        capture_output=True, text=True, timeout=120, check=False,
        env=head.client(token) | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "cluster.address" in said[0]
    assert "RAY_AUTH_TOKEN" in said[0]
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run").exists()
    listed = head.ray_job("list", token=token)
    assert listed.returncode != 0
    assert "Authentication" in listed.stderr


def test_a_second_driver_of_a_run_is_refused_while_the_first_lives(
    head: Head, world: Path, tmp_path: Path
) -> None:
    file, run = run_file(world, tmp_path, 500), tmp_path / "run"
    assert head.submit("first", file, "--no-wait").returncode == 0
    explain = lambda: head.ray_job("logs", "first").stdout  # noqa: E731
    wait_until(lambda: len(steps(run)) >= 1, STEP_S, explain)
    second = head.submit("second", file)
    assert second.returncode != 0
    assert "drives the run" in second.stdout
    assert head.status("first") == "RUNNING"
    assert head.ray_job("stop", "first").returncode == 0
    wait_until(lambda: head.status("first") == "STOPPED", 90, explain)


def test_a_cluster_without_tokens_is_joined_by_those_alone_who_say_so(
    world: Path, tmp_path: Path
) -> None:
    code = (
        "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False)\n"
        "print(ray.get_runtime_context().gcs_address, flush=True); input()"
    )
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    open_ray = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment | {"RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    try:
        assert open_ray.stdout
        address = open_ray.stdout.readline().strip()
        result = subprocess.run(
            [str(BIN / "attune"), "run", str(run_file(world, tmp_path, 2)),
             f"cluster.address={address}"],
            capture_output=True, text=True, timeout=120, check=False,
            env=environment | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 2, result.stderr
        assert "runs without tokens" in result.stderr
        check = f"from cluster.address import check_address; check_address({address!r})"
        knowing = environment | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
        subprocess.run([sys.executable, "-c", check], env=knowing, timeout=120, check=True)
    finally:
        open_ray.communicate("\n", timeout=60)
