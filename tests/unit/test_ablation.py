"""Ablations: cells and grids, refusals, what is run again, and the report of made-up runs."""

import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.ablate import (
    _Jobs,
    check_inputs,
    is_begun,
    is_done,
    prepare,
    refuse_changed,
    render,
)
from cluster.ablation_report import write_results
from cluster.ablation_results import (
    FAILED,
    clear_best,
    compare_cells,
    curves,
    effects,
    labels_used,
    over_seeds,
    results_of,
    summarise,
)
from cluster.ledger import Ledger, LedgerRow
from configs.ablation import read_ablation
from configs.ablation_plan import make_plan
from configs.errors import ConfigError
from configs.load import to_yaml
from tests.unit.synthetic_runs import write_jsonl
from tests.unit.test_configs import RUN
from tests.unit.test_report import Page

BASE = RUN | {"algorithm": {"name": "rloo", "num_steps": 4}}
FOLDER = Path(__file__).parents[2] / "configs" / "ablations"
CELLS = {"cold": ["algorithm.kl.coef=0.1"], "hot": ["algorithm.kl.coef=0.0"]}


def write(tmp_path, name="abl.yaml", **settings):
    given = {"base": BASE, "start": "none", "out": str(tmp_path / "out"), **settings}
    file = tmp_path / name
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    return file


def plan_of(tmp_path, **settings):
    file = write(tmp_path, **settings)
    return make_plan(read_ablation(file), file)


def refusal(tmp_path, **settings):
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Cells and grids.


def test_a_cell_is_the_base_with_its_overrides_seed_and_folder(tmp_path):
    plan = plan_of(tmp_path, cells=CELLS, seeds=[3, 5], overrides=["data.prompts_per_step=16"])
    assert [(r.seed, r.cell) for r in plan.runs] == [
        (3, "cold"),
        (3, "hot"),
        (5, "cold"),
        (5, "hot"),
    ]
    run = plan.runs[2]
    assert run.folder == tmp_path / "out" / "seed=5" / "cold"
    assert run.config.algorithm.kl.coef == 0.1
    assert run.config.data.seed == 5
    assert run.config.data.prompts_per_step == 16


def test_a_grid_is_every_combination_named_by_its_values(tmp_path):
    grid = {
        "algorithm.name": ["rloo", "reinforce_pp"],
        "algorithm.kl.coef": [0.0, 0.05],
        "algorithm.whiten_rewards": [False],
    }
    plan = plan_of(tmp_path, grid=grid)
    assert list(plan.cells) == [
        "rloo,coef=0.0,whiten_rewards=false",
        "rloo,coef=0.05,whiten_rewards=false",
        "reinforce_pp,coef=0.0,whiten_rewards=false",
        "reinforce_pp,coef=0.05,whiten_rewards=false",
    ]
    found = [(r.config.algorithm.name, r.config.algorithm.kl.coef) for r in plan.runs]
    assert found == [
        ("rloo", 0.0),
        ("rloo", 0.05),
        ("reinforce_pp", 0.0),
        ("reinforce_pp", 0.05),
    ]


def test_a_grid_may_set_several_things_at_once(tmp_path):
    few = ["data.samples_per_prompt=2", "data.prompts_per_step=32"]
    many = ["data.samples_per_prompt=4", "data.prompts_per_step=16"]
    grid = {"replies": {"few": few, "many": many}, "algorithm.kl.coef": [0.0, 0.1]}
    plan = plan_of(tmp_path, grid=grid)
    assert list(plan.cells) == ["few,coef=0.0", "few,coef=0.1", "many,coef=0.0", "many,coef=0.1"]
    data, kl = plan.runs[3].config.data, plan.runs[3].config.algorithm.kl
    assert (data.samples_per_prompt, data.prompts_per_step, kl.coef) == (4, 16, 0.1)


def test_text_of_a_grid_stays_text(tmp_path):
    plan = plan_of(tmp_path, grid={"data.system_prompt": ["no: thanks", "true"]})
    assert [r.config.data.system_prompt for r in plan.runs] == ["no: thanks", "true"]


