"""Time by hand, placements that fit, and the command that shows them."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import configs
from cluster.cli import app
from configs.load import load_config
from configs.machine import parse_gpus
from configs.memory import model_shape
from configs.placement import propose
from configs.plan import derive
from configs.timing import ASSUMED, Throughput, step_time

CONFIGS = Path(configs.__file__).parent
TINY = {
    "model_type": "qwen3",
    "hidden_size": 100,
    "intermediate_size": 300,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 50,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
EIGHT_BILLION = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
PLAIN = Throughput(tflops=1e-3, memory_gb=1e9, link_gb=1.0, token_s=0.0, why="round numbers")


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(TINY))
    return tmp_path / "model"


def demo(*overrides):
    fixed = (
        "cluster.learner.cpus_per_worker=1", "cluster.rollout.cpus_per_engine=1",
        "data.prompts_per_step=2", "data.samples_per_prompt=4", "model.max_length=128",
        "data.sampling.max_new_tokens=100",
    )  # fmt: skip
    return load_config(CONFIGS / "demo" / "run.yaml", [*fixed, *overrides])


# Time, at 10^9 operations a second


def test_a_step_is_its_matrix_products():
    shape = model_shape(TINY)
    forward = 2 * shape.parameters + 2 * 2 * 128 * 100  # products, and attention over 128 tokens
    time = step_time(demo(), shape, PLAIN)
    assert time.train == pytest.approx(8 * 128 * forward * 4 / 1e9)  # old log-probs, and 3
    assert time.score == pytest.approx(2 * 8 * 128 * forward / 1e9)  # reward model and reference
    prefill, decode = 2 * 28 * forward / 1e9, 100 * 8 * forward / 1e9
    assert time.sample == pytest.approx(prefill + decode)
    assert time.sync == pytest.approx(4 * shape.parameters / 1e9)
    assert time.step == pytest.approx(time.train + time.score + time.sample + time.sync)


def test_epochs_critics_and_recomputation_cost_passes():
    shape = model_shape(TINY)
    one = step_time(demo(), shape, PLAIN).train
    checkpointed = step_time(demo("model.gradient_checkpointing=true"), shape, PLAIN).train
    assert checkpointed == pytest.approx(one * 5 / 4)
    ppo = step_time(demo("algorithm.name=ppo"), shape, PLAIN).train
    epochs = demo("algorithm.name=ppo").algorithm.num_epochs
    assert ppo == pytest.approx(one * 2 * (1 + 3 * epochs) / 4)


def test_decoding_reads_the_weights_for_every_token_of_the_batch():
    shape = model_shape(TINY)
    slow = Throughput(tflops=1e6, memory_gb=1.0, link_gb=1.0, token_s=0.01, why="")
    cache = 8 * 64 * 2 * 2 * 1 * 50  # half of 128 tokens, keys and values, 2 layers, 1 head of 50
    token = 4 * (shape.parameters + cache) / 1e9 + 0.01
    assert step_time(demo(), shape, slow).sample == pytest.approx(100 * token, rel=1e-3)
    small_cache = cache / 2
    halves = 2 * 100 * (4 * (shape.parameters + small_cache) / 1e9 + 0.01)
    twice = step_time(demo("cluster.rollout.max_num_seqs=4"), shape, slow).sample
    assert twice == pytest.approx(halves, rel=1e-3)


def test_shared_cores_and_ranks_divide_the_work():
    shape = model_shape(TINY)
    one = step_time(demo(), shape, PLAIN, cores=1).train
    two = demo("cluster.learner.num_workers=2")
    assert step_time(two, shape, PLAIN, cores=2).train == pytest.approx(one / 2)
    assert step_time(two, shape, PLAIN, cores=1).train == pytest.approx(one)


def test_stale_samples_on_gpus_let_sampling_and_training_overlap():
    config = load_config(CONFIGS / "gpu_8x.yaml", ["model.path=m", "data.train=d",
                                                   "feedback.rewards.rm.path=r"])  # fmt: skip
    time = step_time(config, model_shape(EIGHT_BILLION), ASSUMED["cuda"])
    assert time.overlapped
    assert time.step == pytest.approx(max(time.train, time.sample + time.score) + time.sync)


# Placements


def eight(*overrides):
    return load_config(CONFIGS / "gpu_8x.yaml", ["model.path=m", "data.train=d",
                       "feedback.rewards.rm.path=r", *overrides])  # fmt: skip


def proposed(config, *, model=EIGHT_BILLION, gpus, gib):
    return propose(
        config, model, ASSUMED["cuda"],
        gpus=gpus, one_gpu_gib=gib, available_bytes=None, cores=None,
    )  # fmt: skip


def taken_up(config_of, found):
    return config_of(*found.settings)


@pytest.mark.parametrize(("gpus", "gib"), [(8, 80), (8, 141), (4, 141), (16, 80)])
def test_a_proposal_is_a_valid_configuration_that_fits(gpus, gib):
    found = proposed(eight(), gpus=gpus, gib=gib)
    assert found is not None
    config = taken_up(eight, found)  # passes every check of the loader
    plan = derive(config, EIGHT_BILLION, None, one_gpu_gib=gib)
    assert plan.fits
    assert plan.gpus <= gpus
    assert (config.cluster.learner.num_workers, config.cluster.rollout.num_engines) == (
        found.learners, found.engines,
    )  # fmt: skip


def test_a_learner_that_one_gpu_cannot_hold_is_spread_over_several():
    alone = derive(eight("cluster.learner.num_workers=1"), EIGHT_BILLION, None, one_gpu_gib=80)
    assert alone.refusal is not None
    assert alone.refusal.startswith("learner on one GPU")
    found = proposed(eight(), gpus=16, gib=80)
    assert found is not None
    assert found.learners > 1


def test_a_model_too_large_for_one_gpu_gets_tensor_parallel_engines():
    wide = {**EIGHT_BILLION, "hidden_size": 8192, "intermediate_size": 28672,
            "num_hidden_layers": 64, "num_attention_heads": 64}  # fmt: skip
    config = eight("model.reference_update=none", "algorithm.kl.coef=0",
                   "feedback.rewards.rm=null", "feedback.rewards.rule={kind: gold}",
                   "cluster.learner.offload_optimizer=true")  # fmt: skip
    found = proposed(config, model=wide, gpus=64, gib=80)
    assert found is not None
    assert found.tensor_parallel > 1
    assert proposed(config, model=wide, gpus=2, gib=80) is None


def test_one_gpu_is_shared_where_the_model_is_small():
    found = proposed(eight("cluster.rollout.kv_cache_gib=4"), model=TINY, gpus=1, gib=80)
    assert found is not None
    assert (found.kind, found.learners, found.engines) == ("colocated", 1, 1)
    assert found.gpus <= 1


def test_on_cpus_everything_shares_the_machine(model):
    found = propose(
        demo(), TINY, ASSUMED["cpu"],
        gpus=0, one_gpu_gib=None, available_bytes=64 << 30, cores=2,
    )  # fmt: skip
    assert found is not None
    assert (found.kind, found.settings) == ("colocated", ())


# The command


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_the_command_tells_memory_time_and_a_placement(model):
    result = run(CONFIGS / "demo" / "run.yaml", f"model.path={model}", "cluster.memory_gib=64")
    assert result.exit_code == 0
    for part in ("learner", "reward rm", "estimated time, not measured", "assuming", "proposed"):
        assert part in result.output
    assert max(len(line) for line in result.output.splitlines()) <= 100, result.output


def test_json_holds_every_part_and_adds_up(model):
    result = run(CONFIGS / "demo" / "run.yaml", f"model.path={model}", "cluster.memory_gib=64",
                 "--json")  # fmt: skip
    assert result.exit_code == 0
    plan = json.loads(result.output)
    total = sum(role["count"] * role["host_gib"] for role in plan["roles"])
    assert total == pytest.approx(plan["host_gib"], abs=0.01)
    learner = plan["roles"][0]
    assert sum(p["gib"] for p in learner["parts"] if p["at_peak"]) == pytest.approx(
        learner["host_gib"], abs=0.01
    )
    assert plan["estimated_seconds"]["run"] == pytest.approx(
        plan["estimated_seconds"]["step"] * plan["num_steps"]
    )
    assert plan["assumed"]["why"]


def test_a_run_that_does_not_fit_is_refused_in_one_line_with_code_2(model):
    result = run(CONFIGS / "demo" / "run.yaml", f"model.path={model}", "cluster.memory_gib=1")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert re.match(r"error: the run needs about .* GiB and 1.0 GiB is available", lines[0])


def test_more_gpus_than_there_are_is_refused(model):
    cuda = ("model.path=" + str(model), "data.train=d", "feedback.rewards.rm.path=r")
    few = run(CONFIGS / "gpu_8x.yaml", *cuda, "--gpus", "4", "--gpu-gib", "80")
    assert few.exit_code == 2
    assert "asks for 7.6 GPUs and there are 4" in few.stderr
    enough = run(CONFIGS / "gpu_8x.yaml", *cuda, "--gpus", "8", "--gpu-gib", "80")
    assert enough.exit_code == 0


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_model_without_a_readable_config_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    result = run(CONFIGS / "demo" / "run.yaml", f"model.path={tmp_path}")
    assert result.exit_code == 2
    assert "model.path" in result.stderr
    assert "config.json" in result.stderr


def test_what_the_driver_says_of_gpus_is_read():
    said = "NVIDIA H200, 143771\nNVIDIA A100-SXM4-80GB, 81920\n"
    assert parse_gpus(said) == [("NVIDIA H200", 143771 / 1024), ("NVIDIA A100-SXM4-80GB", 80.0)]
    assert parse_gpus("No devices were found") == []
