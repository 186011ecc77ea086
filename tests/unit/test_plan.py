"""The derived plan: counts by hand, memory by hand, refusals that name the way out."""

import dataclasses
from pathlib import Path

import pytest

import configs
from configs.load import load_config
from configs.machine import available_cores, available_memory, cgroup_headroom
from configs.memory import GIB, model_shape
from configs.part import Part, at_peak, peak_gib
from configs.plan import derive, gpu_loads, render
from configs.processes import (
    COLLECTOR_GIB,
    COMPILER_GIB,
    CUDA_CONTEXT_GIB,
    DAEMONS_GIB,
    DRIVER_GIB,
    ENGINE_CORE_GIB,
    ENGINE_FRONT_GIB,
    FROZEN_GIB,
    LEARNER_GIB,
    MONITOR_GIB,
    PAGES_GIB,
    RULE_GIB,
    TRAIN_GIB,
)
from configs.sizes import count_parameters

DEMO = Path(configs.__file__).parent / "demo"
MODEL = {
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
ENGINE_GIB = ENGINE_FRONT_GIB + ENGINE_CORE_GIB


# The counts below are worked out for these steps and CPUs, whatever the recipe is tuned to.
FIXED = {
    "run": ("algorithm.num_steps=80", "cluster.learner.cpus_per_worker=1",
            "cluster.rollout.cpus_per_engine=0.5", "cluster.reward.cpus_per_worker=0.25",
            "cluster.reference.cpus_per_worker=0.25"),
    "reward_model": ("algorithm.num_steps=200", "data.prompts_per_step=32"),
    "sft": (),
}  # fmt: skip


def plan(*overrides, recipe="run", model=MODEL, gib=100.0, cores=3):
    config = load_config(DEMO / f"{recipe}.yaml", [*FIXED[recipe], *overrides])
    return derive(config, model, int(gib * GIB) if gib else None, cores=cores)


def refusal(*overrides, gib):
    made = plan(*overrides, gib=gib)
    assert not made.fits
    assert made.refusal is not None
    assert "\n" not in made.refusal
    return made.refusal


def role(made, name):
    return next(role for role in made.roles if role.name == name)


def size(made, name, part):
    return next(p.gib for p in role(made, name).parts if p.name == part) * GIB


# Counts: 32 prompts x 4 samples, 128 tokens at most, 80 steps


def test_counts_of_an_online_run():
    made = plan("cluster.learner.num_workers=3", "data.prompts_per_step=33")
    assert made.sequences_per_step == 132
    assert made.sequences_per_rank == 44
    assert made.tokens_per_step == 132 * 128
    assert made.total_samples == 80 * 132
    assert made.optimizer_steps_per_step == 1


def test_ppo_makes_epochs_times_minibatches_optimizer_steps():
    assert plan("algorithm.name=ppo").optimizer_steps_per_step == 4


def test_a_pair_is_two_sequences_and_one_sample():
    made = plan(recipe="reward_model")
    assert (made.sequences_per_step, made.total_samples) == (64, 200 * 32)


def test_only_the_learner_runs_where_nothing_is_sampled():
    assert [r.name for r in plan(recipe="sft").roles] == ["learner", "ray"]
    names = ["learner", "engine", "reward rm", "reward gold", "reference", "ray"]
    assert [r.name for r in plan().roles] == names


def test_a_method_without_reference_starts_none():
    free = plan("model.reference_update=none", "algorithm.kl.coef=0")
    assert "reference" not in [r.name for r in free.roles]


def test_the_most_engines_of_an_elastic_fleet_are_counted():
    elastic = plan("cluster.rollout.min_engines=1", "cluster.rollout.max_engines=3")
    assert role(elastic, "engine").count == 3


def test_cpus_and_gpus_are_counted_over_all_processes():
    made = plan(
        "cluster.device=cuda",
        "cluster.learner={num_workers: 4, cpus_per_worker: 2, gpus_per_worker: 1}",
        "cluster.rollout={num_engines: 3, cpus_per_engine: 1, gpus_per_engine: 0.5}",
        "cluster.reward={cpus_per_worker: 0.5, gpus_per_worker: 0.25}",
        "cluster.reference={num_workers: 2, cpus_per_worker: 0.5, gpus_per_worker: 0.25}",
    )
    assert made.cpus == 4 * 2 + 3 + 2 * 0.5 + 2 * 0.5
    assert made.gpus == 4 + 1.5 + 2 * 0.25 + 2 * 0.25


def test_too_few_cores_are_a_warning():
    assert plan().warnings == ()
    (warning,) = plan(cores=1).warnings
    assert warning == "roles ask for 2.25 CPUs and this machine has 1: they take turns"


# Memory


def test_states_of_the_learner_are_shared_by_its_ranks():
    parameters = count_parameters(MODEL)
    one, two = plan(), plan("cluster.learner.num_workers=2")
    assert size(one, "learner", "policy optimizer") == pytest.approx(16 * parameters)
    assert size(one, "learner", "policy weights") == pytest.approx(4 * parameters)
    assert size(two, "learner", "policy optimizer") == pytest.approx(8 * parameters)
    half = plan("model.dtype=bfloat16")
    assert size(half, "learner", "policy optimizer") == pytest.approx(16 * parameters)
    assert size(half, "learner", "policy weights") == pytest.approx(2 * parameters)


def test_weights_stay_gathered_up_to_a_billion_parameters():
    parameters = count_parameters(MODEL)
    made = plan("cluster.learner.num_workers=2")
    assert size(made, "learner", "policy gathered") == pytest.approx(4 * parameters)
    assert size(made, "learner", "policy gradient bucket") == pytest.approx(4 * parameters)
    # 40 blocks of 5 x 5120 x 5120 = 131 M and an embedding of 205 M, untied: 5.6 billion
    big = {**MODEL, "hidden_size": 5120, "intermediate_size": 5120, "num_hidden_layers": 40,
           "vocab_size": 40000, "num_attention_heads": 40, "head_dim": 128,
           "num_key_value_heads": 8}  # fmt: skip
    assert size(plan(model=big, gib=None), "learner", "policy gathered") == 4 * 10**9
    assert model_shape(big).largest_layer == 40000 * 5120


def test_activations_and_the_optimizer_step_take_turns():
    parts = [
        Part(name="a", gib=1.0),
        Part(name="b", gib=2.0, phase="backward"),
        Part(name="c", gib=1.5, phase="backward"),
        Part(name="d", gib=3.0, phase="step"),
        Part(name="e", gib=9.0, where="gpu"),
    ]
    assert (peak_gib(parts, "host"), peak_gib(parts, "gpu")) == (4.5, 9.0)
    assert [part.name for part in at_peak(parts, "host")] == ["a", "b", "c"]
    few = plan("algorithm.tokens_per_micro_batch=128", "data.prompts_per_step=1")
    learner = role(few, "learner")
    fixed = sum(part.gib for part in learner.parts if not part.phase)
    assert learner.gib("host") < sum(part.gib for part in learner.parts)
    assert learner.gib("host") > fixed


def test_activations_follow_tokens_layers_and_checkpointing():
    # a token leaves 15 x 100 + 4 x 300 = 2700 values in a layer; 2 layers and one in the making
    assert size(plan(), "learner", "activations") == pytest.approx(8192 * 3 * 2700 * 4)
    fewer = plan("algorithm.tokens_per_micro_batch=1024")
    assert size(fewer, "learner", "activations") == pytest.approx(1024 * 3 * 2700 * 4)
    # inputs of 2 layers, and twice the inside of one
    leaner = plan("model.gradient_checkpointing=true")
    assert size(leaner, "learner", "activations") == pytest.approx(8192 * (200 + 5400) * 4)
    # in bfloat16 a norm keeps its input twice: 19 x 100 + 4 x 300
    half = plan("model.dtype=bfloat16")
    assert size(half, "learner", "activations") == pytest.approx(8192 * 3 * 3100 * 2)


def test_a_micro_batch_is_never_larger_than_a_ranks_share_of_a_minibatch():
    # 4 prompts x 4 samples x 128 tokens = 2048 on one rank, below the 8192 allowed
    few = plan("data.prompts_per_step=4")
    assert size(few, "learner", "activations") == pytest.approx(2048 * 3 * 2700 * 4)


def test_only_gae_pays_for_a_critic():
    rloo, ppo = (
        [part.name for part in role(plan(f"algorithm.name={n}"), "learner").parts]
        for n in ("rloo", "ppo")
    )
    assert "critic optimizer" not in rloo
    assert {"critic optimizer", "critic weights", "critic gathered"} <= set(ppo)


def test_an_engine_holds_weights_head_and_cache_and_new_weights_while_they_arrive():
    made = plan("cluster.rollout.kv_cache_gib=0.5", "cluster.sync.bucket_mib=1")
    weights = 4 * count_parameters(MODEL)
    assert size(made, "engine", "weights") == pytest.approx(weights)
    assert size(made, "engine", "packed head") == pytest.approx(4 * 100 * 1000)
    assert size(made, "engine", "KV cache") == 0.5 * GIB
    assert size(made, "engine", "new weights") == pytest.approx(weights)
    assert size(made, "engine", "sync buffers") == 2**20
    assert role(made, "engine").parts[0].gib == ENGINE_GIB
    # a small model's updates are less than the compiler that its first start needs
    fixed = sum(part.gib for part in role(made, "engine").parts if not part.phase)
    assert role(made, "engine").gib("host") == pytest.approx(fixed + COMPILER_GIB)


def test_every_worker_of_a_tensor_parallel_engine_is_a_process():
    made = plan("cluster.rollout.tensor_parallel_size=2")
    assert role(made, "engine").parts[0].gib == ENGINE_FRONT_GIB + 2 * ENGINE_CORE_GIB


def test_every_reward_is_a_process_and_a_rule_has_no_model():
    body = 4 * (count_parameters(MODEL) - 1000 * 100)
    # a judge reads few rows of the embedding, and what it does not read of its file is not there
    assert size(plan(), "reward rm", "weights") == pytest.approx(body)
    assert role(plan(), "reward gold").gib("host") == RULE_GIB
    stored_otherwise = plan(model={**MODEL, "dtype": "bfloat16"})
    whole = 4 * count_parameters(MODEL)
    assert size(stored_otherwise, "reward rm", "weights") == pytest.approx(whole)
    two = plan("feedback.rewards.second={kind: ensemble, path: null, paths: [p, q]}")
    assert size(two, "reward second", "weights") == pytest.approx(2 * body)


def test_a_reference_reads_its_whole_file_and_makes_logits():
    made = plan()
    assert size(made, "reference", "weights") == pytest.approx(4 * count_parameters(MODEL))
    assert size(made, "reference", "logits") == pytest.approx(3 * 4 * 1024 * 1000)


def test_a_judge_that_writes_is_an_engine():
    made = plan("feedback.rewards.rm={kind: llm_judge, path: p, prompt_file: f}")
    assert size(made, "reward rm", "KV cache") == 0.25 * GIB
    assert "new weights" not in [part.name for part in role(made, "reward rm").parts]


def test_on_gpus_only_processes_and_offloaded_states_stay_on_the_host():
    cuda = (
        "cluster.device=cuda",
        "cluster.learner.gpus_per_worker=1",
        "cluster.rollout.gpus_per_engine=1",
        "cluster.reward.gpus_per_worker=0.5",
        "cluster.reference.gpus_per_worker=0.5",
    )
    made = plan(*cuda)
    processes = LEARNER_GIB + ENGINE_GIB + 2 * FROZEN_GIB + RULE_GIB
    assert made.host_gib == pytest.approx(processes + role(made, "ray").gib("host"))
    assert size(made, "engine", "CUDA context") == pytest.approx(CUDA_CONTEXT_GIB * GIB)
    # the buffer that gradients are reduced in is allocated whole
    assert size(made, "learner", "policy gradient bucket") == 4 * 5 * 10**8
    assert role(made, "engine").gib("gpu") > 0.25
    offloaded = plan(*cuda, "cluster.learner.offload_optimizer=true")
    moved = (offloaded.host_gib - made.host_gib) * GIB
    # masters, moments and gradient, and what an optimizer step needs beside them
    assert moved == pytest.approx((16 + 10) * count_parameters(MODEL))


def test_the_total_counts_every_process_and_ray():
    made = plan("cluster.rollout.num_engines=3")
    expected = sum(r.count * r.gib("host") for r in made.roles)
    assert made.host_gib == pytest.approx(expected)
    grown = made.host_gib - plan().host_gib
    assert grown == pytest.approx(2 * role(made, "engine").gib("host"))


def test_ray_itself_is_counted_where_the_run_starts_it():
    own, joined = (
        role(plan(*how, gib=None), "ray").gib("host")
        for how in (("cluster.dashboard=false",), ("cluster.address=head:6379",))
    )
    assert own - joined == pytest.approx(DAEMONS_GIB)
    watching = MONITOR_GIB + PAGES_GIB
    assert joined == pytest.approx(TRAIN_GIB + DRIVER_GIB + COLLECTOR_GIB + watching, abs=0.01)
    unseen = role(plan("cluster.dashboard=false", "cluster.metrics.enabled=false", gib=None), "ray")
    assert own - unseen.gib("host") == pytest.approx(watching)
    assert role(plan("cluster.dashboard=true"), "ray").gib("host") > own


def test_the_demo_is_planned_within_its_budget():
    tiny = {**MODEL, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    for name in ("rloo", "ppo"):
        assert plan(f"algorithm.name={name}", model=tiny).host_gib < 12


# Refusals


def test_a_run_that_does_not_fit_names_the_largest_role_and_what_to_lower():
    many = refusal("cluster.rollout.num_engines=8", gib=6)
    assert "largest role is engine (8 x" in many
    assert "lower cluster.rollout.num_engines" in many
    cache = refusal("cluster.rollout.kv_cache_gib=50", gib=20)
    assert "lower cluster.rollout.kv_cache_gib" in cache
    tokens = "algorithm.tokens_per_micro_batch=600000"
    long = refusal(tokens, "data.prompts_per_step=4000", gib=20)
    assert "largest role is learner" in long
    assert "lower algorithm.tokens_per_micro_batch" in long


CUDA = (
    "cluster.device=cuda", "model.dtype=bfloat16", "cluster.learner.gpus_per_worker=1",
    "cluster.rollout.gpus_per_engine=0.6", "cluster.reward.gpus_per_worker=0.4",
    "cluster.reference.gpus_per_worker=0.4",
)  # fmt: skip


def on_gpus(*overrides, one_gpu_gib):
    config = load_config(DEMO / "run.yaml", [*CUDA, *overrides])
    return derive(config, MODEL, None, one_gpu_gib=one_gpu_gib)


def test_shares_of_gpus_are_packed_as_ray_packs_them():
    made = on_gpus(one_gpu_gib=24)
    loads = gpu_loads(made.roles)
    names = [set(inside) for _, inside in loads]
    assert names == [{"learner"}, {"engine", "reward rm"}, {"reward gold", "reference"}]
    assert [round(taken, 6) for taken, _ in loads] == [1.0, 1.0, 0.8]
    two = on_gpus("cluster.rollout.tensor_parallel_size=2", "cluster.rollout.gpus_per_engine=2",
                  one_gpu_gib=24)  # fmt: skip
    engines = [inside["engine"] for _, inside in gpu_loads(two.roles) if "engine" in inside]
    assert engines == [role(two, "engine").gib("gpu") / 2] * 2


def test_a_gpu_that_is_too_small_is_refused_by_what_lies_on_it():
    assert on_gpus(one_gpu_gib=24).fits
    cache = on_gpus("cluster.rollout.kv_cache_gib=30", one_gpu_gib=24)
    assert cache.refusal is not None
    assert cache.refusal.startswith("engine and reward rm on one GPU need about 3")
    assert "lower cluster.rollout.kv_cache_gib" in cache.refusal
    assert on_gpus("cluster.rollout.kv_cache_gib=30", one_gpu_gib=80).fits
    assert on_gpus("cluster.rollout.kv_cache_gib=30", one_gpu_gib=None).fits


def test_following_the_advice_makes_it_fit():
    big = ("cluster.rollout.kv_cache_gib=50",)
    assert not plan(*big, gib=20).fits
    assert plan("cluster.rollout.kv_cache_gib=5", gib=20).fits


def test_the_users_memory_goes_before_the_machines():
    assert plan("cluster.memory_gib=2").available_gib == 2
    assert not plan("cluster.memory_gib=2").fits


def test_another_cluster_is_not_judged_by_this_machine():
    made = plan("cluster.address=ray://head:10001", gib=0.1, cores=1)
    assert made.fits
    assert made.available_gib is None
    assert made.warnings == (
        "memory is not checked: set cluster.memory_gib to what the run may take",
    )


def test_an_unknown_model_is_planned_without_its_weights_and_says_so():
    made = plan(model=None)
    processes = LEARNER_GIB + ENGINE_GIB + COMPILER_GIB + 2 * FROZEN_GIB + RULE_GIB
    assert made.host_gib == pytest.approx(processes + 0.25 + role(made, "ray").gib("host"))
    assert "size is unknown" in made.warnings[0]


def test_a_model_whose_size_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match=r"config\.json"):
        plan(model={"model_type": "qwen3"})


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().cpus = 3  # pyright: ignore[reportAttributeAccessIssue] - what is tested


# The table


def test_the_table_shows_every_role_and_the_verdict():
    made = plan("cluster.rollout.num_engines=2")
    lines = render(made).splitlines()
    assert lines[0] == "rloo: 80 learner steps, 10,240 samples"
    engine = next(line for line in lines if "engine" in line).split()
    assert engine[:4] == ["engine", "2", "0.5", "0"]
    assert float(engine[4]) == pytest.approx(role(made, "engine").gib("host"), abs=0.006)
    total = next(line for line in lines if line.strip().startswith("total")).split()
    assert float(total[3]) == pytest.approx(made.host_gib, abs=0.006)
    assert lines[-1] == "fits"
    assert max(len(line) for line in lines) <= 100


def test_the_table_ends_with_the_refusal():
    made = plan("cluster.memory_gib=1")
    assert render(made).splitlines()[-1] == f"refused: {made.refusal}"


# The machine


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("memory_", "memory.")).write_text(text)


def test_cgroup_limits_of_the_second_version_count_from_the_innermost_out(tmp_path):
    root = tmp_path / "cgroup"
    group(root / "a/b", memory_max="1000\n", memory_current="700\n")
    (root / "a/b/memory.stat").write_text("anon 1\ninactive_file 50\n")
    group(root / "a", memory_max="max\n", memory_current="900\n")
    group(root, memory_max="5000\n", memory_current="6000\n")
    (tmp_path / "self").write_text("0::/a/b\n")
    assert list(cgroup_headroom(root, tmp_path / "self")) == [350, 0]


def test_cgroup_limits_of_the_first_version_are_read(tmp_path):
    root = tmp_path / "cgroup"
    group(root / "memory", memory_limit_in_bytes="1000", memory_usage_in_bytes="400")
    (root / "memory/memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\n")
    (tmp_path / "self").write_text("5:cpu,cpuacct:/x\n4:memory:/not/visible\n0::/\n")
    assert list(cgroup_headroom(root, tmp_path / "self")) == [700]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert list(cgroup_headroom(tmp_path, tmp_path / "missing")) == []


def test_this_machine_has_memory_and_cores():
    assert available_memory() > 2**28
    assert available_cores() >= 1
