"""The pages as a process: how it starts and ends, what it needs; and the command that serves."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from cluster.pages.access import token_for
from cluster.pages.listening import listen, url_of
from cluster.pages.process import ROOT, start_pages
from configs.errors import ConfigError
from tests.unit.watched_runs import write_empty, write_finished

COMMAND = [sys.executable, "-c", "from cluster.cli import main; main()", "report"]


def body(url, timeout=30):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def refused(url):
    """Whether nobody listens there."""
    try:
        body(url, timeout=2)
    except (urllib.error.URLError, ConnectionError):
        return True
    return False


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


@pytest.fixture
def pages(tmp_path):
    run = write_empty(tmp_path / "run")
    started = start_pages(tmp_path, run)
    yield started
    started.stop()


def test_it_answers_whoever_asks_from_its_first_moment_on(pages, tmp_path):
    assert "wrote no learner step" in body(pages.address)
    assert (tmp_path / "run" / "logs" / "pages.log").read_text() == ""
    process = psutil.Process(pages.process.pid)
    assert process.nice() == 19
    assert [c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"] == ["127.0.0.1"]


def test_it_ends_when_it_is_told_to_and_its_port_with_it(pages):
    body(pages.url + "/api/grafana_health")
    pages.stop()
    assert pages.process.returncode is not None
    assert refused(pages.url)


def test_a_token_in_the_environment_shuts_neither_the_pages_nor_what_lies_behind(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("ATTUNE_PAGES_TOKEN", "a-token-of-the-user")
    pages = start_pages(tmp_path, write_empty(tmp_path / "run"))
    try:
        assert "wrote no learner step" in body(pages.address)
        for path in ("/", "/api/version", "/nodes?view=summary"):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                body(pages.url + path)
            assert (refusal.value.code, refusal.value.read()) == (404, b"")
    finally:
        pages.stop()


def test_where_it_is_killed_nobody_is_kept_waiting(pages):
    body(pages.url + "/api/grafana_health")
    pages.process.kill()
    wait_until(lambda: refused(pages.url), 5)
    pages.stop()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    write_empty(tmp_path / "run")
    code = (
        "import sys, time; from cluster.pages.process import start_pages;"
        f"pages = start_pages({str(tmp_path)!r}, {str(tmp_path / 'run')!r});"
        "print(pages.process.pid, pages.url, flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    pid, url = driver.stdout.readline().decode().split()
    body(url + "/api/grafana_health")
    driver.kill()
    driver.wait()
    wait_until(lambda: not psutil.pid_exists(int(pid)), 10)
    driver.stdout.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_it_goes_on_where_its_log_has_no_room(tmp_path):
    run = write_finished(tmp_path / "run", 5)
    (run / "logs").mkdir()
    (run / "logs" / "pages.log").symlink_to("/dev/full")
    # Of which no page can be drawn.
    (run / "config.yaml").write_text("feedback: {rewards: {gold: {kind: gold, weight: x}}}\n")
    pages = start_pages(run, run)
    try:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            body(pages.address)
        assert "success" in body(pages.url + "/api/v1/query")
    finally:
        pages.stop()


def test_a_driver_needs_nothing_heavy_to_start_it_nor_it_to_draw_pages(tmp_path):
    write_finished(tmp_path / "run", 5)
    heavy = "('ray', 'torch', 'vllm', 'deepspeed', 'transformers')"
    driver = (
        "import sys, cluster.pages.process; names = ('aiohttp', 'pyarrow', 'jinja2');"
        f"sys.exit(any(name in sys.modules for name in (*names, *{heavy})))"
    )
    drawing = (
        "import sys; from pathlib import Path; import cluster.pages.__main__;"
        "from cluster.pages.library import Library; from cluster.pages.page import Look;"
        "from cluster.pages.catalog import RUN_PAGES, draw_run;"
        f"library = Library(Path({str(tmp_path)!r}));"
        "asked = {'id': '1-10-0', 'group': '10', 'step': '1', 'row': '3'};"
        "asks = {n: {k: asked[k] for k in p.asks if k in asked} for n, p in RUN_PAGES.items()};"
        "[draw_run(library, 'run', n, asks[n], Look(base='')) for n in RUN_PAGES];"
        f"sys.exit(any(name in sys.modules for name in {heavy}))"
    )
    for code in (driver, drawing):
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# The command.


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    write_finished(tmp_path / "run", 5)
    command = [*COMMAND, str(tmp_path), "--serve"]
    served = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert served.stdout is not None
    assert served.stderr is not None
    said = served.stdout.readline().decode()
    assert said.startswith("1 run: http://127.0.0.1:")
    assert "RLOO" in body(said.split()[2])
    served.send_signal(signal.SIGINT)
    assert served.wait(60) == 0
    assert served.stderr.read().decode() == "stopped\n"
    served.stdout.close()
    served.stderr.close()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere", "--serve"], "error: nowhere: no such folder"),
        ([".", "--serve"], "error: . holds no run"),
        (["run", "--serve", "--port", "{taken}"], "error: --port: 127.0.0.1:{taken} cannot be had"),
        (["run", "--serve", "--host", "203.0.113.9"], "error: --host: 203.0.113.9"),
        (["run", "--serve", "--port", "70000"], "error: Invalid value for '--port'"),
        (["run", "--port", "1"], "error: --port, --host and --open are of --serve"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(tmp_path, words, line):
    if words[0] == "run":
        write_empty(tmp_path / "run")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        words, line = [word.format(taken=taken) for word in words], line.format(taken=taken)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_port_that_a_setting_names_is_refused_by_that_name(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=r"^cluster\.metrics\.pages_port: 127\.0\.0\.1:"):
            start_pages(tmp_path, tmp_path, port=port, field="cluster.metrics.pages_port")


def test_a_token_is_made_for_addresses_beyond_this_machine_alone():
    assert token_for("127.0.0.1", {}) is None
    assert token_for("localhost", {"ATTUNE_PAGES_TOKEN": " own "}) == "own"
    made = {token_for(host, {}) for host in ("0.0.0.0", "::", "10.0.0.7", "box.example")}
    assert len(made) == 4
    assert all(token is not None and len(token) >= 32 for token in made)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:")]
)
def test_the_address_is_one_that_can_be_opened_here(host, url):
    with listen(host, 0) as listener:
        assert url_of(listener, host).startswith(url)
