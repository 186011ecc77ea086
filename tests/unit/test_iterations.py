"""Iterations: slices of the data, a reference that moves, and where it is found again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.groups import row_of
from cluster.references import (
    discard_references,
    latest_reference,
    mix_folders,
    reference_folder,
    reference_moves,
    sync_interval,
)
from configs.load import load_config
from configs.schema import RunConfig


def config(run_dir: Path, *overrides: str, name: str = "selm") -> RunConfig:
    return load_config(
        None,
        [
            f"algorithm.name={name}", "model.path=m", "data.train=d", f"cluster.run_dir={run_dir}",
            "algorithm.num_steps=12", "data.prompts_per_step=4", "data.sampling.max_new_tokens=16",
            "feedback.rewards.g.kind=gold", *overrides,
        ],
    )  # fmt: skip


SELM = ("algorithm.iteration_steps=4", "cluster.checkpoint.interval=4")


def test_slices_are_disjoint_contiguous_and_cover_the_data(tmp_path):
    settings = config(tmp_path, *SELM)
    rows_per_iteration = [
        {row_of(settings, group, 50) for group in range(start, start + 16)} for start in (0, 16, 32)
    ]
    # 16 groups an iteration, out of slices of 16, 17 and 17 rows
    slices = [set(range(0, 16)), set(range(16, 33)), set(range(33, 50))]
    for rows, part in zip(rows_per_iteration, slices, strict=True):
        assert rows <= part
        assert len(rows) == 16


def test_a_slice_is_read_through_before_it_is_read_again(tmp_path):
    settings = config(tmp_path, *SELM)
    rows = [row_of(settings, group, 24) for group in range(16)]  # slices of 8 rows
    assert sorted(rows[:8]) == list(range(8))
    assert sorted(rows[8:]) == list(range(8))


def test_without_slices_every_iteration_reads_all_rows(tmp_path):
    settings = config(tmp_path, "algorithm.iteration_steps=1", name="rebel")
    assert {row_of(settings, group, 20) for group in range(20)} == set(range(20))


def test_the_reference_moves_at_the_ends_of_iterations_but_the_last(tmp_path):
    settings = config(tmp_path, *SELM)
    assert [step for step in range(1, 13) if reference_moves(settings, step)] == [4, 8]
    frozen = config(tmp_path, name="online_dpo")
    assert not any(reference_moves(frozen, step) for step in range(1, 13))
    ema = config(tmp_path, "model.reference_interval=5", name="tr_dpo")
    assert [step for step in range(1, 13) if reference_moves(ema, step)] == [5, 10]


def test_engines_get_weights_as_often_as_the_method_samples_anew(tmp_path):
    assert sync_interval(config(tmp_path, *SELM)) == 4
    assert sync_interval(config(tmp_path, name="online_dpo")) == 1
    assert sync_interval(config(tmp_path, name="dpo")) == 12


def test_a_resumed_run_finds_the_reference_it_had(tmp_path):
    settings = config(tmp_path, *SELM)
    assert latest_reference(settings) == "m"
    for step in (4, 8):
        reference_folder(settings, step).mkdir(parents=True)
    assert latest_reference(settings) == str(reference_folder(settings, 8))
    assert latest_reference(settings, 7) == str(reference_folder(settings, 4))
    assert latest_reference(settings, 3) == "m"


def test_a_run_that_goes_back_forgets_the_references_made_since(tmp_path):
    settings = config(tmp_path, *SELM)
    for step in (4, 8):
        reference_folder(settings, step).mkdir(parents=True)
    reference_folder(settings, 8).with_name("step=000012.partial").mkdir()
    assert discard_references(settings, 4)
    assert latest_reference(settings) == str(reference_folder(settings, 4))
    assert [f.name for f in (tmp_path / "references").iterdir()] == ["step=000004"]
    assert not discard_references(settings, 4)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_a_mixed_reference_lies_between_the_two(tmp_path, share):
    for name, value in (("policy", 1.0), ("old", 3.0)):
        (tmp_path / name).mkdir()
        tensors = {"w": torch.full((2, 3), value), "b": torch.full((3,), value).bfloat16()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    mix_folders(tmp_path / "policy", str(tmp_path / "old"), share)
    mixed = load_file(tmp_path / "policy" / "model.safetensors")
    assert mixed["w"].tolist() == [[pytest.approx(3 - 2 * share)] * 3] * 2
    assert mixed["b"].dtype == torch.bfloat16
