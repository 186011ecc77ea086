"""The table of figures, telemetry, and the history that panels draw."""

import json
import mmap
import os
import re
import time
from itertools import pairwise

import pytest

from cluster.dashboards.definition import DASHBOARDS, HOST_MEMORY
from cluster.dashboards.drawing import figure
from cluster.dashboards.panel import Curve, panel
from cluster.metrics import history as history_module
from cluster.metrics.history import RunHistory, rate
from cluster.metrics.labels import labels_of, run_name
from cluster.metrics.pulse import Pulse, private_mib
from cluster.metrics.table import METRICS, find
from cluster.metrics.telemetry import (
    INTERRUPTED,
    RoleTail,
    TelemetryTail,
    append,
    ending_of,
    interval_of,
    say_end,
    switch_off,
    switch_on,
)
from cluster.phases import phase_of, set_phase
from cluster.tail import JsonlTail
from tests.unit.synthetic_runs import write_jsonl

CONFIG = {"feedback": {"rewards": {"gold": {"kind": "gold"}, "rm": {"kind": "model"}}}}


# ---- the table -----------------------------------------------------------------------------------


def test_names_are_prometheus_names_and_differ():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.replace("_", "").isalnum(), metric.name
        assert not metric.name.endswith("_total"), "Ray adds that to counters"
        assert (metric.help + metric.unit).isascii(), f"Ray refuses {metric.help!r}"
        assert metric.help.endswith("."), metric.help


@pytest.mark.parametrize(
    ("key", "name", "labels"),
    [
        ("reward/total/mean", "attune_reward_total_mean", {}),
        ("reward/rm/mean", "attune_reward_mean", {"reward": "rm", "of": "judge"}),
        ("reward/gold/mean", "attune_reward_mean", {"reward": "gold", "of": "gold"}),
        ("reward/gold/polite/p90", "attune_reward_p90", {"reward": "gold/polite", "of": "part"}),
        ("judge/rm/latency_s", "attune_judge_latency_s", {"judge": "rm"}),
        ("staleness/replies/3", "attune_staleness_replies", {"age": "3"}),
        ("kl/ref_k1", "attune_kl_ref_k1", {}),
    ],
)
def test_a_key_of_a_run_folder_is_found_with_its_labels(key, name, labels):
    metric = find(key)[0]
    assert metric.name == name
    assert labels_of(key, CONFIG) == labels
    assert set(labels) == set(metric.labels)


def test_what_is_not_in_the_table_is_not_found():
    assert find("odd/metric") is None
    with pytest.raises(KeyError, match="odd/metric"):
        labels_of("odd/metric", CONFIG)


def test_every_panel_draws_figures_of_the_table_and_names_labels_they_have():
    for dashboard in DASHBOARDS:
        titles = [one.title for one in dashboard.panels]
        assert len(set(titles)) == len(titles)
        for one in dashboard.panels:
            for curve in one.curves:
                curve.label.format(**dict.fromkeys(curve.metric.labels, "x"))
                assert {name for name, _ in curve.where} <= set(curve.metric.labels)
                assert all(find(edge) for edge in (curve.low, curve.high) if edge)


# ---- tails ---------------------------------------------------------------------------------------


def test_a_tail_leaves_the_line_that_is_being_written(tmp_path):
    path = tmp_path / "x.jsonl"
    tail = JsonlTail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"a": ')
    assert tail.read() == [{"a": 1}]
    with path.open("a") as file:
        file.write('2}\nnot json\n{"a": 3}\n')
    assert tail.read() == [{"a": 2}, {"a": 3}]


# ---- telemetry -----------------------------------------------------------------------------------


def test_nothing_is_told_where_telemetry_is_off(tmp_path):
    append(tmp_path, "learner-0", phase="update")
    set_phase(tmp_path, "learner-0", "update")
    assert interval_of(tmp_path) is None
    assert not (tmp_path / "telemetry").exists()
    assert phase_of(tmp_path, "learner-0") == "update"


def test_a_change_of_phase_is_told_with_its_time(tmp_path):
    switch_on(tmp_path, 0.5)
    assert interval_of(tmp_path) == 0.5
    before = time.time()
    set_phase(tmp_path, "learner-0", "update")
    (told,) = TelemetryTail(tmp_path).read()["learner-0"]
    assert told.phase == "update"
    assert before - 0.001 <= told.time <= time.time() + 0.001


