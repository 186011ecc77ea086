"""A clock that jumps decides nothing: no deadline, no order, nothing kept or thrown away."""

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.checkpoints.manifest import begin_attempt, counting
from cluster.checkpoints.saver import Saver
from cluster.checkpoints.store import Store
from cluster.deadlines import watched
from cluster.events import read_events, record

ROOT = Path(__file__).parents[2]
SHOWN = {
    "cluster/events.py",  # for people; the order of events is that of the lines
    "cluster/inspect_run.py",  # how long ago, for people
    "cluster/metrics/telemetry.py",  # when a process told something, for people
    "cluster/pages/index.py",  # how long ago, for people
    "cluster/pages/view.py",  # up to when a picture is drawn
    "cluster/run_state.py",  # whether a run looks alive from another machine, for people
    "cluster/k8s/drain.py",  # nodes are told by it until when to stay
    "cluster/diagnosis/nodes.py",  # compares the clocks of nodes
}
"""Files that read the clock on the wall, and why that decides nothing."""
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}


def reads_of_the_clock(file: Path) -> Iterator[int]:
    """Lines that ask what time it is."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in WALL:
                yield node.lineno


def test_nothing_but_what_is_shown_to_people_reads_the_clock_on_the_wall():
    files = [file for room in ("actors", "cluster", "configs", "rl")
             for file in (ROOT / room).rglob("*.py")]  # fmt: skip
    assert len(files) > 50
    found = {
        f"{file.relative_to(ROOT)}:{line}"
        for file in files
        if str(file.relative_to(ROOT)) not in SHOWN
        for line in reads_of_the_clock(file)
    }
    assert found == set(), "use time.monotonic(), or say in SHOWN why the clock decides nothing"


def test_a_read_of_the_clock_is_found(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import time, datetime\na = time.monotonic()\nb = time.time()\n"
                    "c = datetime.datetime.now()\n")  # fmt: skip
    assert list(reads_of_the_clock(file)) == [3, 4]


@pytest.fixture(params=[-7 * 86400.0, 7 * 86400.0])
def jumping_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a week further back, or ahead, with each look."""
    real, looks = time.time, [0]

    def jumped() -> float:
        looks[0] += 1
        return real() + looks[0] * request.param

    monkeypatch.setattr(time, "time", jumped)


@pytest.mark.usefixtures("jumping_clock")
def test_checkpoints_and_events_keep_their_order_whatever_the_clock_says(tmp_path):
    store = Store(tmp_path / "store")
    begin_attempt(store, 0)
    saver = Saver(
        store, tmp_path / "scratch", rank=0, world_size=1, attempt=1, keep=2,
        run_dir=str(tmp_path), deadline_s=60.0,
    )  # fmt: skip
    for step in (2, 4, 6):
        saver.copy(step, lambda folder: (folder / "state.json").write_text("{}"))
        saver.upload()
    saver.close()
    assert [saved.step for saved in counting(store)] == [6, 4]
    record(tmp_path, "last")
    told = read_events(tmp_path)
    assert [event.get("step") for event in told] == [2, 4, 6, None]
    assert all(0 <= event["seconds"] < 60 for event in told[:-1])


@pytest.mark.usefixtures("jumping_clock")
def test_work_that_ends_is_not_taken_for_stuck(tmp_path):
    with watched(60.0, "a jump of the clock"):
        assert abs(time.time() - time.time()) > 86400  # a week between two looks