def test_the_base_may_be_a_file_beside_the_ablation(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE))
    plan = plan_of(tmp_path, base="run.yaml", cells={"a": None})
    assert plan.runs[0].config.model.path.endswith("/m")


def test_a_world_of_each_seed_is_what_its_runs_start_from(tmp_path):
    rewards = {"rm": {"kind": "model", "path": "old"}, "gold": {"kind": "gold", "weight": 0}}
    base = BASE | {"feedback": {"rewards": rewards}}
    out = str(tmp_path / "elsewhere" / ".." / "out")
    plan = plan_of(tmp_path, base=base, start="world", cells={"a": None}, seeds=[0, 1], out=out)
    start, (run,) = plan.starts[1]
    folder = tmp_path / "out" / "seed=1"
    assert (start.folder, start.seed, start.needs) == (folder, 1, ("sft", "reward_model"))
    assert run.config.model.path == str(folder / "sft" / "policy")
    assert run.config.data.validation == str(folder / "world" / "prompts_heldout.parquet")
    assert run.config.feedback.rewards["rm"].path == str(folder / "reward_model" / "policy")


def test_a_shared_world_needs_no_reward_model_that_nothing_reads(tmp_path):
    world = {"seed_from_run": False, "overrides": ["sft.algorithm.num_steps=30"]}
    plan = plan_of(tmp_path, start="world", world=world, cells=CELLS, seeds=[4, 5])
    ((start, runs),) = plan.starts
    assert (start.folder, start.seed, start.needs) == (tmp_path / "out" / "start", 4, ("sft",))
    assert len(runs) == 4
    assert re.search(r"sft +sft +30 steps", render(plan))


def test_a_cell_may_point_into_the_folder_it_starts_from(tmp_path):
    cells = {"a": ["data.train={start}/world/tasks.parquet"]}
    plan = plan_of(tmp_path, start="world", cells=cells)
    expected = tmp_path / "out" / "seed=0" / "world" / "tasks.parquet"
    assert plan.runs[0].config.data.train == str(expected)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_can_be_planned(file, tmp_path):
    plan = prepare(file, tmp_path / "out")
    assert len(plan.runs) == len(plan.starts) * len(plan.cells)
    assert len(plan.cells) > 1


def test_stages_are_made_behind_the_starts_and_read_by_cells(tmp_path):
    stages = {
        "taught": {"overrides": ["algorithm.num_steps=2"]},
        "replies": {"overrides": ["model.path={start}/taught/policy"], "sample": 4},
    }
    cells = {"a": ["data.train={start}/replies/replies.parquet"], "b": None}
    folder = tmp_path / "shared"
    plan = plan_of(
        tmp_path, start="world", stages=stages, cells=cells, world={"folder": str(folder)}
    )
    start, runs = plan.starts[0]
    at = folder / "seed=0"
    assert start.folder == at
    assert [(s.name, s.sample, s.config.model.path) for s in start.stages] == [
        ("taught", None, str(at / "sft" / "policy")),
        ("replies", 4, str(at / "taught" / "policy")),
    ]
    assert start.stages[0].config.cluster.run_dir == str(at / "taught")
    assert start.stages[0].config.data.train == str(at / "world" / "prompts.parquet")
    assert runs[0].config.data.train == str(at / "replies" / "replies.parquet")
    assert runs[0].folder == tmp_path / "out" / "seed=0" / "a"


def test_a_file_beside_the_ablation_is_found_from_anywhere(tmp_path):
    rule = "feedback.rewards.rule={kind: function, path: '{here}/rule.py'}"
    plan = plan_of(tmp_path, cells={"a": [rule]})
    assert plan.runs[0].config.feedback.rewards["rule"].path == str(tmp_path / "rule.py")


# What is refused.


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path):
    assert "seed is not a setting of an ablation; did you mean seeds?" in refusal(
        tmp_path, cells=CELLS, seed=[1]
    )
    assert "did you mean world.seed_from_run?" in refusal(
        tmp_path, cells=CELLS, world={"seed_from_runs": True}
    )


