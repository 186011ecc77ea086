"""What the console shows of a run, on a terminal and in a pipe."""

import io
import logging
import warnings

import pytest
from rich.console import Console
from rich.logging import RichHandler

from cluster.progress import RunProgress, quiet_logs

METRICS = {
    "reward/total/mean": 1.25,
    "reward/gold/mean": 0.5,
    "kl/ref_k1": 2.0,
    "length/mean": 21.0,
    "tokens_per_s": 1234.4,
    "loss/policy": 0.125,
}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=60)


def text_of(console):
    return console.file.getvalue()


def lines_of(console):
    return text_of(console).splitlines()


def test_a_plain_line_tells_step_reward_kl_length_loss_and_speed():
    console = plain_console()
    with RunProgress(60, "RLOO", console, clock=Clock()) as progress:
        progress.update({"step": 1, **METRICS})
    assert lines_of(console) == [
        "RLOO  step 1/60  reward 1.250  gold 0.500  KL 2.00 nats  length 21.0 tokens  loss 0.125  "
        "1,234 tokens/s"
    ]


def test_plain_lines_come_for_the_first_and_last_step_and_every_ten_seconds():
    console, clock = plain_console(), Clock()
    with RunProgress(30, "PPO", console, clock=clock) as progress:
        for step in range(1, 31):
            clock.now = 1.0 * step
            progress.update({"step": step})
    steps = [line.split("  ")[1] for line in lines_of(console)]
    assert steps == ["step 1/30", "step 11/30", "step 21/30", "step 30/30"]


def test_the_eta_is_the_pace_since_the_first_step():
    console, clock = plain_console(), Clock()
    with RunProgress(41, "PPO", console, clock=clock) as progress:
        clock.now = 500.0  # a slow start does not count
        progress.update({"step": 1})
        clock.now = 530.0  # 10 steps in 30 s: 30 more take 90 s
        progress.update({"step": 11})
    assert lines_of(console)[-1].endswith("ETA 1:30")


def test_a_run_that_stops_early_still_prints_its_last_step():
    console = plain_console()

    def run():
        with RunProgress(60, "RLOO", console, clock=Clock()) as progress:
            progress.update({"step": 1})
            progress.update({"step": 2})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert [line.split("  ")[1] for line in lines_of(console)] == ["step 1/60", "step 2/60"]


def test_a_status_is_told_once_and_not_read_as_markup():
    console = plain_console()
    with RunProgress(60, "RLOO", console) as progress:
        progress.status("starting 2 engines [cpu]")
        progress.status("starting 2 engines [cpu]")
    assert lines_of(console) == ["RLOO  starting 2 engines [cpu]"]


def test_a_terminal_gets_one_bar_that_is_redrawn():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=140, _environ={"TERM": "xterm"})
    with RunProgress(60, "RLOO", console) as progress:
        progress.status("starting 2 engines ...")
        progress.update({"step": 12, **METRICS})
    text = output.getvalue()
    assert "12/60" in text
    assert "gold" in text
    assert "0.500" in text
    assert "\x1b[" in text
    last_frame = text.rsplit("\x1b[1A", 1)[-1]
    assert "starting" not in last_frame


def test_metrics_that_come_now_and_then_stay_on_view():
    console, clock = plain_console(), Clock()
    with RunProgress(3, "SFT", console, clock=clock, interval_s=0) as progress:
        progress.update({"step": 1, "loss/nll": 3.0, "validation/accuracy": 0.5})
        progress.update({"step": 2, "loss/nll": 2.0})
    assert lines_of(console)[-1] == "SFT  step 2/3  accuracy 50.0%  loss 2  ETA 0:00"


@pytest.fixture
def loggers():
    """The root logger and a library's, put back afterwards."""
    root, library = logging.getLogger(), logging.getLogger("loud_library")
    handlers, level = list(root.handlers), root.level
    yield library
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    logging.captureWarnings(False)


def test_all_logs_reach_the_file_and_only_our_warnings_the_console(tmp_path, loggers):
    console, own_stream = plain_console(), io.StringIO()
    loggers.addHandler(logging.StreamHandler(own_stream))
    loggers.propagate = False
    quiet_logs(tmp_path / "logs" / "driver.log", console)
    loggers.error("library error")
    logging.getLogger("cluster.fleet").info("our info")
    logging.getLogger("cluster.fleet").warning("our warning")
    warnings.warn("python warning", stacklevel=1)
    written = (tmp_path / "logs" / "driver.log").read_text()
    for words in ("library error", "our info", "our warning", "python warning"):
        assert words in written
    shown = text_of(console)
    assert "our warning" in shown
    assert "library error" not in shown
    assert "our info" not in shown
    assert own_stream.getvalue() == ""


def test_a_second_call_moves_the_logs_to_the_new_file(tmp_path, loggers):
    quiet_logs(tmp_path / "one.log", plain_console())
    quiet_logs(tmp_path / "two.log", plain_console())
    logging.getLogger("rl").warning("late words")
    assert "late words" not in (tmp_path / "one.log").read_text()
    assert (tmp_path / "two.log").read_text().count("late words") == 1


def test_bar_and_log_lines_share_one_console(tmp_path, loggers):
    quiet_logs(tmp_path / "driver.log")
    handlers = {handler.get_name(): handler for handler in logging.getLogger().handlers}
    to_console = handlers["attune-console"]
    assert isinstance(to_console, RichHandler)
    assert to_console.console is RunProgress(1, "PPO").console
