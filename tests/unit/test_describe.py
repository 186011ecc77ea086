"""`attune methods`: every row, on the console and as JSON."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.methods_table import KINDS, kind, listing
from configs.methods import METHODS

ROOT = Path(__file__).parents[2]


def methods(*arguments, columns="100"):
    result = CliRunner().invoke(app, ["methods", *arguments], env={"COLUMNS": columns})
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(text):
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_the_list_has_one_line_for_each_method_and_kind():
    shown = lines(methods())
    first = [line.split()[0] for line in shown if line not in KINDS]
    assert first == [row["name"] for row in listing()]
    assert sorted(first) == sorted(METHODS)
    assert [line for line in shown if line in KINDS] == list(KINDS)


def test_the_list_fits_a_console_of_100_columns_with_names_and_papers_whole():
    text = methods()
    assert max(map(len, text.splitlines())) <= 100
    rows = [line for line in lines(text) if line not in KINDS]
    assert [row for row in rows if row.split()[-1].endswith("…")] == []
    assert sum("…" in row for row in rows) <= 1
    assert any(row.startswith("dpo ") and row.endswith("2305.18290") for row in rows)
    assert any(row.startswith("cdpo ") and row.endswith("Mitchell 2023") for row in rows)


def test_a_narrow_console_cuts_only_what_a_method_does():
    rows = [line for line in lines(methods(columns="60")) if line not in KINDS]
    assert max(map(len, rows)) <= 60
    assert sum("… " in row for row in rows) > 10
    assert [row.split()[0] for row in rows] == [row["name"] for row in listing()]


def test_a_pipe_gets_whole_lines(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = CliRunner().invoke(app, ["methods"]).stdout
    assert [name for name, row in METHODS.items() if row.line not in text] == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sft", "imitation and judges"),
        ("reward_model", "imitation and judges"),
        ("raft", "imitation and judges"),
        ("grpo", "policy gradients"),
        ("dpo", "stored pairs"),
        ("kto", "stored single replies"),
        ("infonca", "lists"),
        ("online_dpo", "own replies"),
        ("selm", "own replies"),
    ],
)
def test_kinds(name, wanted):
    assert kind(name) == wanted


@pytest.mark.parametrize("name", METHODS)
def test_every_method_prints_its_tuple_loss_and_coefficient(name):
    row, told = METHODS[name], json.loads(methods(name, "--json"))
    assert {section: told[section] for section in row.settings} == row.settings
    assert tuple(told["arities"]) == row.arities
    module, _, function = told["loss"]["function"].rpartition(".")
    assert callable(getattr(import_module(module), function))
    assert told["loss"]["summary"]
    text = " ".join(methods(name, columns="400").split())
    for part in (row.line, row.paper, told["loss"]["function"], told["coefficient"]["text"]):
        assert part in text
    assert told["loss"]["summary"] in text


def test_a_method_reads_as_the_four_components():
    shown = lines(methods("dpo"))
    assert max(map(len, shown)) <= 100
    headings = [line.split()[0] for line in shown if not line.startswith(" ")]
    wanted = ["dpo", "model", "data", "feedback", "algorithm", "arity", "loss", "coefficient"]
    assert headings == wanted
    text = "\n".join(" ".join(line.split()) for line in shown)
    assert "\nmodel reference_update=frozen\ndata source=stored pairing=given\n" in text
    assert "loss.target=hard" in text
    assert "clip_low=null" in text
    assert "\narity pair or list\nloss rl.losses.rpo.rpo\n" in text
    assert "\ncoefficient ±|o|·β·σ(−βΔh)\n± + for the chosen reply, − for the rejected\n" in text


def test_a_method_without_stored_data_says_nothing_of_data():
    told = json.loads(methods("ppo", "--json"))
    assert {"model", "data", "feedback"} & told.keys() == set()
    assert told["loss"]["function"] == "rl.losses.policy.policy_objective"


def test_brackets_of_a_docstring_are_no_markup():
    assert "[(1 - eps) DPO(w, l) - eps DPO(l, w)] / (1 - 2 eps)" in methods("robust_dpo")


def test_a_method_of_the_user_s_own_needs_no_coefficient(monkeypatch):
    row = replace(METHODS["pro"], line="mine", algorithm={"loss": {"name": "lire"}})
    monkeypatch.setitem(METHODS, "mine", row)
    assert json.loads(methods("mine", "--json"))["coefficient"] is None
    assert "rl.losses.listwise.lire" in methods("mine")
    assert "coefficient" not in methods("mine")
    assert lines(methods())[lines(methods()).index("own replies") - 1].startswith("mine ")


def test_the_list_as_json():
    rows = json.loads(methods("--json"))
    assert {row["name"] for row in rows} == set(METHODS)
    assert all(set(row) == {"name", "kind", "line", "paper"} for row in rows)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("DPOO", "did you mean dpo? "), ("dr-grpo", "did you mean dr_grpo? "), ("zzz", "")],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_unknown_name_is_refused_in_one_line(name, hint, options):
    result = CliRunner().invoke(app, ["methods", name, *options])
    assert result.exit_code == 2
    assert result.stdout == ""
    wanted = f"error: {name} is not a method; {hint}`attune methods` lists them\n"
    assert result.stderr == wanted


def test_the_list_imports_nothing_heavy_and_is_quick():
    code = (
        "import sys, time\n"
        "from cluster.cli import app\n"
        "app(['methods'], standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'deepspeed', 'numpy', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert time.process_time() < 1, time.process_time()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "grpo" in done.stdout