def test_a_bad_cell_is_named(tmp_path):
    line = refusal(tmp_path, cells=CELLS | {"odd": ["algorithm.kl.coeff=1"]})
    assert line.startswith("cell odd: ")
    assert "algorithm.kl.coef" in line
    # A pair loss with one reply: each setting is right, together they are not.
    pair = ["algorithm.name=online_dpo", "data.samples_per_prompt=1"]
    assert refusal(tmp_path, cells=CELLS | {"pair": pair}).startswith("cell pair: ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cells": {"a": ["data.seed=1"]}}, "cell a: data.seed is what the ablation itself sets"),
        ({"cells": {"a/b": []}}, "cell 'a/b': a cell names a folder"),
        ({"cells": {"sft": []}, "start": "world"}, "cell sft: a folder of the world"),
        ({"cells": {"a": ["data.train={start}/x"]}}, "exists under `start: world` only"),
        ({"cells": {"a": ["algorithm.name=sft"]}}, "cell a: "),
        (
            {"cells": {"a": ["cluster.metrics.loggers.jsonl.path=rows.jsonl"]}},
            "cell a: cluster.metrics.loggers.jsonl holds the rows of one run",
        ),
        ({"cells": CELLS, "grid": {"data.train": ["t"]}}, "either cells or grid"),
        ({"cells": {}}, "there is no cell"),
        ({"grid": {"replies": {}}}, "grid.replies has no values"),
        ({"grid": {"algorithm.kl.coef": []}}, "grid.algorithm.kl.coef has no values"),
        ({"grid": {"data.system_prompt": ["a b", "a-b"]}}, "cell a-b: two points"),
        ({"cells": CELLS, "seeds": [1, 1]}, "one seed twice"),
        ({"cells": CELLS, "seeds": []}, "seeds"),
        ({"cells": CELLS, "parallel": 0}, "parallel"),
        ({"cells": CELLS, "judge": "rm"}, "cell cold: there is no reward rm"),
        ({"cells": CELLS, "start": "nowhere"}, "start"),
        ({"cells": CELLS, "show": ["rare"]}, "there is no reward rare to show"),
        ({"cells": CELLS, "stages": {"x": {}}}, "stages are made on the built-in world"),
        (
            {"cells": CELLS, "start": "world", "stages": {"x": {"samples": 4}}},
            "stages.x.samples is not a setting of an ablation; did you mean stages.x.sample?",
        ),
        (
            {"cells": CELLS, "start": "world", "stages": {"x": {"overrides": ["data.seed=1"]}}},
            "stage x: data.seed is what the ablation itself sets",
        ),
        (
            {"cells": CELLS, "start": "world", "stages": {"sft": {}}},
            "stage sft: it names a folder beside world",
        ),
        (
            {"cells": {"x": []}, "start": "world", "stages": {"x": {}}},
            "cell x: a folder of the world",
        ),
        (
            {"cells": CELLS, "start": "world", "stages": {"x": {"overrides": ["data.seeds=1"]}}},
            "stage x: ",
        ),
        ({"cells": CELLS, "world": {"overrides": ["algorithm.num_steps=1"]}}, "names no stage"),
        (
            {"cells": {"a": [], "b": ["cluster.address=auto"]}},
            "cell b: cluster.address is auto, but None in cell a",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, settings, words):
    assert words in refusal(tmp_path, **settings)


def test_a_bad_setting_of_the_world_is_named(tmp_path):
    world = {"overrides": ["sft.algorithm.num_steps=7"]}
    file = write(tmp_path, start="world", world=world, cells=CELLS)
    with pytest.raises(ConfigError, match=r"^world\.overrides, sft: .*warmup_steps=20 is more"):
        prepare(file, None)


