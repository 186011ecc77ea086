"""`attune inspect RUN --step, --group, --sample, --worst, --best`: what the terminal is given."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.exits import run_app
from cluster.inspect_samples import printable
from tests.unit.made_up_samples import file_of, reply, score_of, stored, write_run, write_step


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", 4, data={"pairing": "best_worst"})


def inspect(run_dir, *options):
    return CliRunner().invoke(app, ["inspect", str(run_dir), *options])


def shown(run_dir, *options):
    result = inspect(run_dir, *options)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert max(len(line) for line in lines if str(run_dir) not in line) <= 100
    return result.output


def as_json(run_dir, *options):
    result = inspect(run_dir, *options, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_step_lists_its_groups_with_scores_and_rewards(run_dir):
    text = shown(run_dir, "--step", "2")
    assert "step 2: 2 groups, 6 samples" in text
    # Group 2: scores -0.25, 0.5, 1.25 and 2/1024; gold is half of a score.
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["2"]]
    assert line.split()[:8] == ["2", "2", "3", "1.252", "0.502", "-0.248", "0.251", "Question"]
    found = as_json(run_dir, "--step", "2")
    assert [group["group_id"] for group in found["groups"]] == [2, 3]
    assert found["groups"][0]["samples"] == ["2-2-2", "2-2-1", "2-2-0"]


def test_a_group_shows_all_replies_best_first_and_who_beat_whom(run_dir):
    text = shown(run_dir, "--group", "4")
    heads = [line for line in text.splitlines() if line.startswith("3-4-")]
    assert [head.split()[0] for head in heads] == ["3-4-1", "3-4-0", "3-4-2"]
    assert "used by step 3" in text
    assert "beats     2 (by sample)" in text
    assert "Straße und Ärger" in text
    assert as_json(run_dir, "--group", "4", "--step", "3") == as_json(run_dir, "--group", "4")
    assert as_json(run_dir, "--group", "4")["group"]["beats"] == [[1, 2]]


def test_a_sample_shows_its_tokens_and_its_lineage(run_dir):
    text = shown(run_dir, "--sample", "4-6-2")
    for part in (
        "Reply 2 of group 6.", "row 0 of", "prompts.jsonl", "engine-0", "seed      602, attempt 1",
        "version   1: tokens 0 to 0", "version   3: tokens 1 to 3", "not kept",
        "used at step 4: 3 samples", "reward/total/mean 0.25", "gold/polite 2.000",
    ):  # fmt: skip
        assert part in text
    last = text.splitlines()[-1].split()
    assert last[:2] == ["3", "13"]
    assert last[2:6] == ["-4.000", "-0.750", "-0.500", "-0.250"]
    assert last[-1] == "3"
    assert as_json(run_dir, "--sample", "4-6-2")["sample"]["tokens"][3]["kl"] == -0.25


@pytest.mark.parametrize("option", ["--worst", "--best"])
def test_the_worst_and_the_best_are_told_by_score(run_dir, option):
    scores = sorted(
        (score_of(row["group_id"], row["sample"]) for row in stored(run_dir)),
        reverse=option == "--best",
    )
    found = as_json(run_dir, option, "3")["samples"]
    assert [one["score"] for one in found] == scores[:3]
    assert all(one["lineage"]["ledger"]["status"] == "used" for one in found)
    text = shown(run_dir, option, "3")
    assert [line.split()[1] for line in text.splitlines() if line.startswith("sample ")] == [
        one["id"] for one in found
    ]
    of_step = as_json(run_dir, option, "99", "--step", "2")["samples"]
    assert {one["lineage"]["step"] for one in of_step} == {2}
    assert len(of_step) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sample", "7"], "'7' names no sample; give STEP-GROUP-SAMPLE"),
        (["--sample", "1-0-0", "--step", "1"], "--sample and --step ask for different things"),
        (["--group", "1", "--best", "2"], "--group and --best ask for different things"),
        (["--best", "1", "--worst", "1"], "--worst and --best ask for different things"),
        (["--best", "0"], "--best 0: give a number from 1 to 1000"),
        (["--worst", "5000"], "--worst 5000: give a number from 1 to 1000"),
        (["--step", "77"], "stored no samples of step 77; its last step is 4"),
        (["--step", "77", "--worst", "2"], "stored no samples of step 77"),
        (["--group", "77"], "stored no samples of a group 77"),
        (["--step", "1", "--group", "7"], "step 1 of"),
        (["--failure", "--best", "1"], "--failure shows no samples"),
        (["--step", "two"], "'--step': Input should be a valid integer"),
        (["--step", "-1"], "'--step': Input should be greater than or equal to 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    run_dir, options, said, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["attune", "inspect", str(run_dir), *options])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    output = capsys.readouterr()
    assert ended.value.code == 2
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_a_folder_without_samples_says_so(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    result = inspect(tmp_path, "--best", "1")
    assert result.exit_code == 2
    assert "holds no samples" in result.output
    result = inspect(tmp_path / "nowhere", "--best", "1")
    assert "holds no run" in result.output


def test_long_replies_are_wrapped_and_cannot_steer_the_terminal(tmp_path):
    run_dir = write_run(tmp_path / "run", 1)
    text = "word " * 100 + "\x1b[2J\x07 \u202eleft\n\n  second\tparagraph " + "x" * 150
    write_step(run_dir, 2, [[reply(2, 2, 0, text=text)]])
    for options in (["--sample", "2-2-0"], ["--group", "2"], ["--step", "2", "--best", "1"]):
        found = shown(run_dir, *options)
        assert "\x1b" not in found
        assert "\u202e" not in found
        assert re.search("\n +second +paragraph x", found), "lines stay lines"
    assert printable("a\tb\n\x9b") == "a\N{REPLACEMENT CHARACTER}b\n\N{REPLACEMENT CHARACTER}"


def test_what_is_torn_is_named_below(tmp_path):
    run_dir = write_run(tmp_path / "run", 3)
    file_of(run_dir, 2).write_bytes(b"PAR1 half of it")
    text = shown(run_dir, "--best", "1")
    assert "note      experience/step=000002/rank=0.parquet: torn and left out." in text
    result = inspect(run_dir, "--step", "2")
    assert result.exit_code == 2
    assert "torn" in result.output


def test_samples_are_found_without_the_heavy_libraries(run_dir):
    code = (
        "import sys; from cluster.rollouts.browser import RolloutBrowser;"
        "from cluster.inspect_samples import Wanted, samples_to_text; from pathlib import Path;"
        "samples_to_text(Path(sys.argv[1]), Wanted(best=2), as_json=False);"
        "sys.exit(any(n in sys.modules for n in ('ray', 'torch', 'vllm', 'transformers')))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(run_dir)]
    assert subprocess.run(command, cwd=root, check=False).returncode == 0