def test_who_is_told_to_tell_nothing_any_more_adds_nothing_to_what_was_told(tmp_path):
    switch_on(tmp_path, 0.5)
    append(tmp_path, "learner-0", phase="update")
    switch_off(tmp_path)
    append(tmp_path, "learner-0", phase="take")
    switch_off(tmp_path / "no run")
    assert [told.phase for told in TelemetryTail(tmp_path).read()["learner-0"]] == ["update"]


def test_a_run_says_that_it_ends_and_takes_it_back_when_it_goes_on(tmp_path):
    assert ending_of(tmp_path) is None
    say_end(tmp_path, finished=True)  # without telemetry there is nobody to tell
    assert ending_of(tmp_path) is None
    switch_on(tmp_path, 0.5)
    say_end(tmp_path, finished=False)
    assert ending_of(tmp_path) == INTERRUPTED
    switch_on(tmp_path, 0.5)
    assert ending_of(tmp_path) is None


def test_a_phase_that_cannot_be_written_holds_up_nobody(tmp_path):
    (tmp_path / "phases").write_text("a file in place of the folder")
    set_phase(tmp_path, "learner-0", "update")


def write_role(run_dir, role, lines):
    (run_dir / "telemetry").mkdir(parents=True, exist_ok=True)
    write_jsonl(run_dir / "telemetry" / f"{role}.jsonl", lines)


def test_idle_share_and_seconds_by_phase_follow_from_the_changes(tmp_path):
    write_role(tmp_path, "learner-0", [
        {"time": 100.0, "phase": "take"},
        {"time": 103.0, "phase": "update"},
        {"time": 104.0, "values": {"memory/host_mib": 5.0}},  # idle 3 of 4 s
        {"time": 106.0, "phase": "take"},
        {"time": 108.0, "values": {}},  # since then: update 2 s, take 2 s
    ])  # fmt: skip
    told = [t for t in RoleTail(tmp_path / "telemetry" / "learner-0.jsonl").read() if not t.phase]
    assert told[0].values == {
        "memory/host_mib": 5.0,
        "phase_seconds/take": 3.0,
        "phase_seconds/update": 1.0,
        "idle_share": 0.75,
    }
    assert told[1].values == {
        "phase_seconds/take": 5.0,
        "phase_seconds/update": 3.0,
        "idle_share": 0.5,
    }


def test_the_time_between_two_lives_of_a_process_belongs_to_neither(tmp_path):
    write_role(tmp_path, "learner-0", [
        {"time": 100.0, "phase": "update"},
        {"time": 103.0, "values": {}},  # killed after that
        {"time": 900.0, "phase": "start"},
        {"time": 902.0, "phase": "take"},
        {"time": 903.0, "values": {}},
    ])  # fmt: skip
    told = RoleTail(tmp_path / "telemetry" / "learner-0.jsonl").read()
    assert told[-1].values == {
        "phase_seconds/update": 3.0,
        "phase_seconds/start": 2.0,
        "phase_seconds/take": 1.0,
        "idle_share": 1.0,
    }


def test_a_run_that_is_part_of_something_is_called_by_its_place_in_it():
    assert run_name("runs/first") == "first"
    assert run_name("/runs/grid/seed=0/low") == "grid/seed=0/low"
    assert run_name("/runs/people/mixture/round=1/model=0") == "people/mixture/round=1/model=0"


def test_a_pulse_tells_facts_and_memory_until_it_is_closed(tmp_path):
    switch_on(tmp_path, 0.02)
    pulse = Pulse(str(tmp_path), "engine-0", lambda: {"engine/tokens": 7.0})
    tail, found, until = TelemetryTail(tmp_path), [], time.monotonic() + 10
    while len(found) < 3 and time.monotonic() < until:
        found += tail.read().get("engine-0", [])
        time.sleep(0.01)
    pulse.close()
    assert found[0].values["engine/tokens"] == 7.0
    assert found[0].values["memory/host_mib"] > 5
    time.sleep(0.1)
    tail.read()
    time.sleep(0.1)
    assert tail.read() == {}