def test_the_judge_is_gold_only_where_every_cell_has_it(tmp_path):
    assert plan_of(tmp_path, cells=CELLS).judge == "gold"
    rule = ["feedback.rewards.gold=null", "feedback.rewards.rule={kind: function, path: f.py}"]
    ruled = {name: [*given, *rule] for name, given in CELLS.items()}
    assert plan_of(tmp_path, cells=ruled).judge == "total"


def test_totals_of_different_rewards_are_not_compared(tmp_path):
    cells = {"a": [], "b": ["feedback.missing_eos_penalty=1.0"]}
    assert plan_of(tmp_path, cells=cells, judge="gold").judge == "gold"
    line = refusal(tmp_path, cells=cells, judge="total")
    assert "cell b: its rewards are not summed as in cell a" in line


# What is run again.


def test_a_run_with_a_summary_is_done_and_one_without_is_begun(tmp_path):
    plan = plan_of(tmp_path, cells=CELLS)
    done, begun = plan.runs
    for run in plan.runs:
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(to_yaml(run.config))
    (done.folder / "summary.json").write_text("{}")
    assert (is_done(done.config), is_done(begun.config)) == (True, False)
    assert is_begun(begun.config)
    refuse_changed(plan)
    shown = render(plan).splitlines()
    assert shown[0].endswith("4 steps  done")
    assert shown[1].endswith("4 steps  begun")
    assert shown[2] == "2 runs of 2 cells, compared by gold; 8 steps in all, 4 to go"


def test_a_run_of_other_settings_is_not_taken_for_the_cell(tmp_path):
    (run, _) = plan_of(tmp_path, cells=CELLS).runs
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(run.config))
    changed = plan_of(tmp_path, cells=CELLS | {"cold": ["algorithm.kl.coef=0.2"]})
    with pytest.raises(ConfigError, match=r"cell cold: .*was run with another algorithm\.kl\.coef"):
        refuse_changed(changed)


def test_a_run_that_fails_is_noted_and_the_others_go_on(tmp_path):
    # Both lack a model, which each finds out by itself, before it asks Ray for anything.
    plan = plan_of(tmp_path, cells=CELLS, parallel=1)
    _Jobs(plan, debug=False).run(plan.runs)
    for run in plan.runs:
        assert "model.path" in (run.folder / FAILED).read_text()
        assert (run.folder / "config.yaml").exists()
    with pytest.raises(ConfigError, match=r"^cell cold: .*model\.path"):
        check_inputs(plan)


# Results of made-up runs: 2 cells, 2 seeds, 4 held-out prompts, 4 steps of 8 x 2 replies.

GAINS = {("cold", 0): 0.10, ("cold", 1): 0.14, ("hot", 0): 0.30, ("hot", 1): 0.36}


def judged(reward):
    rows = {"prompt": "p", "reply": "r", "num_tokens": 10, "finish_reason": "stop"}
    return rows | {"rewards": {"gold": reward, "gold/true": reward / 2}}


