"""Wrong input through the public command: one line, exit code 2, before anything is started."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from configs.load import to_yaml
from tests.integration.loop import tiny_run


def run(config_file: Path, *overrides: str) -> tuple[int, str]:
    """Exit code and everything printed, in this process: a refusal starts nothing."""
    result = CliRunner().invoke(app, ["run", str(config_file), *overrides])
    return result.exit_code, result.output


@pytest.fixture
def config_file(world_model: Path, world_prompts: Path, tmp_path: Path) -> Path:
    """A run that would be fine, on a copy of the model that a test may break."""
    shutil.copytree(world_model, tmp_path / "model")
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(tiny_run(tmp_path / "model", world_prompts, tmp_path / "run")))
    return file


def refused(output: tuple[int, str], *parts: str) -> None:
    code, text = output
    assert code == 2, text
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in text, text


def test_a_misspelt_key_is_told_its_nearest_name(config_file: Path) -> None:
    refused(run(config_file, "data.promts_per_step=4"), "data.prompts_per_step")


def test_contradictory_batch_sizes_are_refused(config_file: Path) -> None:
    refused(run(config_file, "algorithm.num_minibatches=3"), "num_minibatches")


def test_a_missing_model_folder_is_named(config_file: Path, tmp_path: Path) -> None:
    refused(run(config_file, f"model.path={tmp_path}/nowhere"), "model.path", "nowhere")


def test_half_written_weights_are_found(config_file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(run(config_file), "model.path", "model.safetensors")


@pytest.mark.parametrize("token", ["pad_token", "eos_token"])
def test_a_tokenizer_without_pad_or_eos_is_refused(
    config_file: Path, tmp_path: Path, token: str
) -> None:
    file = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings[token]
    file.write_text(json.dumps(settings))
    refused(
        run(config_file), token.removesuffix("_token").upper() if token == "eos_token" else "pad"
    )


def test_a_bad_json_line_is_named_by_its_number(config_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": \n')
    refused(run(config_file, f"data.train={data}"), "rows.jsonl", "line 3")


def test_a_corrupt_parquet_and_a_corrupt_gzip_are_refused(
    config_file: Path, tmp_path: Path
) -> None:
    parquet = tmp_path / "rows.parquet"
    parquet.write_bytes(b"PAR1 this is no table PAR1")
    refused(run(config_file, f"data.train={parquet}"), "rows.parquet")
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 500)[:-20])
    refused(run(config_file, f"data.train={zipped}"), "rows.jsonl.gz")


def test_a_machine_without_a_compiler_is_refused(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused(run(config_file), "compiler", "g++")


def test_empty_data_is_refused(config_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("")
    refused(run(config_file, f"data.train={data}"), "rows.jsonl")


def test_a_prompt_longer_than_the_context_is_named_by_its_row(
    config_file: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "where is it?"}, {"prompt": "where " * 300}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(run(config_file, f"data.train={data}"), "line 2", "data.overlong")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file"),
        ("def other(): ...", "has no function reward"),
        ("def reward(:", "SyntaxError"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
    ],
)
def test_a_reward_file_that_cannot_be_used_is_refused(
    config_file: Path, tmp_path: Path, text: str | None, expected: str
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    refused(run(config_file, f"feedback.rewards.judge.path={file}"), "mine.py", expected)


def test_a_run_folder_that_cannot_be_written_is_refused(config_file: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    refused(run(config_file, f"cluster.run_dir={blocker}/run"), "cluster.run_dir")


def test_a_folder_that_holds_a_run_is_refused_and_nothing_in_it_is_lost(
    config_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("mine: 1\n")
    refused(run(config_file), "already holds a run", "--resume")
    assert (folder / "config.yaml").read_text() == "mine: 1\n"


def test_resuming_with_other_settings_is_refused_and_names_the_first(
    config_file: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "run" / "config.yaml"
    stored.parent.mkdir()
    stored.write_text(config_file.read_text())
    refused(run(config_file, "--resume", "data.seed=7"), "data.seed", "7", "began with")
    assert stored.read_text() == config_file.read_text()


def test_a_run_inside_another_run_is_refused(config_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "logs").mkdir(parents=True)
    (other / "config.yaml").write_text("mine: 1\n")
    refused(run(config_file, f"cluster.run_dir={other}/inner"), "cluster.run_dir", "another run")


def test_an_address_where_no_cluster_is_is_refused(config_file: Path, tmp_path: Path) -> None:
    refused(run(config_file, "cluster.address=127.0.0.1:9"), "cluster.address", "nothing answers")
    refused(run(config_file, "cluster.address=ray://127.0.0.1:10001"), "cluster.address", "ray://")
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_refused_by_the_plan(config_file: Path) -> None:
    refused(run(config_file, "cluster.memory_gib=1"), "GiB")


def test_each_command_trains_what_its_name_says() -> None:
    recipes = Path(__file__).parents[2] / "configs"
    refused(run(recipes / "sft.yaml"), "attune sft")


def test_help_and_dry_run_answer_within_two_seconds_without_torch(config_file: Path) -> None:
    attune = str(Path(sys.executable).with_name("attune"))
    for arguments in (["--help"], ["run", str(config_file), "--dry-run"]):
        children = os.times().children_user + os.times().children_system
        result = subprocess.run([attune, *arguments], capture_output=True, text=True, check=True)
        used = os.times().children_user + os.times().children_system - children
        assert used < 2, f"{arguments} took {used:.1f} CPU seconds"
        assert result.stdout
    code = "import sys, cluster.cli; assert not {'torch', 'ray', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
