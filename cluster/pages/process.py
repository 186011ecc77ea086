"""The pages as a child process of whoever drives a run."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.pages.listening import listen

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"
LOG = "pages.log"
STOP_S = 3.0
SET_BY_USERS = ("RAY_GRAFANA_HOST", "RAY_PROMETHEUS_HOST")


@dataclass(frozen=True, kw_only=True)
class PagesProcess:
    """A server that runs; whether it still does is nobody's concern.

    >>> # pages = start_pages(runs, run_dir); ray.init(proxy_server_url=pages.url); pages.stop()
    """

    url: str
    """`http://127.0.0.1:PORT`; the pages are at `/attune/`."""
    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """For people."""
        return f"{self.url}/attune/"

    def stop(self) -> None:
        """End it, if it has not ended before."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def is_slot_taken(environment: Mapping[str, str]) -> bool:
    """Whether the user has a Grafana or a Prometheus: the dashboard's Metrics page is theirs."""
    return any(environment.get(name) for name in SET_BY_USERS)


def start_pages(
    root: str | Path,
    run_dir: str | Path,
    *,
    port: int = 0,
    field: str = "port",
) -> PagesProcess:
    """Show the runs in `root`, of which `run_dir` goes on now, on this machine alone.

    Returns at once: the port is taken here; whoever asks before the child is ready waits for it.
    The child ends with this process, gives way to everybody, and logs to `run_dir`/logs/pages.log.
    In the slot of Ray's dashboard it leaves the Metrics page to a Grafana of the user's. Raises
    ConfigError, with the name of the `field`, where `port` cannot be had.
    """
    root, run_dir = Path(root), Path(run_dir)
    listener = listen(LOOPBACK, port, field)
    taken = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "cluster.pages",
        "--root",
        str(root),
        "--run-dir",
        str(run_dir),
    ]
    command += ["--fd", str(listener.fileno()), "--parent", str(os.getpid())]
    command += ["--without-slots"] if is_slot_taken(os.environ) else []
    log = _log(run_dir / "logs")
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            env=os.environ | {"PYTHONPATH": _python_path()},
            start_new_session=True,  # Ctrl-C is for the driver, which ends this one last
        )
    finally:
        # Held here as well, a child that died would leave a port at which nobody answers.
        listener.close()
        if log != subprocess.DEVNULL:
            os.close(log)
    return PagesProcess(url=f"http://{LOOPBACK}:{taken}", port=taken, process=process)


def _log(folder: Path) -> int:
    """A file to append to; where a disk has no room for it, none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return subprocess.DEVNULL


def _python_path() -> str:
    """With this code first: the driver may not have been started from its folder."""
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)