def finish(run, gain):
    """A finished run: all four replies gain, but the last, which loses as much as all gain."""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    before = [0.2, 0.4, 0.4, 0.6]
    after = [value + 2 * gain for value in before[:3]] + [before[3] - 2 * gain]
    (folder / "before.json").write_text(json.dumps([judged(value) for value in before]))
    (folder / "after.json").write_text(json.dumps([judged(value) for value in after]))
    summary = {"length_before": 10.0, "length_after": 20.0, "steps": 4, "wall_s": 60.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(to_yaml(run.config))
    rows = [
        {
            "step": s,
            "reward/gold/mean": 0.4 + gain * s / 4,
            "reward/gold/true/mean": 0.1 * (s + 2.5),
            "length/mean": 10.0 + s,
        }
        for s in range(1, 5)
    ]
    write_jsonl(folder / "metrics.jsonl", rows)
    ledger = Ledger(folder)
    for step in range(1, 5):
        groups = [ledger_row(step, 8 * step + i) for i in range(8)]
        if step == 2:  # one more group, judged and left out
            groups.append(ledger_row(step, 1000, "filtered"))
        ledger.commit(step, groups)
        # Log-ratios of the policy's two replies: 10 * gain and 10 * gain + 2, and one of another's.
        ratios = [("policy", 10 * gain), ("policy", 10 * gain + 2), ("reference", -50.0)]
        at = folder / "experience" / f"step={step:06d}"
        at.mkdir(parents=True)
        rows = [
            {"source": source, "old_logprobs": [ratio - 3, -1.0], "ref_logprobs": [-3.0, -1.0]}
            for source, ratio in ratios
        ]
        pq.write_table(pa.Table.from_pylist(rows), at / "rank=0.parquet")


def ledger_row(step, group_id, status="used"):
    return LedgerRow(
        group_id=group_id,
        status=status,
        step=step,
        attempts=1,
        engine="engine-0",
        oldest_version=0,
        newest_version=0,
        num_samples=2,
        num_tokens=20,
    )


@pytest.fixture
def plan(tmp_path):
    made = plan_of(tmp_path, cells=CELLS, seeds=[0, 1])
    for run in made.runs:
        finish(run, GAINS[run.cell, run.seed])
    return made


def test_a_run_is_told_by_its_held_out_replies(plan):
    result = results_of(plan)[0]
    assert (result.cell, result.seed, result.method, result.status) == ("cold", 0, "rloo", "done")
    # Three of four gain 0.2 and one loses 0.2: 0.1 on average; three of four are better.
    assert result.before == pytest.approx(0.4)
    assert result.gain == pytest.approx(0.1)
    assert result.gain_low < 0.1 < result.gain_high
    assert result.win_rate == 0.75
    assert result.win_low < 0.75 < result.win_high
    # (1 + 3) / 2 of the policy's own replies; the reference's -50 is no KL.
    assert result.kl == pytest.approx(2.0)
    assert (result.length_before, result.length_after) == (10, 20)
    assert result.labels == 4 * 16 + 2


def test_further_rewards_are_told_before_after_and_in_training(tmp_path):
    made = plan_of(tmp_path, cells=CELLS, seeds=[0, 1], show=["gold/true"])
    for run in made.runs:
        finish(run, GAINS[run.cell, run.seed])
    result = results_of(made)[0].shown["gold/true"]
    assert (result.before, result.after) == (pytest.approx(0.2), pytest.approx(0.25))
    assert result.training == pytest.approx(0.5)
    write_results(made)
    text = (made.out / "results.md").read_text()
    assert "## Reward gold/true" in text
    line = next(row for row in text.split("## Reward")[1].splitlines() if row.startswith("| hot"))
    assert "0.3650" in line  # (0.4 + 0.33) / 2: a part that is half of gold gains half as much
    rows = pq.read_table(made.out / "results.parquet").to_pylist()
    assert dict(rows[0]["shown"])["gold/true"]["after"] == pytest.approx(0.25)


def test_the_kl_is_that_of_held_out_replies_where_they_tell_it(plan):
    run = plan.runs[0]
    rows = [
        row | {"log_ratio": value}
        for row, value in zip(
            json.loads((run.folder / "after.json").read_text()), [1.0, 2.0, 3.0, 6.0], strict=True
        )
    ]
    (run.folder / "after.json").write_text(json.dumps(rows))
    assert results_of(plan)[0].kl == pytest.approx(3.0)


def test_labels_never_fall_and_count_filtered_groups(plan):
    used = labels_used(plan.runs[0].folder)
    assert used == {1: 16, 2: 34, 3: 50, 4: 66}


def test_intervals_over_seeds_are_students(plan):
    cold, hot = summarise(plan, results_of(plan))
    # Two seeds: half their distance, times t = 12.706 of one degree of freedom.
    assert cold.gain.mean == pytest.approx(0.12)
    assert cold.gain.high - cold.gain.mean == pytest.approx(12.7062 * 0.02, rel=1e-4)
    assert hot.gain.low == pytest.approx(0.33 - 12.7062 * 0.03, rel=1e-3)
    assert hot.kl.mean == pytest.approx((4 + 4.6) / 2)


def test_seeds_that_agree_do_not_make_a_win_rate_certain(plan):
    rate = summarise(plan, results_of(plan))[0].win_rate
    # Both seeds win 3 of 4. Wilson's interval of 6 of 8: centre 0.6689, reach 0.2596.
    assert rate.mean == 0.75
    assert (rate.low, rate.high) == (
        pytest.approx(0.4093, abs=1e-4),
        pytest.approx(0.9285, abs=1e-4),
    )


def test_one_seed_has_no_interval_and_none_has_no_number():
    one = over_seeds([0.5, None])
    assert one.mean == 0.5
    assert math.isnan(one.low)
    assert over_seeds([None]) is None


def test_cells_are_compared_on_the_seeds_they_share(plan):
    (pair,) = compare_cells(plan, results_of(plan))
    # Differences -0.20 and -0.22: mean -0.21, half their distance 0.01.
    assert (pair.first, pair.second, pair.num_seeds) == ("cold", "hot", 2)
    assert pair.difference.mean == pytest.approx(-0.21)
    assert pair.difference.high == pytest.approx(-0.21 + 12.7062 * 0.01, rel=1e-3)
    assert pair.is_clear


def test_a_cell_is_best_only_where_intervals_separate(plan, tmp_path):
    assert clear_best(summarise(plan, results_of(plan))) is None  # 0.33 - 0.38 < 0.12 + 0.25
    assert "**" not in (write_results(plan).parent / "results.md").read_text()
    apart = {("cold", 0): 0.10, ("cold", 1): 0.101, ("hot", 0): 0.30, ("hot", 1): 0.301}
    other = plan_of(tmp_path, cells=CELLS, seeds=[0, 1], out=str(tmp_path / "apart"))
    for run in other.runs:
        finish(run, apart[run.cell, run.seed])
    assert clear_best(summarise(other, results_of(other))) == "hot"
    assert "| **hot** |" in (write_results(other).parent / "results.md").read_text()


def test_an_axis_is_told_over_all_others_where_a_seed_is_whole(tmp_path):
    sizes = {"few": ["data.prompts_per_step=8"], "many": ["data.prompts_per_step=16"]}
    grid = {"replies": sizes, "algorithm.kl.coef": [0.0, 0.1]}
    made = plan_of(tmp_path, grid=grid, seeds=[0, 1, 2])
    gains = {"few,coef=0.0": 0.1, "few,coef=0.1": 0.2, "many,coef=0.0": 0.5, "many,coef=0.1": 0.3}
    for run in made.runs[:-1]:  # the last cell of the last seed has not finished
        finish(run, gains[run.cell] + 0.02 * run.seed)
    found = effects(made, results_of(made))
    assert list(found) == ["replies", "coef"]
    few, many = found["replies"]
    assert (few.name, few.num_cells, few.gap) == ("few", 2, None)
    # Two whole seeds: 0.15 and 0.17; many: 0.40 and 0.42, always 0.25 more.
    assert few.gain.mean == pytest.approx(0.16)
    assert few.gain.high - few.gain.mean == pytest.approx(12.7062 * 0.01, rel=1e-4)
    assert (many.gap.mean, many.gap.low) == (pytest.approx(0.25), pytest.approx(0.25))
    assert [level.gain.mean for level in found["coef"]] == pytest.approx([0.31, 0.26])
    write_results(made)
    assert "| many | 2 | 0.81 | +0.410" in (made.out / "results.md").read_text()


def test_curves_are_means_over_seeds_with_their_range(plan):
    curve = curves(plan)[0]
    assert (curve.cell, curve.labels) == ("cold", [16, 34, 50, 66])
    assert curve.reward[-1] == pytest.approx(0.52)
    assert (curve.low[-1], curve.high[-1]) == (pytest.approx(0.5), pytest.approx(0.54))


def test_the_markdown_table_has_one_row_per_cell(plan):
    write_results(plan)
    text = (plan.out / "results.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| cell | seeds | gold before | gold after | gain | win rate |")
    assert lines[1] == (
        "| cold | 2 of 2 | 0.40 | 0.52 | +0.120 [−0.134, +0.374] | 75.0% [40.9%, 92.9%] "
        "| 2.20 [−0.34, 4.74] | 10.0 → 20.0 | 66 | 60 |"
    )
    assert any(line.startswith("| cold − hot | 2 | −0.210 [") for line in lines)
    assert "hot gained +0.33 in gold over 2 seeds, more than cold (+0.12): by 0.08 to 0.34" in text


def test_the_parquet_has_one_row_per_run(plan):
    write_results(plan)
    rows = pq.read_table(plan.out / "results.parquet").to_pylist()
    assert [(r["cell"], r["seed"], r["status"]) for r in rows] == [
        (run.cell, run.seed, "done") for run in plan.runs
    ]
    assert rows[3]["gain"] == pytest.approx(0.36)


def test_the_page_needs_nothing_from_outside_and_shows_every_run(plan):
    html = write_results(plan).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert page.addresses == []
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)
    assert page.h1 == [
        "hot gained +0.33 in gold over 2 seeds, more than cold (+0.12): by 0.08 to 0.34 on the "
        "seeds they share (95% interval)."
    ]
    for run in plan.runs:
        assert f"{run.cell}, seed {run.seed}" in page.text
    for title in ("Reward and KL", "Labels used", "Reply length"):
        assert f"<b>{title}</b>" in html


