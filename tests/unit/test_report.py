"""The report of synthetic run directories: what it says, what it draws, and what it survives."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cluster.report import headline, write_demo_report, write_report
from tests.unit.synthetic_runs import (
    REWARDS,
    small_run,
    write_experience,
    write_jsonl,
    write_offline,
    write_online,
)
from tests.unit.watched_runs import write_failure_bundle, write_finished


class Page(HTMLParser):
    """What a reader of the page meets: headings, text, addresses; and whether tags are closed."""

    def __init__(self, html):
        super().__init__()
        self.h1, self.h2, self.addresses, self.tags, self.open = [], [], [], [], []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "action")]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h1"]:
            self.h1.append(data)
        if self.open[-1:] == ["h2"]:
            self.h2.append(data)
        if self.open[-1:] != ["style"]:
            self.text += data


def page_of(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture
def online(tmp_path):
    return write_online(tmp_path / "run")


# The sentence.


def test_headline_says_what_the_true_reward_kl_and_length_did(online):
    # Last tenth of 60 steps: 6 steps. KL there: 5.1 * mean(54..59) / 59 = 4.88.
    assert headline(online) == (
        "RLOO raised the true reward of the policy from 0.41 to 0.73 (+0.32) in 60 steps, "
        "at a KL of 4.88 nats; replies went from 21 to 26 tokens."
    )


def test_headline_prefers_the_evaluation_of_the_summary(tmp_path):
    columns = {"reward/gold/mean": [0.1, 0.2, 0.9]}
    summary = {"reward_before": {"gold": 0.30}, "reward_after": {"gold": 0.45}}
    run = small_run(tmp_path / "run", columns, rewards=REWARDS, summary=summary)
    assert "from 0.30 to 0.45 (+0.15) in 3 steps" in headline(run)


def test_headline_owns_up_to_a_fall_while_the_proxy_rose(tmp_path):
    columns = {
        "reward/gold/mean": [0.50, 0.48, 0.44, 0.41, 0.38, 0.34, 0.30],
        "reward/total/mean": [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8],
        "length/mean": [20.1, 20.2, 20.0, 20.2, 20.1, 20.3, 20.2],
    }
    assert headline(small_run(tmp_path / "run", columns, rewards=REWARDS)) == (
        "RLOO lowered the true reward of the policy from 0.50 to 0.30 (−0.20) in 7 steps, although "
        "the reward it learned from rose from 0.00 to 1.80; replies stayed at 20 tokens."
    )


def test_headline_does_not_call_noise_progress(tmp_path):
    # Jumps of +-0.1 without a trend: the end is 0.06 above the start, far inside the noise.
    columns = {"reward/total/mean": [0.50, 0.60, 0.50, 0.61, 0.49, 0.60, 0.50, 0.56]}
    assert "did not move the policy's reward measurably (from 0.50 to 0.56)" in headline(
        small_run(tmp_path / "run", columns)
    )


def test_headline_of_an_unfinished_run_counts_the_steps_it_has(tmp_path):
    run = small_run(tmp_path / "run", {"reward/total/mean": [0.1, 0.2, 0.3, 0.4]}, num_steps=60)
    assert "in the first 4 of 60 steps" in headline(run)


def test_headline_of_fine_tuning_speaks_of_the_validation_loss(tmp_path):
    # 1.25 + 2.65 e^-0.05 = 3.77 at step 1; 1.25 + 2.65 e^-5 = 1.27 at step 100.
    assert headline(write_offline(tmp_path / "sft", "sft")) == (
        "Supervised fine-tuning lowered the validation loss from 3.77 to 1.27 nats per token "
        "(−2.50) in 100 steps."
    )


def test_headline_of_a_reward_model_speaks_of_held_out_pairs(tmp_path):
    assert headline(write_offline(tmp_path / "rm", "reward_model")) == (
        "The reward model orders 74% of the held-out pairs as their labels do, after 51% at the "
        "start (chance is 50%), in 100 steps."
    )


def test_headline_mentions_overfitting(tmp_path):
    columns = {"validation/loss": [3.0, 1.5, 1.2, 1.4, 1.7]}
    assert headline(small_run(tmp_path / "run", columns, method="sft")).endswith(
        "; the validation loss was lowest, 1.20, at step 3 and rose since."
    )


# The page.


def test_the_page_opens_with_the_headline(online):
    page = page_of(write_report(online))
    assert page.h1 == [headline(online)]
    assert "60 of 60" in page.text
    assert "2.60.0" in page.text


def test_the_page_needs_nothing_from_outside(online):
    html = write_report(online).read_text(encoding="utf-8")
    assert Page(html).addresses == []
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)


def test_what_models_wrote_cannot_act_on_the_page(online):
    page = page_of(write_report(online))
    assert "script" not in page.tags
    assert "<script>alert('prompt')</script>" in page.text
    assert "I am sorry & cannot help with <b>that</b>." in page.text


def test_every_measured_number_has_a_chart(online):
    rows = [json.loads(line) for line in (online / "metrics.jsonl").read_text().splitlines()]
    rows[5]["odd/metric"] = 3.0
    write_jsonl(online / "metrics.jsonl", rows)
    html = write_report(online).read_text(encoding="utf-8")
    for words in (
        "True reward",
        "Parts of the rewards",
        "KL to the reference",
        "Entropy",
        "Gradient norm",
    ):
        assert f"<b>{words}</b>" in html
    for rest in ("correction/mean", "ratio/mean", "reward/total/std", "odd/metric"):
        assert f"<b>{rest}</b>" in html


def test_what_feedback_decided_is_drawn_with_the_rewards_by_name(tmp_path):
    metrics = {
        "feedback/decides/ada": [1.0, 0.0, 0.0],
        "feedback/decides/bruno": [0.0, 1.0, 1.0],
        "feedback/slack/brief": [-0.2, -0.1, 0.05],
        "feedback/kept_fraction": [0.5, 0.75, 0.75],
        "labels": [16, 24, 16],
    }
    html = write_report(small_run(tmp_path / "run", metrics)).read_text(encoding="utf-8")
    for title in ("Which reward decides", "Room above the bounds", "Labels"):
        assert f"<b>{title}</b>" in html
    assert "Multipliers of the constraints" not in html
    assert "step 2\nada: 0\nbruno: 1" in html
    assert "<b>feedback/" not in html, "a metric is drawn once more under its bare name"


def test_hover_titles_carry_the_values_of_a_step(tmp_path):
    run = small_run(tmp_path / "run", {"entropy": [2.5, 1.25, 0.75]})
    html = write_report(run).read_text(encoding="utf-8")
    assert "<title>step 2\nentropy: 1.25</title>" in html


def test_a_dead_run_with_a_torn_last_line_is_reported(online):
    (online / "summary.json").unlink()
    lines = (online / "metrics.jsonl").read_text().splitlines()[:23]
    torn = "\n".join([*lines, lines[-1][: len(lines[-1]) // 2]])
    (online / "metrics.jsonl").write_text(torn)
    page = page_of(write_report(online))
    assert "in the first 23 of 60 steps" in page.h1[0]
    assert "The run has not finished: 23 of 60 steps are on record." in page.text
    assert "metrics.jsonl: 1 line is torn and left out." in page.text


def test_an_empty_run_directory_is_reported(tmp_path):
    assert page_of(write_report(tmp_path)).h1 == [
        "RUN wrote no learner step: there is nothing to report yet."
    ]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds none of run/"):
        write_demo_report(tmp_path)


def test_a_config_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(ValueError, match=r"config\.yaml: not YAML"):
        headline(tmp_path)


def test_a_step_that_a_resumed_run_repeated_counts_once(tmp_path):
    run = small_run(tmp_path / "run", {"reward/total/mean": [0.1, 0.2, 0.3]})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "reward/total/mean": 0.7}) + "\n")
    assert "from 0.10 to 0.70 (+0.60) in 3 steps" in headline(run)


def test_values_that_are_not_finite_leave_a_gap_and_a_warning(tmp_path):
    run = small_run(tmp_path / "run", {"grad_norm": [1.0, math.nan, math.inf, 2.0]})
    html = write_report(run).read_text(encoding="utf-8")
    assert "2 values are not finite." in html
    drawn = re.findall(r'd="(M[^"]*)"|cx="([^"]*)"|points="([^"]*)"', html)
    assert not re.search("nan|inf", str(drawn))


def test_samples_come_from_the_experience_of_the_first_and_last_step(tmp_path):
    run = small_run(tmp_path / "run", {"reward/total/mean": [0.1, 0.2, 0.3]})
    first = [
        {"prompt_row": 7, "sample": 1, "prompt": "shared", "reply": "second sample", "score": 0.9},
        {"prompt_row": 7, "sample": 0, "prompt": "shared", "reply": "old words", "score": 0.1},
        {"prompt_row": 8, "sample": 0, "prompt": "only early", "reply": "early", "score": 0.2},
    ]
    last = [
        {"prompt_row": 7, "sample": 0, "prompt": "shared", "reply": "new words", "score": 0.8},
        {"prompt_row": 9, "sample": 0, "prompt": "only late", "reply": "late", "score": 0.3},
    ]
    middle = [{"prompt_row": 7, "sample": 0, "prompt": "shared", "reply": "middle", "score": 0.5}]
    rewards = {"rewards": [("rm", 0.25)]}
    for step, rows in ((2, middle), (10, last), (1, first)):
        write_experience(run, step, [row | rewards for row in rows])
    text = page_of(write_report(run)).text
    for words in ("shared", "old words", "new words", "only early", "only late", "rm 0.25"):
        assert words in text
    assert "middle" not in text
    assert "second sample" not in text


def test_a_torn_experience_file_falls_back_to_the_step_before(tmp_path):
    run = small_run(tmp_path / "run", {"reward/total/mean": [0.1, 0.2, 0.3]})
    row = {"prompt_row": 1, "sample": 0, "prompt": "p", "score": 0.5, "rewards": []}
    for step, reply in ((1, "from step one"), (2, "from step two"), (3, "lost")):
        write_experience(run, step, [row | {"reply": reply}])
    file = run / "experience" / "step=3" / "part-0.parquet"
    file.write_bytes(file.read_bytes()[:200])
    text = page_of(write_report(run)).text
    assert "from step one" in text
    assert "from step two" in text
    assert "step=3/part-0.parquet: torn and left out." in text


def test_replies_of_a_single_step_are_not_sold_as_before_and_after(tmp_path):
    run = small_run(tmp_path / "run", {"reward/total/mean": [0.1, 0.2]})
    row = {"prompt_row": 1, "sample": 0, "prompt": "p", "score": 0.5, "rewards": []}
    write_experience(run, 1, [row | {"reply": "lonely"}])
    assert "lonely" not in page_of(write_report(run)).text


def test_a_demo_page_leads_with_the_online_run_and_ends_with_fine_tuning(tmp_path):
    write_online(tmp_path / "run")
    write_offline(tmp_path / "sft", "sft")
    write_offline(tmp_path / "reward_model", "reward_model")
    path = write_demo_report(tmp_path)
    page = page_of(path)
    assert path == tmp_path / "report.html"
    assert page.h1 == [headline(tmp_path / "run")]
    told = [page.text.index(headline(tmp_path / name)) for name in ("run", "reward_model", "sft")]
    assert told == sorted(told)


def test_a_long_run_does_not_grow_the_page(tmp_path):
    values = list(np.linspace(0, 1, 5000))
    long = write_report(small_run(tmp_path / "long", {"entropy": values}))
    short = write_report(small_run(tmp_path / "short", {"entropy": values[:160]}))
    assert long.stat().st_size < 1.1 * short.stat().st_size


def test_the_report_is_built_without_the_heavy_libraries():
    code = (
        "import sys, cluster.report, cluster.progress, rl.statistics;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'vllm', 'deepspeed')))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_report_shows_who_did_what_when_and_what_failed(tmp_path):
    run = write_finished(tmp_path / "run", 10)
    write_failure_bundle(run)
    html = write_report(run).read_text(encoding="utf-8")
    page = page_of(run / "report.html")
    assert page.h2[-3:] == ["Who did what when", "Faults and repairs", "Configuration and versions"]
    for words in ("learner-0", "update", "engine_lost", "a GPU ran out", "lower the batch"):
        assert words in page.text
    assert "<title>engine-0: sample\n1 s from " in html
    assert "script" not in page.tags


def test_a_report_without_telemetry_or_events_leaves_them_out(online):
    assert "Who did what when" not in page_of(write_report(online)).h2
    assert "Faults and repairs" not in page_of(write_report(online)).h2
