"""What settings must be to each other: one rule a function, each answering with its remedy.

A rule returns one line, or None where it is kept. `violations` asks them all.
"""

from collections.abc import Callable

from configs import feedback_checks as feedback
from configs import fleet_checks as fleet
from configs import observation_checks as observation
from configs.preference_checks import PREFERENCE, is_preference
from configs.schema import GROUPED, OFFLINE, RunConfig

Rule = Callable[[RunConfig], str | None]


def violations(config: RunConfig) -> list[str]:
    """One line for each rule that the configuration breaks."""
    if config.algorithm.name in OFFLINE:
        rules = _ALWAYS + _OFFLINE
    elif is_preference(config):
        rules = _ALWAYS + _SAMPLED + PREFERENCE
    else:
        rules = _ALWAYS + _SAMPLED + _POLICY_GRADIENT
    return [line for rule in rules if (line := rule(config)) is not None]


# Data and batches


def _minibatches(config: RunConfig) -> str | None:
    prompts, parts = config.data.prompts_per_step, config.algorithm.num_minibatches
    if config.algorithm.advantage in GROUPED and prompts % parts:
        return (
            f"algorithm.num_minibatches={parts} would split groups: data.prompts_per_step="
            f"{prompts} must be a multiple of it"
        )
    sequences = prompts * config.data.samples_per_prompt
    if sequences % parts:
        return (
            f"algorithm.num_minibatches={parts} does not divide the {sequences} sequences of a "
            "step (data.prompts_per_step x data.samples_per_prompt)"
        )
    return None


def _enough_for_each_rank(config: RunConfig) -> str | None:
    ranks, parts = config.cluster.learner.num_workers, config.algorithm.num_minibatches
    if config.data.prompts_per_step >= ranks * parts:
        return None
    return (
        f"data.prompts_per_step={config.data.prompts_per_step} leaves ranks without work: at least "
        f"{ranks * parts} (cluster.learner.num_workers x algorithm.num_minibatches)"
    )


def _fewest_ranks(config: RunConfig) -> str | None:
    learner = config.cluster.learner
    if learner.min_workers is None or learner.min_workers <= learner.num_workers:
        return None
    return (
        f"cluster.learner.min_workers={learner.min_workers} is more than cluster.learner."
        f"num_workers={learner.num_workers}, the most there may be: lower it"
    )


def _micro_batch(config: RunConfig) -> str | None:
    tokens, longest = config.algorithm.tokens_per_micro_batch, config.model.max_length
    if tokens >= longest:
        return None
    return (
        f"algorithm.tokens_per_micro_batch={tokens} cannot hold one sequence: raise it to at least "
        f"model.max_length={longest}"
    )


def _reply_fits(config: RunConfig) -> str | None:
    reply, longest = config.data.sampling.max_new_tokens, config.model.max_length
    prompt = config.data.max_prompt_length
    if reply >= longest:
        return (
            f"data.sampling.max_new_tokens={reply} leaves no room for a prompt: lower it, or raise "
            f"model.max_length={longest}"
        )
    if prompt is not None and prompt + reply > longest:
        return (
            f"data.max_prompt_length={prompt} plus data.sampling.max_new_tokens={reply} is more "
            f"than model.max_length={longest}: lower one, or raise model.max_length"
        )
    return None


def _prompt_fits(config: RunConfig) -> str | None:
    prompt, longest = config.data.max_prompt_length, config.model.max_length
    if prompt is None or prompt < longest:
        return None
    return (
        f"data.max_prompt_length={prompt} leaves no room for a reply: lower it below "
        f"model.max_length={longest}"
    )


# Feedback


def _overlong_buffer(config: RunConfig) -> str | None:
    buffer, longest = config.feedback.overlong_buffer, config.data.sampling.max_new_tokens
    if buffer is None or buffer <= longest:
        return None
    return (
        f"feedback.overlong_buffer={buffer} is longer than a reply: lower it to at most "
        f"data.sampling.max_new_tokens={longest}"
    )


# The algorithm


def _offline_is_plain(config: RunConfig) -> str | None:
    algorithm, name = config.algorithm, config.algorithm.name
    remedies = {
        "data.samples_per_prompt=1": config.data.samples_per_prompt == 1,
        "no feedback.rewards": not config.feedback.rewards,
        "no feedback.selection": config.feedback.selection is None,
        "no feedback.label_budget": config.feedback.label_budget is None,
        "algorithm.advantage=none": algorithm.advantage == "none",
        "algorithm.max_staleness=0": algorithm.max_staleness == 0,
        "algorithm.correction.mode=none": algorithm.correction.mode == "none",
        "algorithm.kl.coef=0": algorithm.kl.coef == 0,
    }
    missing = [remedy for remedy, kept in remedies.items() if not kept]
    if not missing:
        return None
    return f"algorithm.name={name} learns from stored rows, not samples: use {', '.join(missing)}"