def test_a_failed_and_a_missing_run_are_named_and_left_out(tmp_path):
    plan = plan_of(tmp_path, cells=CELLS, seeds=[0, 1])
    for run in plan.runs[:2]:
        finish(run, GAINS[run.cell, run.seed])
    plan.runs[2].folder.mkdir(parents=True)
    (plan.runs[2].folder / FAILED).write_text("OutOfMemory: <none> left\n")
    page = Page(write_results(plan).read_text(encoding="utf-8"))
    assert "cold, seed 1 failed: OutOfMemory: <none> left" in page.text
    assert "1 of 4 runs have not finished" in page.text
    rows = pq.read_table(plan.out / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["done", "done", "failed", "missing"]
    assert "one shared seed cannot say how surely" in page.h1[0]


def test_nothing_finished_is_said(tmp_path):
    plan = plan_of(tmp_path, cells=CELLS)
    assert Page(write_results(plan).read_text()).h1 == [
        "No run has finished: there is nothing to compare yet."
    ]


def test_axes_whose_last_words_are_alike_keep_their_full_names(tmp_path):
    grid = {"algorithm.kl.coef": [0.0, 0.1], "algorithm.entropy_coef": [0.0]}
    assert list(plan_of(tmp_path, grid=grid).levels) == ["coef", "entropy_coef"]
    grid = {"algorithm.optimizer.eps": [1e-8, 1e-6], "algorithm.critic_optimizer.eps": [1e-8]}
    plan = plan_of(tmp_path, grid=grid)
    assert list(plan.levels) == list(grid)


def test_another_number_of_sampled_replies_is_another_stage(tmp_path):
    def stage(count):
        stages = {"replies": {"sample": count}}
        start, _ = plan_of(tmp_path, start="world", stages=stages, cells=CELLS).starts[0]
        return start.stages[0]

    done = stage(4).config
    folder = Path(done.cluster.run_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(done))
    (folder / "summary.json").write_text("{}")
    stages = {"replies": {"sample": 8}}
    changed = plan_of(tmp_path, start="world", stages=stages, cells=CELLS)
    with pytest.raises(ConfigError, match=r"run with another data\.samples_per_prompt"):
        refuse_changed(changed)


def test_a_part_that_a_reward_does_not_have_is_left_open(tmp_path):
    made = plan_of(tmp_path, cells=CELLS, show=["gold/ture"])
    for run in made.runs:
        finish(run, 0.1)
    write_results(made)
    assert "| cold | – | – | – |" in (made.out / "results.md").read_text()
