"""What settings of feedback must be to each other: each kind's files, and how rewards combine."""

import re

from configs.preference_checks import num_replies
from configs.schema import GROUP_WISE, MODEL_KINDS, OFFLINE, RewardConfig, RunConfig

NEEDED: dict[str, dict[str, str]] = {
    "gold": {},
    "label": {},
    "model": {"path": "the folder of the reward model"},
    "function": {"path": "the Python file"},
    "implicit": {
        "path": "the folder of the trained policy",
        "reference": "the folder that it was trained from",
        "beta": "the beta that it was trained with",
    },
    "classifier": {
        "path": "the folder of the classifier",
        "positive": "the index of the label that is wanted",
    },
    "ensemble": {"paths": "the folders of two or more reward models"},
    "ranker": {"path": "the folder of the cross-encoder"},
    "llm_judge": {
        "path": "the folder of the language model",
        "prompt_file": "a text with {prompt}, {first} and {second}",
    },
}
"""Per kind, the settings that it cannot do without."""
TAKEN = {
    "label": ("threshold",),
    "implicit": ("length_normalised",),
    "classifier": ("output",),
    "ensemble": ("reduce", "penalty"),
    "ranker": ("prompt_file",),
    "llm_judge": ("verdict", "verdict_tokens"),
}
"""Per kind, what it takes beside these, `kind` and `weight`."""


def rewards_needed(config: RunConfig) -> str | None:
    """Something to learn from."""
    if any(reward.weight for reward in config.feedback.rewards.values()):
        return None
    return (
        f"algorithm.name={config.algorithm.name} learns from rewards: name at least one with a "
        "weight other than 0, such as feedback.rewards.rm.kind=model feedback.rewards.rm.path=..."
    )


def reward_names(config: RunConfig) -> str | None:
    """Names that metrics can carry."""
    for name in config.feedback.rewards:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            return (
                f"feedback.rewards.{name}: a reward's name is a letter followed by letters, "
                "digits, - or _, for it becomes part of metric names"
            )
    return None


def reward_settings(config: RunConfig) -> str | None:
    """Every kind has its files and settings, and no others."""
    for name, reward in config.feedback.rewards.items():
        prefix = f"feedback.rewards.{name}."
        for field, meaning in NEEDED[reward.kind].items():
            if getattr(reward, field) in (None, "", ()):
                return f"{prefix}{field} is required for kind {reward.kind}: {meaning}"
        if line := _without_meaning(reward) or _ensemble(reward):
            return prefix + line
    return None


def _without_meaning(reward: RewardConfig) -> str | None:
    known = ("kind", "weight", *NEEDED[reward.kind], *TAKEN.get(reward.kind, ()))
    for field, info in RewardConfig.model_fields.items():
        value = getattr(reward, field)
        if field not in known and value != info.default:
            return f"{field}={value} has no meaning for kind {reward.kind}; leave it out"
    return None


def _ensemble(reward: RewardConfig) -> str | None:
    if reward.kind != "ensemble":
        return None
    if len(reward.paths) < 2:
        return f"paths has one folder: name {NEEDED['ensemble']['paths']}, or use kind model"
    if reward.reduce == "penalised" and reward.penalty is None:
        return "penalty is required for reduce penalised: the standard deviations to subtract"
    if reward.reduce != "penalised" and reward.penalty is not None:
        return (
            f"penalty={reward.penalty:g} has no meaning for reduce={reward.reduce}: leave it out, "
            "or set reduce=penalised"
        )
    return None


