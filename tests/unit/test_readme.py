"""The README's examples are read by the code they are examples for."""

import json
import re
from pathlib import Path

import pytest

from actors.reward import load_function
from cluster.commands import COMMANDS
from configs.load import load_config
from configs.methods import METHODS
from rl.data.layouts import detect
from rl.data.rows import Row

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_row_shown_has_the_layout_that_the_text_gives_it():
    kinds = [
        [detect(Row(json.loads(line), "README.md")).kind for line in block.splitlines()]
        for block in blocks("json")
    ]
    assert kinds == [["prompts"] * 2, ["demonstrations"] * 2, ["pairs"] * 2]


def test_the_reward_function_shown_can_be_used_as_it_stands(tmp_path):
    (block,) = blocks("python")
    (tmp_path / "judge.py").write_text(block)
    reward = load_function(str(tmp_path / "judge.py"))
    # Right and polite in three words, wrong and curt in one.
    scores = reward(["q", "q"], ["please take ten", "no"], [{"answer": "ten"}, {"answer": "six"}])
    assert scores == pytest.approx([1.0 + 0.2 - 0.03, -0.01])


def test_the_overrides_shown_are_settings():
    command = next(block for block in blocks("bash") if "rule.kind" in block)
    overrides = [word for word in command.replace("\\\n", " ").split() if "=" in word]
    config = load_config(ROOT / "configs" / "rloo.yaml", overrides)
    assert list(config.feedback.rewards) == ["rule"]


def test_files_and_links_named_exist():
    files = re.findall(r"`((?:configs|docs|cluster|actors)/[\w./]+)`", TEXT)
    links = [link for link in re.findall(r"\]\(([\w./]+)\)", TEXT) if "images/" not in link]
    assert len(files) + len(links) >= 9
    assert [name for name in files + links if not (ROOT / name).exists()] == []


def test_the_commands_of_the_recipes_train_what_the_files_say():
    rows = re.findall(r"\| `(configs/\w+\.yaml)` \| `attune ([\w-]+)` \|", TEXT)
    assert len(rows) == len(list((ROOT / "configs").glob("*.yaml")))
    for file, command in rows:
        assert COMMANDS.get(load_config(ROOT / file).algorithm.name, "run") == command


def test_methods_named_are_rows_of_the_table():
    start = TEXT.index("## Methods")
    table = TEXT[start : TEXT.index("`attune methods NAME` shows a row", start)]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) >= 30
    assert [name for name in named if name not in METHODS] == []
