"""What a terminal shows of a run while it goes on."""

import io
import json

import pytest
from rich.console import Console

from cluster.event_words import EventWatch, words
from cluster.events import record
from cluster.figures import History, sparkline
from cluster.live_view import where_time_goes
from cluster.progress import RunProgress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def terminal(width=80, height=24, **environment):
    environment = {"TERM": "xterm", **environment}
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, record=True,
        _environ=environment,
    )  # fmt: skip


def step(number):
    return {
        "step": number,
        "time_s": 3.0 * number,
        "reward/total/mean": 0.01 * number,
        "reward/gold/mean": 0.5,
        "kl/ref_k1": 0.02 * number,
        "entropy": 4.0,
        "length/mean": 20.0,
        "loss/policy": 1 / number,
        "tokens_per_s": 1_234_567.0,
        "time/step": 4.0,
        "time/sample": 2.0,
        "time/score": 0.4,
        "time/train": 1.0,
        "time/sync": 0.2,
        "time/idle": 0.4,
        "time/wait": 2.6,
    }


def shown(console, *, num_steps=57, run_dir=None, title="rloo"):
    """The lines of the view after some steps."""
    progress = RunProgress(200, title, console, run_dir=run_dir, clock=Clock())
    for number in range(1, num_steps + 1):
        progress.update(step(number))
    if run_dir is not None:
        record(run_dir, "engine_replaced", engine="engine-2", replaces="engine-0", after_s=7.2)
        progress._clock.now = 2.0
    console.print(progress._view())
    return console.export_text().splitlines()


def test_at_80_columns_there_is_everything(tmp_path):
    bar, *rows, time, event = shown(terminal(), run_dir=tmp_path)
    assert "step 57/200  0:02  ETA 7:09" in bar  # 143 steps of 3 s
    assert [row.split()[0] for row in rows] == [
        "reward", "gold", "KL", "entropy", "length", "loss", "speed",
    ]  # fmt: skip
    name, line, value, change = rows[0].split()
    assert (name, value, change) == ("reward", "0.570", "+0.560")
    assert line == sparkline([0.01 * number for number in range(18, 58)], 40)
    assert rows[2].split()[2:] == ["1.14", "nats", "+1.12"]
    assert time.strip() == "step 4.0 s: sample 50%, score 10%, train 25%, sync 5%, idle 10%"
    assert event.strip() == "engine-0 replaced after 7 s (0 s ago)"


@pytest.mark.parametrize("width", [120, 80, 60, 48, 36, 28, 20])
@pytest.mark.parametrize("title", ["rloo", "3/3 learning from its own judged replies"])
def test_no_line_is_longer_than_the_terminal_is_wide(width, title):
    lines = shown(terminal(width), title=title)
    assert max(map(len, lines)) <= width
    assert len(lines) == 9  # nothing was folded
    assert "step 57/200" in lines[0]
    assert [line.split()[0] for line in lines[1:8]][:3] == ["reward", "gold", "KL"]


@pytest.mark.parametrize(
    ("height", "expected"), [(24, 10), (11, 10), (10, 9), (9, 8), (5, 4), (3, 2)]
)
def test_a_short_terminal_keeps_the_bar_and_the_first_figures(height, expected, tmp_path):
    lines = shown(terminal(height=height), run_dir=tmp_path)
    assert len(lines) == expected
    assert "step 57/200" in lines[0]
    assert "reward" in lines[1]
    assert any("engine-0 replaced" in line for line in lines) == (height >= 10)


def test_of_several_losses_the_first_is_shown_and_at_the_end_nothing_is_left():
    console = terminal()
    progress = RunProgress(2, "sft", console)
    for number in (1, 2):
        progress.update({"step": number, "loss/nll": 3.0, "loss/preference": 7.0})
    console.print(progress._view())
    bar, row = console.export_text().splitlines()
    assert bar.endswith("ETA 0:00")
    assert row.split()[2] == "3"


def test_without_metrics_there_are_bar_and_status():
    console = terminal()
    progress = RunProgress(60, "sft", console)
    progress.status("starting 1 learner")
    console.print(progress._view())
    bar, status = console.export_text().splitlines()
    assert "step 0/60" in bar
    assert "ETA -:--" in bar
    assert status.strip() == "starting 1 learner"


def test_a_log_line_stands_whole_above_what_is_redrawn():
    console = terminal()
    with RunProgress(60, "rloo", console) as progress:
        progress.update(step(1))
        progress._live.refresh()
        console.print("WARNING engine-0 is replaced", highlight=False)
        progress.update(step(2))
    text = console.file.getvalue()
    # The view is erased first, from its last line up, and drawn again below.
    before, _, after = text.partition("WARNING engine-0 is replaced\n")
    assert before.endswith("\x1b[2K")
    assert before.count("step 1/60") == after.count("step 1/60") == 1
    assert "step 2/60" in after
    assert "\x1b[?25h" in after  # the cursor is shown again