def selection(config: RunConfig) -> str | None:
    """Only fresh replies can be left unjudged, and a policy's certainty is against a reference."""
    chosen = config.feedback.selection
    if chosen is None:
        return None
    if config.data.source != "policy":
        return (
            f"feedback.selection chooses among fresh replies, and data.source={config.data.source} "
            "has others: use data.source=policy, or leave it out"
        )
    if config.data.sliced:
        return (
            "data.sliced=true gives every iteration as many prompts as it learns from, and "
            "feedback.selection chooses among more: leave one of them out"
        )
    if config.algorithm.resample_rounds:
        return (
            f"algorithm.resample_rounds={config.algorithm.resample_rounds} would judge more than "
            "feedback.selection chose: set it to 0, or leave out the selection"
        )
    if chosen.by in ("certainty", "hybrid"):
        if config.model.reference_update == "none":
            return (
                f"feedback.selection.by={chosen.by} reads a reference, and "
                f"algorithm.name={config.algorithm.name} has none: use entropy"
            )
        if config.data.samples_per_prompt < 2:
            return (
                f"feedback.selection.by={chosen.by} compares the replies to one prompt: set "
                "data.samples_per_prompt to 2 or more"
            )
    return None


def label_budget(config: RunConfig) -> str | None:
    """It pays for every step; what resampling may take besides is what is left of it."""
    budget = config.feedback.label_budget
    if budget is None:
        return None
    if "stored" in config.data.source:
        return (
            f"feedback.label_budget counts fresh replies, and data.source={config.data.source} "
            "has judged ones: leave it out"
        )
    if config.algorithm.resample_rounds and config.algorithm.max_staleness:
        return (
            f"feedback.label_budget={budget} cannot be shared by steps that resample at the same "
            "time: set algorithm.max_staleness=0 or algorithm.resample_rounds=0"
        )
    steps, each = config.algorithm.num_steps, labels_per_step(config)
    if steps * each <= budget:
        return None
    return (
        f"feedback.label_budget={budget} pays for {budget // each} steps of {each} judged replies, "
        f"not for algorithm.num_steps={steps}: lower that, or raise the budget to {steps * each}"
    )


def labels_per_step(config: RunConfig) -> int:
    """Fresh replies that are judged in one step, without those of resampling."""
    greedy = config.algorithm.advantage == "greedy_baseline"
    return config.data.prompts_per_step * (num_replies(config) + greedy)


def mixture_of_reward_models(config: RunConfig) -> str | None:
    """Only reward models are fitted to annotators."""
    if config.feedback.mixture is None or config.algorithm.name == "reward_model":
        return None
    return (
        f"feedback.mixture has no meaning for algorithm.name={config.algorithm.name}: leave it "
        "out, or train reward models first (attune reward-model) and name them as rewards"
    )


def one_worker(config: RunConfig) -> str | None:
    """Kinds that cannot be spread over workers."""
    workers = config.cluster.reward.num_workers
    for name, reward in config.feedback.rewards.items():
        setting = f"feedback.rewards.{name}.kind={reward.kind}"
        if workers > 1 and reward.kind in GROUP_WISE:
            return (
                f"cluster.reward.num_workers={workers} would split the groups of replies that "
                f"{setting} compares: set it to 1"
            )
        if workers > 1 and reward.kind == "classifier":
            return (
                f"cluster.reward.num_workers={workers}, but {setting} runs in one process: set it "
                "to 1"
            )
    return None


def reward_service(config: RunConfig) -> str | None:
    """An address that is one, for a run that has replies judged; replicas from few to many."""
    service, address = config.cluster.reward_service, config.feedback.service
    if service.max_replicas < service.min_replicas:
        return (
            f"cluster.reward_service.max_replicas={service.max_replicas} is less than "
            f"min_replicas={service.min_replicas}: raise it"
        )
    if address is None:
        return None
    if not re.fullmatch(r"https?://[^/\s?#@]+/?", address):
        return (
            f"feedback.service is {address}: give the address of a reward service alone, such as "
            f"http://127.0.0.1:{service.port}"
        )
    if config.algorithm.name in OFFLINE:
        return (
            f"feedback.service has no meaning for algorithm.name={config.algorithm.name}, which "
            "has no reply judged: leave it out"
        )
    return None