def _data_is_sampled(config: RunConfig) -> str | None:
    data, name = config.data, config.algorithm.name
    wrong = {
        f"data.source={data.source}": data.source != "policy",
        f"data.pairing={data.pairing}": data.pairing != "none",
        "data.sampling.greedy=true": data.sampling.greedy,
        "data.sliced=true": data.sliced,
        "algorithm.iteration_steps": config.algorithm.iteration_steps is not None,
        "feedback.curate_by": config.feedback.curate_by is not None,
        "model.extra_references": bool(config.model.extra_references),
    }
    given = [setting for setting, is_given in wrong.items() if is_given]
    if not given:
        return None
    return (
        f"{given[0]} has no meaning for algorithm.name={name}, which learns from samples of the "
        "policy: leave it out, or choose a preference method"
    )


def _advantage_given(config: RunConfig) -> str | None:
    if config.algorithm.advantage != "none":
        return None
    return "algorithm.advantage=none gives the policy nothing to learn from: choose rloo or gae"


def _group_of_two(config: RunConfig) -> str | None:
    advantage = config.algorithm.advantage
    # The greedy reply comes on top of the samples, so one of those is enough.
    alone = advantage == "greedy_baseline" or advantage not in GROUPED
    if alone or config.data.samples_per_prompt >= 2:
        return None
    return (
        f"algorithm.advantage={advantage} compares replies to one prompt: set "
        f"data.samples_per_prompt to 2 or more, not {config.data.samples_per_prompt}, or use "
        "algorithm.name=ppo"
    )


def _filter_has_groups(config: RunConfig) -> str | None:
    algorithm = config.algorithm
    if not algorithm.filter_groups or algorithm.advantage in GROUPED:
        return None
    return (
        f"algorithm.filter_groups compares replies to one prompt, and algorithm.advantage="
        f"{algorithm.advantage} does not: set filter_groups to false, or advantage to "
        "group_normalised"
    )


def _top1_is_imitation(config: RunConfig) -> str | None:
    algorithm = config.algorithm
    if algorithm.advantage != "top1":
        return None
    in_reward = algorithm.kl.place == "reward" and algorithm.kl.coef > 0
    remedies = {
        "algorithm.ratio=none": algorithm.ratio == "none",
        "algorithm.kl.coef=0": not in_reward,
        "algorithm.whiten_advantages=false": not algorithm.whiten_advantages,
    }
    missing = [remedy for remedy, kept in remedies.items() if not kept]
    if not missing:
        return None
    return f"algorithm.advantage=top1 imitates the best reply as it is: use {', '.join(missing)}"


def _clip_has_ratio(config: RunConfig) -> str | None:
    algorithm = config.algorithm
    clips = {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}
    named = [f"algorithm.{name}" for name, bound in clips.items() if bound is not None]
    if algorithm.ratio != "none" or not named:
        return None
    return f"algorithm.ratio=none has nothing to clip: set {' and '.join(named)} to null"


def _dual_clip_has_ratio(config: RunConfig) -> str | None:
    if config.algorithm.dual_clip is None or config.algorithm.ratio == "token":
        return None
    return (
        f"algorithm.dual_clip bounds token ratios: set it to null, or algorithm.ratio="
        f"{config.algorithm.ratio} to token"
    )


def _kl_loss(config: RunConfig) -> str | None:
    kl = config.algorithm.kl
    if kl.place != "loss" or kl.estimator != "k1":
        return None
    return (
        "algorithm.kl.estimator=k1 as a loss has a gradient of mean zero: use k2 or k3, or "
        "algorithm.kl.place=reward"
    )


def _kl_target(config: RunConfig) -> str | None:
    kl = config.algorithm.kl
    if kl.target is None or kl.coef > 0:
        return None
    return (
        f"algorithm.kl.target={kl.target:g} multiplies algorithm.kl.coef, and 0 stays 0: set "
        "algorithm.kl.coef above 0, or target to null"
    )


def _correction_bounds(config: RunConfig) -> str | None:
    correction = config.algorithm.correction
    if correction.low <= correction.high:
        return None
    return (
        f"algorithm.correction.low={correction.low:g} is above algorithm.correction.high="
        f"{correction.high:g}: swap or change them"
    )


def _bypass_has_ratio(config: RunConfig) -> str | None:
    if config.algorithm.correction.mode != "bypass" or config.algorithm.ratio != "none":
        return None
    return (
        "algorithm.correction.mode=bypass leaves the correction to the ratio, and algorithm.ratio "
        "is none: set it to token or sequence, or choose another mode"
    )


def _correction_options(config: RunConfig) -> str | None:
    correction = config.algorithm.correction
    options = {"veto": correction.veto is not None, "batch_normalise": correction.batch_normalise}
    given = [f"algorithm.correction.{name}" for name, used in options.items() if used]
    if correction.mode not in ("none", "bypass") or not given:
        return None
    return (
        f"{' and '.join(given)} act on weights that algorithm.correction.mode={correction.mode} "
        "does not compute: leave out, or choose another mode"
    )


def _truncated_sampling(config: RunConfig) -> str | None:
    top_p, mode = config.data.sampling.top_p, config.algorithm.correction.mode
    if top_p == 1 or mode == "none":
        return None
    return (
        f"data.sampling.top_p={top_p:g} renormalises the engine's log-probs over tokens the "
        f"learner cannot know, so algorithm.correction.mode={mode} would be wrong: set top_p=1, or "
        "mode=none"
    )