def test_no_colour_is_used_where_none_is_wanted():
    assert "\x1b[36m" in drawn(terminal())
    assert "\x1b[36m" not in drawn(terminal(NO_COLOR="1"))


def drawn(console):
    with RunProgress(60, "rloo", console) as progress:
        progress.update(step(1))
    return console.file.getvalue()


def test_a_dumb_terminal_gets_plain_lines():
    text = drawn(terminal(TERM="dumb"))
    assert "rloo  step 1/60  reward 0.010  gold 0.500" in text
    assert "\x1b" not in text


def test_a_console_without_unicode_gets_other_letters():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with RunProgress(60, "rloo", console) as progress:
        progress.update(step(1))
        progress.update(step(2))
    file.flush()
    assert b"_#" in raw.getvalue()


def test_addresses_are_printed_once():
    for console in (terminal(), Console(file=io.StringIO(), width=60)):
        with RunProgress(60, "rloo", console) as progress:
            progress.links(dashboard="http://127.0.0.1:8265")
            progress.links(dashboard="http://127.0.0.1:8265", run="http://127.0.0.1:8265/attune/")
        text = console.file.getvalue()
        assert text.count("rloo  dashboard http://127.0.0.1:8265\n") == 1
        assert text.count("rloo  run http://127.0.0.1:8265/attune/\n") == 1


def test_steps_shown_at_once_and_a_second_model_do_not_spoil_the_eta():
    console, clock = Console(file=io.StringIO(), width=80), Clock()
    with RunProgress(100, "rloo", console, interval_s=0, clock=clock) as progress:
        for number in range(1, 41):  # of the run before --resume, all in one moment
            progress.update({"step": number, "time_s": 2.0 * number})
        assert console.file.getvalue().splitlines()[-1].endswith("ETA 2:00")
        for number in range(1, 12):  # another model, from its first step
            progress.update({"step": number, "time_s": 1.0 * number})
    assert console.file.getvalue().splitlines()[-1].endswith("ETA 1:29")


# Parts


def test_a_sparkline_goes_from_its_lowest_to_its_highest_value():
    assert sparkline([0.0, 1.0, 2.0, 7.0], 8) == "▁▂▃█"
    assert sparkline([9.0, 0.0, 7.0], 2) == "▁█"
    assert sparkline([3.0, 3.0], 8) == "▄▄"
    assert sparkline([0.0, float("nan"), float("inf"), 7.0], 8) == "▁  █"
    assert sparkline([float("nan")], 8) == " "
    assert sparkline([1.0], 0) == sparkline([], 8) == ""


def test_a_history_keeps_the_first_value_and_the_last_40():
    history = History()
    for value in range(100):
        history.add({"loss": float(value)})
    assert history.first["loss"] == 0
    assert history.last("loss") == [float(value) for value in range(60, 100)]
    assert history.last("none") == []


def test_in_an_asynchronous_run_the_share_of_the_learner_is_told():
    metrics = step(1) | {"time/idle": 1.0, "time/wait": 1.0, "time/train": 2.8}
    expected = "step 4.0 s: train 70%, sync 5%, waits for samples 25%"
    assert where_time_goes(metrics) == expected
    assert where_time_goes({"time/step": 2.0, "time/train": 1.5}) == "step 2.0 s: train 75%"
    assert where_time_goes({}) == ""


def test_only_events_worth_a_word_are_shown_the_last_with_its_age(tmp_path):
    clock = Clock()
    record(tmp_path, "engine_lost", engine="engine-9", reason="of the session before")
    watch = EventWatch(tmp_path, clock)
    record(tmp_path, "engine_lost", engine="engine-0", reason="no token\nfor 9 s")
    record(tmp_path, "checkpoint_saved", step=20)
    assert watch.text() == ""  # it looks once a second
    clock.now = 1.0
    assert watch.text() == "engine-0 lost: no token for 9 s (0 s ago)"
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "engine_replaced", "torn\n')
    record(tmp_path, "engine_replaced", engine="e-2", replaces="engine-0", after_s=7.4)
    clock.now = 91.0
    assert watch.text() == "engine-0 replaced after 7 s (0 s ago, 2 events)"
    clock.now = 211.0
    assert watch.text() == "engine-0 replaced after 7 s (2 min ago, 2 events)"


def test_every_event_has_words_whatever_its_facts():
    assert words({"kind": "learner_started", "attempt": 1, "version": 0}) == ""
    went_on = {"kind": "learner_started", "attempt": 2, "version": 20}
    assert words(went_on) == "learner goes on after step 20"
    assert words({"kind": "engine_lost"}) == "engine lost"
    assert words({"kind": "something_new", "x": 1}) == "something new"
    assert words(json.loads("{}")) == ""
