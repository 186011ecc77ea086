"""When an elastic fleet grows and shrinks, by a clock that the test turns."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.scaling import Sizing, asked
from configs.cluster import RolloutPlacement
from configs.load import load_config, to_yaml


def sizing(**settings: float) -> Sizing:
    given = {"min_engines": 1, "max_engines": 3, "groups_per_engine": 8, "idle_s": 10.0} | settings
    return Sizing(placement=RolloutPlacement(**given))


def test_it_grows_by_one_while_groups_wait_and_the_learner_does():
    fleet = sizing()
    assert fleet.wanted(0.0, 1, 9, True) == 2
    assert fleet.wanted(0.0, 1, 8, True) == 1, "no more than each engine should have"
    assert fleet.wanted(0.0, 1, 9, False) == 1, "the learner has enough to do"
    assert fleet.wanted(0.0, 3, 900, True) == 3, "the limit"


def test_it_shrinks_by_one_after_it_was_idle_for_long_enough():
    fleet = sizing()
    assert fleet.wanted(0.0, 3, 16, False) == 3
    assert fleet.wanted(9.0, 3, 16, False) == 3
    assert fleet.wanted(10.0, 3, 16, False) == 2
    assert fleet.wanted(11.0, 2, 0, False) == 2, "the next one waits as long again"
    assert fleet.wanted(21.0, 2, 0, False) == 1
    assert fleet.wanted(99.0, 1, 0, False) == 1, "the limit"


def test_work_in_between_begins_the_wait_anew():
    fleet = sizing()
    assert fleet.wanted(0.0, 2, 0, True) == 2
    assert fleet.wanted(9.0, 2, 9, True) == 2, "one engine could not do it"
    assert fleet.wanted(12.0, 2, 0, True) == 2
    assert fleet.wanted(22.0, 2, 0, True) == 1


def test_a_fleet_without_bounds_is_not_elastic():
    assert not Sizing(placement=RolloutPlacement(num_engines=4)).is_elastic
    assert sizing().is_elastic


# ---- by hand -------------------------------------------------------------------------------------


def test_what_a_person_asks_for_goes_before_the_work():
    fleet = sizing()
    assert fleet.wanted(0.0, 1, 0, False, asked=3) == 2, "one at a time"
    assert fleet.wanted(0.0, 2, 0, False, asked=3) == 3
    assert fleet.wanted(0.0, 3, 900, True, asked=3) == 3
    assert fleet.wanted(0.0, 3, 900, True, asked=1) == 2
    assert fleet.wanted(0.0, 3, 0, False, asked=99) == 3, "the limit"
    fixed = Sizing(placement=RolloutPlacement(num_engines=4))
    assert fixed.wanted(0.0, 4, 900, True, asked=2) == 3


def run_folder(tmp_path: Path, *overrides: str) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = Path(__file__).parents[2] / "configs" / "rloo.yaml"
    needed = ["model.path=m", "data.train=d", "feedback.rewards.rm.path=r"]
    config = load_config(recipe, [*needed, f"cluster.run_dir={folder}", *overrides])
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def scale(folder: Path, engines: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["scale", str(folder), engines])
    return result.exit_code, result.output


def test_a_wish_is_noted_and_taken_back(tmp_path):
    folder = run_folder(tmp_path, "cluster.rollout.num_engines=2")
    assert asked(folder) is None
    code, said = scale(folder, "1")
    assert (code, asked(folder)) == (0, 1)
    assert "1 engine is asked for" in said
    assert "no run goes on there on this machine" in said
    code, said = scale(folder, "auto")
    assert (code, asked(folder)) == (0, None)
    assert "from 2 to 2" in said
    (folder / "fleet.json").write_text('{"engines": ')
    assert asked(folder) is None, "a torn wish is none"


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ("3", "ENGINES: 3 is more than 2"),
        ("0", "ENGINES: a run needs at least 1 engine and can have 2"),
        ("many", "ENGINES: 'many' is neither a number nor `auto`"),
    ],
)
def test_a_wish_that_cannot_come_true_is_refused(engines, said, tmp_path):
    folder = run_folder(tmp_path, "cluster.rollout.num_engines=2")
    code, output = scale(folder, engines)
    assert code == 2
    assert output.startswith(f"error: {said}")
    assert asked(folder) is None


def test_a_folder_without_a_run_and_a_run_that_has_ended_are_refused(tmp_path):
    assert scale(tmp_path, "1")[1].startswith(f"error: {tmp_path} holds no run")
    folder = run_folder(tmp_path)
    (folder / "summary.json").write_text("{}")
    assert scale(folder, "1") == (2, f"error: {folder}: the run has ended\n")
