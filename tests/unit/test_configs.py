"""Loading a configuration: layers, refusals in one line, rules between settings, the recipes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import configs
from configs.keys import ELSEWHERE, every_name
from configs.load import ConfigError, load_config, merge, to_yaml
from configs.schema import OptimizerConfig

FOLDER = Path(configs.__file__).parent
ROOT = FOLDER.parent
RECIPES = sorted(p for p in FOLDER.rglob("*.yaml") if p.parent.name != "ablations")
RUN = {
    "model": {"path": "m", "max_length": 128},
    "data": {
        "train": "t",
        "prompts_per_step": 8,
        "samples_per_prompt": 2,
        "sampling": {"max_new_tokens": 64},
    },
    "feedback": {"rewards": {"gold": {"kind": "gold"}}},
    "algorithm": {"name": "rloo", "num_steps": 10},
    "cluster": {"run_dir": "r"},
}
SFT = {
    "model": {"path": "m"},
    "data": {"train": "t"},
    "algorithm": {"name": "sft", "num_steps": 10},
    "cluster": {"run_dir": "r"},
}


def load(*overrides, base=RUN):
    return load_config(None, overrides, base=base)


def refusal(*overrides, base=RUN):
    with pytest.raises(ConfigError) as caught:
        load(*overrides, base=base)
    return str(caught.value)


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def file_refusal(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path, base=RUN)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Recipes and the import


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_every_recipe_loads_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path)
    assert load_config(write(tmp_path, "config.yaml", to_yaml(config))) == config


def test_all_recipes_are_found():
    assert {str(p.relative_to(FOLDER)) for p in RECIPES} >= {
        "demo/sft.yaml",
        "demo/reward_model.yaml",
        "demo/run.yaml",
        "sft.yaml",
        "reward_model.yaml",
        "rloo.yaml",
        "ppo.yaml",
        "gpu_8x.yaml",
    }


def test_the_demo_becomes_ppo_by_one_override():
    config = load_config(FOLDER / "demo/run.yaml", ["algorithm.name=ppo"])
    assert (config.algorithm.advantage, config.algorithm.ratio) == ("gae", "token")
    assert (config.algorithm.clip_low, config.algorithm.num_epochs) == (0.2, 2)


def test_importing_configs_pulls_in_no_heavy_library_and_is_quick():
    code = (
        "import sys, time, configs.load, configs.plan\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'deepspeed', 'numpy', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert time.process_time() < 1, time.process_time()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


FAMILY = {
    "reinforce_pp": ("reward_to_go", "token", "token_mean"),
    "reinforce_pp_baseline": ("group_centred", "token", "token_mean"),
    "grpo": ("group_normalised", "token", "sequence_mean"),
    "dr_grpo": ("group_centred", "token", "constant"),
    "dapo": ("group_normalised", "token", "token_mean"),
    "gspo": ("group_normalised", "geometric", "sequence_mean"),
    "cispo": ("group_normalised", "cispo", "token_mean"),
    "remax": ("greedy_baseline", "none", "sequence_sum"),
    "lite_ppo": ("batch_normalised", "token", "token_mean"),
    "raft": ("top1", "none", "token_mean"),
}
"""Advantage, ratio and aggregation of each method without a critic, beside RLOO."""


@pytest.mark.parametrize("name", FAMILY)
def test_a_method_without_critic_loads_and_is_what_its_paper_says(name):
    algorithm = load(f"algorithm.name={name}").algorithm
    assert (algorithm.advantage, algorithm.ratio, algorithm.aggregation) == FAMILY[name]
    in_reward = algorithm.kl.coef > 0 and algorithm.kl.place == "reward"
    in_loss = algorithm.kl.coef > 0 and algorithm.kl.place == "loss"
    assert in_reward == (name in ("reinforce_pp", "remax"))
    assert in_loss == (name in ("reinforce_pp_baseline", "grpo"))
    assert algorithm.whiten_advantages == name.startswith("reinforce_pp")


def test_clips_of_the_methods_without_critic_are_those_of_their_papers():
    wide, tight, weight = (load(f"algorithm.name={n}").algorithm for n in ("dapo", "gspo", "cispo"))
    assert (wide.clip_low, wide.clip_high, wide.filter_groups) == (0.2, 0.28, True)
    assert (tight.clip_low, tight.clip_high, tight.num_minibatches) == (3e-4, 4e-4, 4)
    assert (weight.clip_low, weight.clip_high) == (None, 4.0)


@pytest.mark.parametrize("name", FAMILY)
def test_t4_4_one_reply_a_prompt_is_refused_where_replies_are_compared(name):
    overrides = f"algorithm.name={name}", "data.samples_per_prompt=1"
    if name in ("reinforce_pp", "remax"):  # nothing to compare with, and one more reply, greedy
        assert load(*overrides)
    else:
        message = refusal(*overrides)
        assert f"algorithm.advantage={FAMILY[name][0]} compares replies to one prompt" in message
        assert "data.samples_per_prompt to 2 or more, not 1" in message


# Layers


def test_mappings_merge_and_everything_else_is_replaced():
    under = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merge(under, {"a": {"c": [3]}, "d": {"e": 5}}) == {
        "a": {"b": 1, "c": [3]},
        "d": {"e": 5},
    }
    assert under == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_layers_go_method_base_parent_file_override(tmp_path):
    write(tmp_path, "parent.yaml", "data: {seed: 1, prompts_per_step: 10}\nmodel: {path: parent}")
    path = write(tmp_path, "child.yaml", "extends: parent.yaml\ndata:\n  seed: 2\nfeedback:\n")
    config = load_config(path, ["algorithm.num_steps=7"], base=RUN)
    assert config.algorithm.kl.coef == 0.03  # the method
    assert config.data.samples_per_prompt == 2  # base
    assert (config.model.path, config.data.prompts_per_step) == ("parent", 10)
    assert config.data.seed == 2  # the file over its parent
    assert config.algorithm.num_steps == 7
    assert set(config.feedback.rewards) == {"gold"}  # an empty section changes nothing


def test_explicit_values_win_over_the_methods():
    config = load("algorithm.kl.coef=0.5")
    assert (config.algorithm.kl.coef, config.algorithm.aggregation) == (0.5, "sequence_sum")


def test_null_takes_an_inherited_reward_away():
    config = load("feedback.rewards.rm={kind: model, path: p}", "feedback.rewards.gold=null")
    assert set(config.feedback.rewards) == {"rm"}
    assert load("algorithm.optimizer.max_grad_norm=null").algorithm.optimizer.max_grad_norm is None


def test_overrides_reach_named_entries_and_lists():
    config = load(
        "feedback.rewards.rm.kind=model",
        "feedback.rewards.rm.path=/x/y",
        "data.sampling.stop=[a, b]",
        "algorithm.critic_optimizer.learning_rate=1e-5",
        "algorithm.optimizer.betas=[0.8, 0.9]",
    )
    assert config.feedback.rewards["rm"].path == "/x/y"
    assert config.data.sampling.stop == ("a", "b")
    assert config.algorithm.critic_optimizer == OptimizerConfig(learning_rate=1e-5)
    assert config.algorithm.optimizer.betas == (0.8, 0.9)


def test_text_on_the_command_line_is_taken_as_it_is():
    config = load("data.system_prompt=You are: [kind", "data.train=007", "model.path='a b'")
    assert config.data.system_prompt == "You are: [kind"
    assert (config.data.train, config.model.path) == ("007", "a b")


def test_a_config_cannot_be_written_to():
    with pytest.raises(ValueError, match="frozen"):
        load().data.seed = 3


@pytest.mark.parametrize("text", ["1e-6", "010", "yes", "2026-01-01", "null", "a: b", "~", "1.5"])
def test_text_that_looks_like_something_else_survives_a_round_trip(text, tmp_path):
    base = merge(RUN, {"data": {"system_prompt": text}})
    written = write(tmp_path, "c.yaml", to_yaml(load(base=base)))
    assert load_config(written).data.system_prompt == text


# Names


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "data.promts_per_step=4",
            "data.promts_per_step is not a setting; did you mean data.prompts_per_step?",
        ),
        ("dta.train=x", "dta.train is not a setting; did you mean data.train?"),
        (
            "data.temperature=1",
            "data.temperature is not a setting; did you mean data.sampling.temperature?",
        ),
        ("lr=1", "lr is not a setting; did you mean algorithm.optimizer.learning_rate?"),
        (
            "feedback.rewards.rm.pth=x",
            "feedback.rewards.rm.pth is not a setting; did you mean feedback.rewards.rm.path?",
        ),
        ("model.path.x=1", "model.path.x is not a setting; model.path takes a plain value"),
        (
            "zzz=1",
            "zzz is not a setting; there are model, data, feedback, algorithm, cluster",
        ),
        (
            "cluster.sync={probe: 2}",
            "cluster.sync.probe is not a setting; did you mean cluster.sync.probe_tolerance?",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(override, line):
    assert refusal(override) == line


def test_unknown_names_in_a_file_are_all_reported_with_the_file(tmp_path):
    path = write(tmp_path, "c.yaml", "modle: {}\ndata: {trian: x}\ndata.seed: 1")
    with pytest.raises(ConfigError) as caught:
        load_config(path, base=RUN)
    assert str(caught.value).splitlines() == [
        f"{path}: modle is not a setting; did you mean model?",
        f"{path}: data.trian is not a setting; did you mean data.train?",
        f"{path}: data.seed: dotted names are for the command line; nest it here",
    ]


def test_names_of_other_trainers_point_to_settings_that_exist():
    assert set(ELSEWHERE.values()) <= set(every_name())


def test_an_unknown_method_is_refused_with_the_nearest():
    assert refusal("algorithm.name=RLO") == (
        "algorithm.name=RLO is not a method; did you mean rloo? `attune methods` lists them"
    )
    assert "algorithm.name is required" in refusal(base={})


# Values


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.prompts_per_step=0", "data.prompts_per_step is 0; it should be greater than 0"),
        (
            "data.prompts_per_step=true",
            "data.prompts_per_step is true; it should be a whole number",
        ),
        (
            "data.prompts_per_step=32.5",
            "data.prompts_per_step is 32.5; it should be a whole number",
        ),
        ("algorithm.gamma=high", 'algorithm.gamma is "high"; it should be a number'),
        (
            "model.dtype=float16",
            "model.dtype is \"float16\"; it should be 'float32' or 'bfloat16'; "
            "did you mean bfloat16?",
        ),
        ("model.path=", "model.path is null; it should be text"),
        (
            "data.sampling.stop=[1]",
            "data.sampling.stop.0 is 1; it should be text; put it in quotes",
        ),
        ("algorithm.optimizer.betas=[0.9]", "algorithm.optimizer.betas.1 is missing: "),
        ("algorithm.optimizer.betas=[0.9, 1.0]", "algorithm.optimizer.betas.1 is 1.0; it should"),
        ("algorithm.kl.coef=.inf", "algorithm.kl.coef is Infinity; it should be a finite number"),
        ("algorithm=rloo", "algorithm is 'rloo'; it should be a mapping of settings"),
        ("data.seed=" + "9" * 5000, "data.seed: a number has too many digits"),
        ("data.sampling.stop=[a", "data.sampling.stop:1: expected ',' or ']'"),
        ("data.seed", "'data.seed' is not an override; write section.key=value"),
        ("=3", "'=3' is not an override; write section.key=value"),
    ],
)
def test_a_wrong_value_is_refused_by_name_value_and_remedy(override, line):
    message = refusal(override)
    assert message.startswith(line)
    assert "\n" not in message


def test_required_settings_are_named_one_a_line():
    message = refusal(base={"algorithm": {"name": "sft"}, "cluster": {"run_dir": "r"}})
    assert message.splitlines() == [
        "model.path is required; set it in the YAML or add model.path=...",
        "data.train is required; set it in the YAML or add data.train=...",
        "algorithm.num_steps is required; set it in the YAML or add algorithm.num_steps=...",
    ]


# Files


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data:\n  seed: 1\n  seed: 2", ":3: seed was already given on line 2; keep one"),
        ("data:\n  seed: [1", ":2: expected ',' or ']'"),
        ("model: *m", ":1: "),
        ("model: &m {path: x}\ndata: *m", ":2: alias *m: write the value out"),
        ("model: !!python/object/apply:os.system [ls]", ":1: could not determine a constructor"),
        ("data: {seed: !!binary aGk=}", ":1: could not determine a constructor"),
        ("? [a, b]\n: 1", ":1: a key must be a plain name"),
        ("- a", ": holds a list; expected sections"),
        ("", ": holds nothing; expected sections"),
        ("a: 1\n---\nb: 2", ":2: but found another document"),
        ("extends: [a]", ": extends is ['a']; it should be the name of one YAML file"),
        ("extends: none.yaml", ": extends none.yaml, but there is no file"),
        ("extends: c.yaml", ": extends itself (c.yaml -> c.yaml)"),
        ("data: " + "[" * 3000, ": nested too deeply"),
        ("data: {seed: 010}", 'data.seed is "010"; it should be a whole number'),
    ],
)
def test_a_broken_file_is_refused_in_one_line(text, line, tmp_path):
    path = write(tmp_path, "c.yaml", text)
    message = file_refusal(path)
    assert message.startswith(f"{path}{line}" if line[0] == ":" else line)


def test_a_missing_file_a_folder_and_a_binary_are_refused_by_name(tmp_path):
    assert file_refusal(tmp_path / "no.yaml") == (
        f"{tmp_path / 'no.yaml'}: no such file; give the YAML of a run, or its folder"
    )
    assert file_refusal(tmp_path).startswith(f"{tmp_path}: is a folder")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\x00\x01")
    assert file_refusal(binary) == f"{binary}: is no text; give a YAML file in UTF-8"


def test_numbers_may_be_written_with_an_exponent_alone(tmp_path):
    path = write(tmp_path, "c.yaml", "algorithm: {optimizer: {learning_rate: 3e-4, eps: 1E-9}}")
    optimizer = load_config(path, base=RUN).algorithm.optimizer
    assert (optimizer.learning_rate, optimizer.eps) == (3e-4, 1e-9)
    assert yaml.safe_load("3e-4") == "3e-4"  # what PyYAML alone makes of it


# Rules between settings: (overrides that break it, what the line must name)

ONLINE_RULES = [
    (["data.samples_per_prompt=1"], "data.samples_per_prompt to 2 or more"),
    (["feedback.rewards.gold.weight=0"], "feedback.rewards.rm.kind=model"),
    (["feedback.rewards.rm.kind=model"], "feedback.rewards.rm.path is required"),
    (["feedback.rewards.f.kind=function"], "the Python file"),
    (["feedback.rewards.gold.path=x"], "feedback.rewards.gold.path=x has no meaning"),
    (["feedback.rewards.a/b.kind=gold"], "feedback.rewards.a/b"),
    (["algorithm.num_minibatches=3"], "data.prompts_per_step=8 must be a multiple"),
    (["algorithm.name=grpo", "algorithm.num_minibatches=3"], "would split groups"),
    (["algorithm.name=gspo", "data.prompts_per_step=6"], "algorithm.num_minibatches=4 would"),
    (["algorithm.name=ppo", "algorithm.filter_groups=true"], "set filter_groups to false"),
    (["algorithm.name=raft", "algorithm.ratio=token"], "best reply as it is: use algorithm.ratio="),
    (["algorithm.name=raft", "algorithm.kl.coef=0.1"], "use algorithm.kl.coef=0"),
    (["algorithm.name=raft", "algorithm.whiten_advantages=true"], "whiten_advantages=false"),
    (["algorithm.name=raft", "algorithm.max_staleness=1"], "or max_staleness=0"),
    (["algorithm.name=cispo", "algorithm.dual_clip=3"], "algorithm.dual_clip bounds token ratios"),
    (["feedback.overlong_buffer=65"], "at most data.sampling.max_new_tokens=64"),
    (["algorithm.name=ppo", "algorithm.num_minibatches=3"], "does not divide the 16 sequences"),
    (["cluster.learner.num_workers=9"], "data.prompts_per_step=8 leaves ranks without work"),
    (["data.sampling.max_new_tokens=128"], "data.sampling.max_new_tokens=128 leaves no room"),
    (["data.max_prompt_length=65"], "data.max_prompt_length=65 plus"),
    (["algorithm.tokens_per_micro_batch=127"], "at least model.max_length=128"),
    (["algorithm.kl.place=loss"], "use k2 or k3"),
    (["algorithm.kl.target=6", "algorithm.kl.coef=0"], "algorithm.kl.coef above 0"),
    (["algorithm.correction.low=3"], "algorithm.correction.low=3 is above"),
    (["algorithm.correction.mode=bypass"], "set it to token or sequence"),
    (["algorithm.correction.mode=none", "algorithm.correction.veto=1e-4"], "correction.veto act"),
    (["algorithm.clip_low=0.2"], "set algorithm.clip_low to null"),
    (["algorithm.dual_clip=3"], "algorithm.dual_clip bounds token ratios"),
    (["algorithm.advantage=none"], "choose rloo or gae"),
    (["data.sampling.top_p=0.9"], "set top_p=1, or mode=none"),
    (["algorithm.max_staleness=1", "algorithm.correction.mode=none"], "or max_staleness=0"),
    (["algorithm.optimizer.warmup_steps=11"], "algorithm.num_steps=10: lower it"),
    (["cluster.device=cuda"], "cluster.reference.gpus_per_worker=0: set to 1"),
    (["cluster.learner.gpus_per_worker=1"], "cluster.learner.gpus_per_worker=1: set to 0"),
    (["cluster.sync.transport=nccl"], "use auto or gloo on cpu"),
    (["cluster.learner.offload_optimizer=true"], "set it to false"),
]
CUDA = (
    "cluster.device=cuda",
    "cluster.learner.gpus_per_worker=1",
    "cluster.rollout.gpus_per_engine=1",
    "cluster.reference.gpus_per_worker=0.5",
)


def test_the_settings_that_the_rules_start_from_are_accepted():
    assert load().algorithm.advantage == "rloo"
    assert load(base=SFT).algorithm.correction.mode == "none"
    assert load(*CUDA).cluster.reward.gpus_per_worker == 0  # no reward model, no GPU for it


@pytest.mark.parametrize(("overrides", "named"), ONLINE_RULES, ids=lambda x: str(x)[:50])
def test_settings_that_contradict_each_other_are_refused_with_a_remedy(overrides, named):
    message = refusal(*overrides)
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["cluster.sync.transport=gloo"], "use auto, nccl or ipc"),
        (["cluster.sync.transport=ipc"], "ask for 2 together"),
        (["cluster.rollout.tensor_parallel_size=2"], "cluster.rollout.gpus_per_engine=2"),
        (
            ["feedback.rewards.rm={kind: model, path: p}"],
            "cluster.reward.gpus_per_worker=0",
        ),
    ],
)
def test_settings_that_contradict_the_gpus_are_refused(overrides, named):
    assert named in refusal(*CUDA, *overrides)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data.samples_per_prompt=2"], "use data.samples_per_prompt=1"),
        (["feedback.rewards.gold.kind=gold"], "use no feedback.rewards"),
        (["algorithm.max_staleness=1"], "use algorithm.max_staleness=0"),
        (["data.max_prompt_length=1024"], "data.max_prompt_length=1024 leaves no room"),
        (["data.prompts_per_step=4", "algorithm.num_minibatches=3"], "does not divide the 4"),
    ],
)
def test_methods_that_learn_from_rows_refuse_what_only_sampling_needs(overrides, named):
    assert named in refusal(*overrides, base=SFT)


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.name=ppo", "data.samples_per_prompt=1"],
        ["data.sampling.top_p=0.9", "algorithm.correction.mode=none"],
        ["algorithm.name=ppo", "algorithm.correction.mode=bypass"],
        ["algorithm.kl.place=loss", "algorithm.kl.estimator=k2"],
        ["algorithm.max_staleness=2"],
        ["algorithm.name=grpo", "algorithm.correction.mode=bypass"],
        ["algorithm.name=raft", "algorithm.kl={coef: 0.1, place: loss, estimator: k2}"],
        ["algorithm.name=cispo", "algorithm.clip_high=null"],
        ["feedback.overlong_buffer=64"],
        ["model.dtype=bfloat16"],
        ["cluster.checkpoint.interval=1000"],
        ["algorithm.gamma=0.9", "algorithm.value_clip=null"],  # without a critic: unused, harmless
        [*CUDA, "cluster.learner.offload_optimizer=true"],
        [
            *CUDA,
            "cluster.sync.transport=ipc",
            "cluster.learner.gpus_per_worker=0.5",
            "cluster.rollout.gpus_per_engine=0.5",
        ],
    ],
    ids=str,
)
def test_settings_that_go_together_are_accepted(overrides):
    assert load(*overrides)


def test_all_broken_rules_are_reported_together():
    message = refusal("algorithm.correction.low=3", "data.samples_per_prompt=1")
    assert len(message.splitlines()) == 2