def test_a_pulse_goes_on_where_a_figure_cannot_be_had(tmp_path):
    switch_on(tmp_path, 0.02)
    calls = []

    def facts():
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("not yet")
        return {"engine/tokens": 1.0}

    pulse = Pulse(str(tmp_path), "engine-0", facts)
    tail, found, until = TelemetryTail(tmp_path), {}, time.monotonic() + 10
    while not found and time.monotonic() < until:
        found = tail.read()
        time.sleep(0.01)
    pulse.close()
    assert found["engine-0"][0].values["engine/tokens"] == 1.0


def test_memory_is_private_and_that_of_a_gone_process_is_0():
    pages = b"x" * (64 << 20)
    before = private_mib(os.getpid())
    # Fresh from the kernel: an allocator might give memory that is counted already.
    with mmap.mmap(-1, len(pages), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(pages)
        assert 60 < private_mib(os.getpid()) - before < 68
    assert private_mib(2**22 + 1) == 0.0


# ---- history -------------------------------------------------------------------------------------


def history_of(run_dir):
    history = RunHistory(run_dir, CONFIG)
    history.refresh()
    return history


def test_curves_of_steps_come_by_label_and_with_their_range(tmp_path):
    rows = [
        {"step": s, "reward/rm/mean": s / 10, "reward/gold/mean": 1.0, "reward/total/mean": 2.0,
         "reward/total/p10": 1.0, "reward/total/p90": 3.0}
        for s in (1, 2, 3)
    ]  # fmt: skip
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    history = history_of(tmp_path)
    judged = Curve(key="reward/{reward}/mean", label="{reward}", where=(("of", "judge"),))
    (line,) = history.lines(judged)
    assert (line.name, line.x, line.y) == ("rm", [1, 2, 3], [0.1, 0.2, 0.3])
    whole = Curve(key="reward/total/mean", label="all", low="reward/total/p10",
                  high="reward/total/p90")  # fmt: skip
    (line,) = history.lines(whole)
    assert (line.low, line.high) == ([1.0] * 3, [3.0] * 3)


def test_a_step_that_was_taken_again_counts_once(tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": s, "entropy": 1.0} for s in (1, 2, 3)])
    history = history_of(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "entropy": 5.0}) + "\n")
    history.refresh()
    (line,) = history.lines(Curve(key="entropy", label="entropy"))
    assert (line.x, line.y) == ([1, 2], [1.0, 5.0])


def test_a_counter_is_drawn_as_its_growth_also_over_a_restart():
    x = [0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0]
    y = [0.0, 40.0, 80.0, 120.0, 10.0, 50.0, 90.0]  # started anew between 12 and 16 s
    assert rate(x, y) == ([12.0, 24.0], [10.0, 90 / 12])


def test_live_figures_are_drawn_by_actor(tmp_path):
    for role, mib in (("engine-0", 10.0), ("engine-10", 30.0), ("engine-2", 20.0)):
        write_role(tmp_path, role, [
            {"time": 50.0 + i, "values": {"memory/host_mib": mib + i}} for i in range(4)
        ])  # fmt: skip
    history = history_of(tmp_path)
    lines = history.lines(Curve(key="memory/host_mib", label="{actor}"))
    assert [line.name for line in lines] == ["engine-0", "engine-2", "engine-10"]
    assert lines[0].y == [10.0, 11.0, 12.0, 13.0]
    drawn = figure(history, panel("Host memory", "MiB", ("memory/host_mib", "{actor}")))
    assert [name for _, name, _ in drawn.legend] == ["engine-0", "engine-2", "engine-10"]
    assert "seconds" in drawn.svg


def test_events_are_counted_by_kind(tmp_path):
    kinds = ("engine_lost", "engine_replaced", "engine_lost")
    write_jsonl(
        tmp_path / "events.jsonl", [{"time": 10.0 + i, "kind": k} for i, k in enumerate(kinds)]
    )
    lines = history_of(tmp_path).lines(Curve(key="events/{kind}", label="{kind}", is_total=True))
    assert [(line.name, line.x, line.y) for line in lines] == [
        ("engine_lost", [10.0, 12.0], [1.0, 2.0]),
        ("engine_replaced", [11.0], [1.0]),
    ]


