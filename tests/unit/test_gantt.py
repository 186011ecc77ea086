"""Who did what when, drawn: what a timeline shows of silence, of many phases, and of events."""

import re
import time

import pytest

from cluster.dashboards import gantt as module
from cluster.dashboards.gantt import gantt, seconds, whole_gantt
from cluster.metrics.history import RunHistory
from tests.unit.synthetic_runs import write_jsonl

START = 1_700_000_000.0


def history_of(run_dir, events=(), **roles):
    """Role -> [(second, phase)], or (second, None) for a line that tells no phase."""
    (run_dir / "telemetry").mkdir(parents=True)
    for role, told in roles.items():
        rows = [
            {"time": START + second} | ({"phase": phase} if phase else {"values": {}})
            for second, phase in told
        ]
        write_jsonl(run_dir / "telemetry" / f"{role}.jsonl", rows)
    write_jsonl(run_dir / "events.jsonl", list(events))
    history = RunHistory(run_dir, {})
    history.refresh()
    return history


def bars(svg):
    """(x, width, style) of the bars that stand for one phase each."""
    found = re.findall(r'class="span (\w+)" x="([\d.]+)%" y="\d+" width="([\d.]+)%"', svg)
    return [(float(x), float(width), style) for style, x, width in found]


def test_a_phase_is_as_wide_as_it_took_of_the_whole(tmp_path):
    history = history_of(tmp_path, learner=[(0, "take"), (10, "update"), (25, "take"), (40, None)])
    drawn = whole_gantt(history)
    assert bars(drawn.svg) == [
        (0.0, 25.0, "idle"),
        (25.0, 37.5, "c2"),
        (62.5, 37.5, "idle"),
    ]
    assert drawn.legend == (("c2", "update"), ("idle", "take"))
    assert drawn.shares == (("learner", (("c2", "update", "38%"), ("idle", "take", "62%"))),)


def test_a_bar_tells_who_did_what_how_long_and_when(tmp_path):
    history = history_of(tmp_path, learner=[(0, "update"), (1.42, "take"), (2, None)])
    clock = time.strftime("%H:%M:%S", time.localtime(START))
    assert (
        f"<title>learner: update\n1.42 s from {clock}</title>"
        in gantt(history, START, START + 2).svg
    )


def test_a_process_that_fell_silent_did_not_work_on(tmp_path):
    history = history_of(tmp_path, learner=[(0, "update"), (2, None), (98, "update"), (100, None)])
    assert bars(whole_gantt(history).svg) == [(0.0, 2.0, "c2"), (98.0, 2.0, "c2")]


def test_many_phases_become_shares_of_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_SPANS", 10)
    told = [(second, ("sample", "wait", "wait", "score")[second % 4]) for second in range(240)]
    drawn = whole_gantt(history_of(tmp_path, engine=[*told, (240, None)]))
    assert drawn.is_binned
    columns = re.findall(r'<g class="span">.*?</g>', drawn.svg, re.DOTALL)
    assert len(columns) == module.NUM_BINS
    assert columns[1].count("<rect") == 1, "a second of waiting is an empty column"
    heights = [float(h) for h in re.findall(r'class="c0" [^>]*height="([\d.]+)"', drawn.svg)]
    assert sum(heights) == pytest.approx(240 / 4 * module.BAR, rel=0.01), "a quarter of the time"
    assert drawn.shares[0][1] == (
        ("c0", "sample", "25%"), ("c1", "score", "25%"), ("idle", "wait", "50%"),
    )  # fmt: skip


def test_what_went_wrong_stands_out_among_the_events(tmp_path):
    events = [
        {"time": START + 5, "kind": "engine_lost"},
        {"time": START + 6, "kind": "checkpoint_saved"},
        {"time": START + 500, "kind": "failure"},
        {"kind": "without a time"},
    ]
    drawn = gantt(history_of(tmp_path, events, learner=[(0, "take"), (9, None)]), START, START + 9)
    assert re.findall(r'<g class="event (\w*)">', drawn.svg) == ["worse", ""]


def test_names_of_processes_and_events_are_escaped(tmp_path):
    events = [{"time": START + 1, "kind": "<script>"}]
    history = history_of(tmp_path, events, **{"<b>": [(0, "<i>"), (2, None)]})
    svg = whole_gantt(history).svg
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert "<i>" not in svg


def test_nobody_told_anything(tmp_path):
    history = history_of(tmp_path)
    assert whole_gantt(history) is None
    assert gantt(history, START, START + 60) is None


@pytest.mark.parametrize(
    ("length", "said"),
    [(0.0421, "42 ms"), (1.0, "1 s"), (89.9, "89.9 s"), (600, "10 min"), (7300, "2.0 h")],
)
def test_times_are_said_shortly(length, said):
    assert seconds(length) == said
