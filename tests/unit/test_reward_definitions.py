"""A run and a reward service compare what their rewards are made of."""

import os
from pathlib import Path

import pytest

from cluster.serve.checks import check_service_inputs
from cluster.serve.client import whole_groups
from cluster.serve.definitions import PIECE, PIECES, definition, difference, digest
from cluster.serve.token import VARIABLE, read_token
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import RewardConfig, RunConfig
from tests.unit.test_reward_wire import rollout


def function(path: Path, **settings: float) -> RewardConfig:
    return RewardConfig.model_validate({"kind": "function", "path": str(path), **settings})


def test_weight_and_folder_do_not_count_and_contents_do(tmp_path: Path) -> None:
    one, two = tmp_path / "a.py", tmp_path / "b.py"
    one.write_text("def reward(p, r, rows): return [0.0] * len(r)")
    two.write_text(one.read_text())
    own = definition(function(one, weight=2.0), "float32")
    assert difference(own, definition(function(two), "float32")) is None
    two.write_text("def reward(p, r, rows): return [1.0] * len(r)")
    line = difference(own, definition(function(two), "float32"))
    assert line == "path has other contents there"
    other = definition(RewardConfig.model_validate({"kind": "gold"}), "float32")
    assert difference(own, other) == "kind is function, and gold there"


def test_a_reward_whose_files_are_not_here_is_compared_by_its_settings(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model.safetensors").write_bytes(b"weights")

    def implicit(folder: str, beta: float, dtype: str) -> dict:
        path = str(tmp_path / folder)
        settings = {"kind": "implicit", "path": path, "reference": path, "beta": beta}
        return definition(RewardConfig.model_validate(settings), dtype)

    there = implicit("there", 0.1, "float32")
    assert difference(implicit("not_here", 0.1, "float32"), there) is None
    assert difference(implicit("not_here", 0.2, "float32"), there) == "beta is 0.2, and 0.1 there"
    assert "dtype" in str(difference(implicit("not_here", 0.1, "bfloat16"), there))


def test_other_weights_of_the_same_size_have_another_digest(tmp_path: Path) -> None:
    size = 3 * PIECE * PIECES
    weights = bytearray(os.urandom(size))
    file = tmp_path / "model.safetensors"
    file.write_bytes(weights)
    before = digest(tmp_path)
    assert before == digest(tmp_path)
    for start in range(0, size, PIECE):  # as training does: everywhere a little
        weights[start] ^= 1
        weights[start + PIECE - 1] ^= 1
    file.write_bytes(weights)
    assert digest(tmp_path) != before
    assert digest(tmp_path / "none") is None


def run(tmp_path: Path, *overrides: str) -> RunConfig:
    (tmp_path / "judge.py").write_text("def reward(p, r, rows): return [0.0] * len(r)")
    return load_config(
        None,
        [
            "model.path=none",
            "data.train=none",
            "data.samples_per_prompt=2",
            "feedback.rewards.judge.kind=function",
            f"feedback.rewards.judge.path={tmp_path / 'judge.py'}",
            "algorithm.name=rloo",
            "algorithm.num_steps=1",
            f"cluster.run_dir={tmp_path / 'run'}",
            *overrides,
        ],
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["feedback.service=localhost:8100"], "feedback.service is localhost:8100: give"),
        (["feedback.service=http://a:1/v1/score"], "address of a reward service alone"),
        (["feedback.service=http://user:pw@host"], "address of a reward service alone"),
        (["cluster.reward_service.min_replicas=3"], "max_replicas=1 is less than min_replicas=3"),
    ],
)
def test_settings_that_make_no_service_are_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        run(tmp_path, *overrides)
    assert message in str(refusal.value)


def test_a_run_without_fresh_replies_has_no_use_for_a_service(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"feedback\.service has no meaning .*=sft"):
        load_config(
            None,
            [
                "model.path=none",
                "data.train=none",
                "algorithm.name=sft",
                "algorithm.num_steps=1",
                f"cluster.run_dir={tmp_path}",
                "feedback.service=http://localhost:8100",
            ],
        )


def test_a_service_beyond_loopback_needs_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    open_config = run(tmp_path, "cluster.reward_service.host=0.0.0.0", "cluster.address=auto")
    with pytest.raises(ConfigError, match=f"needs a token: set {VARIABLE}"):
        check_service_inputs(open_config)
    assert check_service_inputs(run(tmp_path, "cluster.address=auto")) is None
    monkeypatch.setenv(VARIABLE, "word")
    assert check_service_inputs(open_config) == "word"


def test_a_token_file_holds_one_word(tmp_path: Path) -> None:
    file = tmp_path / "token"
    config = run(tmp_path, f"cluster.reward_service.token_file={file}")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(config)
    for text in ("", "two words\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="holds no token"):
            read_token(config)
    file.write_text("word\n")
    assert read_token(config) == "word"


def test_a_reward_over_several_processes_cannot_be_served(tmp_path: Path) -> None:
    config = run(tmp_path, "cluster.reward.num_workers=2")
    with pytest.raises(ConfigError, match=r"cluster\.reward\.num_workers=2"):
        check_service_inputs(config)


def test_the_replies_to_a_prompt_travel_in_one_request() -> None:
    rollouts = [rollout("x", group) for group in (0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 2)]
    parts = whole_groups(rollouts, 4)
    assert parts == [[0, 1, 2, 3], [4, 5, 12], [6, 7, 8, 9, 10, 11]]