def test_spans_tell_who_did_what_since_a_moment(tmp_path):
    write_role(tmp_path, "learner-0", [
        {"time": 10.0, "phase": "take"},
        {"time": 14.0, "phase": "update"},
        {"time": 20.0, "values": {}},
    ])  # fmt: skip
    spans = history_of(tmp_path).spans(since=12.0)
    assert [(s.phase, s.start, s.end) for s in spans] == [
        ("take", 12.0, 14.0),
        ("update", 14.0, 20.0),
    ]


def test_a_panel_without_any_of_its_figures_is_left_out(tmp_path):
    assert figure(history_of(tmp_path), panel("Entropy", "", ("entropy", "x"))) is None


def test_figures_of_steps_are_drawn_over_time_beside_live_ones(tmp_path):
    write_jsonl(
        tmp_path / "metrics.jsonl",
        [{"step": s, "policy_version": s, "unix_time": 100.0 + 4 * s} for s in (1, 2, 3)],
    )
    write_role(tmp_path, "engine-0", [
        {"time": 100.0 + i, "values": {"engine/version": i // 4}} for i in range(14)
    ])  # fmt: skip
    drawn = figure(
        history_of(tmp_path),
        panel("Weights", "", ("engine/version", "{actor}"), ("policy_version", "learner")),
    )
    assert [(name, value) for _, name, value in drawn.legend] == [
        ("engine-0", "3"),
        ("learner", "3"),
    ]


def test_what_processes_tell_over_days_is_kept_in_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(history_module, "MOST_POINTS", 100)
    monkeypatch.setattr(history_module, "MOST_CHANGES", 40)
    lines = [{"time": float(t), "values": {"memory/host_mib": float(t)}} for t in range(5000)]
    lines += [{"time": 5000.0 + t, "phase": "update"} for t in range(100)]
    write_role(tmp_path, "learner-0", lines)
    history = history_of(tmp_path)
    (line,) = history.lines(Curve(key="memory/host_mib", label="{actor}"))
    assert len(line.x) <= 100
    assert line.x == sorted(line.x)
    assert line.x[-1] == 4999.0, "the newest stays as it is"
    gaps = [b - a for a, b in pairwise(line.x)][:-1]
    assert line.x[0] == 0.0
    assert set(gaps) == {64.0}, "evenly thinned"
    assert line.y == line.x
    assert [start for start, _ in history.phases["learner-0"]][-1] == 5099.0
    assert len(history.phases["learner-0"]) <= 40
    assert history.phases_from == history.phases["learner-0"][0][0]


def test_a_history_says_whether_there_is_anything_new_to_draw(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "entropy": 2.0}\n')
    history = history_of(tmp_path)
    before = dict(history.revision)
    history.refresh()
    assert history.revision == before
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "entropy": 1.0}\n')
    history.refresh()
    assert history.revision == before | {"step": before["step"] + 1}


def test_a_curve_is_broken_where_its_process_was_gone(tmp_path):
    there = [*range(0, 200, 2), *range(2000, 2200, 2)]
    lines = [{"time": float(t), "values": {"memory/host_mib": 100.0}} for t in there]
    write_role(tmp_path, "learner-0", lines)
    drawn = figure(history_of(tmp_path), HOST_MEMORY)
    assert drawn is not None
    (path,) = re.findall(r'<path class="line c0" d="([^"]+)"', drawn.svg)
    assert path.count("M") == 2
    assert "not finite" not in drawn.svg


def test_only_what_changes_with_every_phase_is_smoothed_over_time(tmp_path):
    lines = [{"time": float(t), "values": {"memory/host_mib": 9.0 * (t % 2)}} for t in range(60)]
    write_role(tmp_path, "learner-0", lines)
    history = history_of(tmp_path)
    curve = ("memory/host_mib", "{actor}")
    plain, noisy = (
        figure(history, panel("Host memory", "MiB", curve, is_noisy=is_noisy))
        for is_noisy in (False, True)
    )
    assert plain is not None
    assert noisy is not None
    assert ('class="raw c0"' in plain.svg, 'class="raw c0"' in noisy.svg) == (False, True)