def _stale_samples(config: RunConfig) -> str | None:
    algorithm = config.algorithm
    if algorithm.max_staleness == 0 or algorithm.correction.mode != "none":
        return None
    return (
        f"algorithm.max_staleness={algorithm.max_staleness} trains on samples of older policies: "
        "set algorithm.correction.mode (token_tis, say), or max_staleness=0"
    )


def _warmup(config: RunConfig) -> str | None:
    steps = config.algorithm.num_steps
    for name in ("optimizer", "critic_optimizer"):
        optimizer = getattr(config.algorithm, name)
        if optimizer is not None and optimizer.warmup_steps > steps:
            return (
                f"algorithm.{name}.warmup_steps={optimizer.warmup_steps} is more than "
                f"algorithm.num_steps={steps}: lower it"
            )
    return None


# The machines


def _gpus(config: RunConfig) -> dict[str, float]:
    """GPUs of each role that runs, by the setting's name."""
    cluster, gpus = config.cluster, {}
    gpus["cluster.learner.gpus_per_worker"] = cluster.learner.gpus_per_worker
    if config.algorithm.name in OFFLINE:
        return gpus
    gpus["cluster.rollout.gpus_per_engine"] = cluster.rollout.gpus_per_engine
    gpus["cluster.reference.gpus_per_worker"] = cluster.reference.gpus_per_worker
    if feedback.has_reward_models(config):
        gpus["cluster.reward.gpus_per_worker"] = cluster.reward.gpus_per_worker
    return gpus


def _device_has_gpus(config: RunConfig) -> str | None:
    gpus = _gpus(config)
    if config.cluster.device == "cuda":
        without = [name for name, count in gpus.items() if count == 0]
        remedy = "set to 1, or to a share such as 0.2, or use cluster.device=cpu"
    else:
        without = [name for name, count in gpus.items() if count > 0]
        remedy = "set to 0, or use cluster.device=cuda"
    if not without:
        return None
    values = ", ".join(f"{name}={gpus[name]:g}" for name in without)
    return f"cluster.device={config.cluster.device} with {values}: {remedy}"


def _tensor_parallel(config: RunConfig) -> str | None:
    rollout = config.cluster.rollout
    size = rollout.tensor_parallel_size
    if config.cluster.device == "cpu" or size == 1 or rollout.gpus_per_engine == size:
        return None
    return (
        f"cluster.rollout.tensor_parallel_size={size} needs as many GPUs: set "
        f"cluster.rollout.gpus_per_engine={size}"
    )


def _transport(config: RunConfig) -> str | None:
    device, transport = config.cluster.device, config.cluster.sync.transport
    if device == "cpu" and transport in ("nccl", "ipc"):
        return f"cluster.sync.transport={transport} needs GPUs: use auto or gloo on cpu"
    if device == "cuda" and transport == "gloo":
        return (
            "cluster.sync.transport=gloo would carry every weight through host memory: use auto, "
            "nccl or ipc on cuda"
        )
    shared = config.cluster.learner.gpus_per_worker + config.cluster.rollout.gpus_per_engine
    if transport == "ipc" and shared > 1:
        return (
            f"cluster.sync.transport=ipc needs learner and engine on one GPU, and they ask for "
            f"{shared:g} together: lower gpus_per_worker and gpus_per_engine, or use nccl"
        )
    return None


def _offload(config: RunConfig) -> str | None:
    if config.cluster.device == "cuda" or not config.cluster.learner.offload_optimizer:
        return None
    return (
        "cluster.learner.offload_optimizer moves states from the GPU to the host, and there is no "
        "GPU: set it to false"
    )


_ALWAYS: tuple[Rule, ...] = (
    _minibatches,
    _enough_for_each_rank,
    _fewest_ranks,
    _micro_batch,
    fleet.learner_sizes,
    *feedback.ALWAYS,
    _correction_bounds,
    _kl_target,
    _warmup,
    _device_has_gpus,
    _offload,
    observation.loggers_are_fed,
    observation.loggers_have_one_training,
    observation.profiled_steps_are_taken,
)
_OFFLINE: tuple[Rule, ...] = (_offline_is_plain, _prompt_fits)
_SAMPLED: tuple[Rule, ...] = (
    _reply_fits,
    fleet.lateness,
    fleet.fleet_sizes,
    feedback.rewards_needed,
    feedback.something_to_compare,
    feedback.selection,
    feedback.label_budget,
    _overlong_buffer,
    _tensor_parallel,
    _transport,
)
_POLICY_GRADIENT: tuple[Rule, ...] = (
    _data_is_sampled,
    _advantage_given,
    _group_of_two,
    _filter_has_groups,
    _top1_is_imitation,
    _clip_has_ratio,
    _dual_clip_has_ratio,
    _kl_loss,
    _bypass_has_ratio,
    _correction_options,
    _truncated_sampling,
    _stale_samples,
)