def something_to_compare(config: RunConfig) -> str | None:
    """Judges of pairs have two replies to one prompt."""
    data = config.data
    others = (2 if "stored" in data.source else 0) + (
        config.algorithm.advantage == "greedy_baseline"
    )
    if num_replies(config) + others >= 2:
        return None
    for name, reward in config.feedback.rewards.items():
        if reward.kind in GROUP_WISE:
            return (
                f"feedback.rewards.{name}.kind={reward.kind} compares the replies to one prompt: "
                f"set data.samples_per_prompt to 2 or more, not {data.samples_per_prompt}"
            )
    return None


def combination(config: RunConfig) -> str | None:
    """Minima have two rewards to choose from, and only lagrangian has constraints."""
    feedback = config.feedback
    counted = [name for name, reward in feedback.rewards.items() if reward.weight]
    if feedback.combine in ("minimum", "group_minimum") and len(counted) < 2:
        return (
            f"feedback.combine={feedback.combine} chooses between rewards: name two or more with "
            "a weight other than 0, or use combine=weighted"
        )
    if feedback.combine == "lagrangian":
        return _constraints(config) or _multipliers(config)
    for field in ("bounds", "multipliers", "one_shot"):
        if getattr(feedback, field):
            return (
                f"feedback.{field} has no meaning for feedback.combine={feedback.combine}: leave "
                "it out, or set combine=lagrangian"
            )
    return None


def _constraints(config: RunConfig) -> str | None:
    feedback = config.feedback
    if not feedback.bounds:
        return (
            "feedback.combine=lagrangian needs feedback.bounds: for each reward that is a "
            "constraint, what its mean must be at least"
        )
    for name in feedback.bounds:
        if name not in feedback.rewards:
            known = ", ".join(feedback.rewards)
            return f"feedback.bounds.{name} names no reward: there are {known}"
        if feedback.rewards[name].weight != 1:
            return (
                f"feedback.rewards.{name}.weight={feedback.rewards[name].weight:g}, but a reward "
                "with a bound is weighed by its multiplier: leave the weight out"
            )
    if not any(r.weight for name, r in feedback.rewards.items() if name not in feedback.bounds):
        return (
            "feedback.bounds bounds every reward: leave one with a weight other than 0 without a "
            "bound, to be maximised"
        )
    return None


def _multipliers(config: RunConfig) -> str | None:
    feedback = config.feedback
    if feedback.one_shot == bool(feedback.multipliers):
        return (
            "feedback.combine=lagrangian takes either feedback.multipliers or "
            "feedback.one_shot=true, which solves them"
        )
    if not feedback.one_shot:
        odd = sorted(set(feedback.bounds) ^ set(feedback.multipliers))
        if not odd:
            return None
        return f"feedback.bounds and feedback.multipliers differ in {odd[0]}: give both for it"
    model, source = config.model, config.data.source
    if source not in ("policy", "policy+reference") or model.reference not in (None, model.path):
        return (
            "feedback.one_shot solves multipliers on samples of the reference, which the policy "
            "has to be in the first step: set data.source=policy and leave model.reference empty"
        )
    if config.data.samples_per_prompt < 2:
        return "feedback.one_shot compares replies to one prompt: set data.samples_per_prompt=2"
    if not kl_strength(config):
        return "feedback.one_shot needs a leash to the reference: set algorithm.kl.coef above 0"
    return None


def kl_strength(config: RunConfig) -> float:
    """Strength of the KL, in the unit of the reward per nat."""
    return config.algorithm.loss.beta or config.algorithm.kl.coef


def has_reward_models(config: RunConfig) -> bool:
    """Whether reward processes hold weights, and so need a GPU where there are some."""
    rewards = config.feedback.rewards.values()
    if config.feedback.service is not None:
        return False
    return config.algorithm.name not in OFFLINE and any(r.kind in MODEL_KINDS for r in rewards)


ALWAYS = (
    reward_names,
    reward_settings,
    combination,
    mixture_of_reward_models,
    one_worker,
    reward_service,
)
"""Rules of every run, whatever its algorithm."""
