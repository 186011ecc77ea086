"""What a preference method's settings must be to each other: its loss, its data, its reference."""

from configs.methods import ARITY, METHODS
from configs.schema import RunConfig

REPLIES = {"point": "single replies", "pair": "pairs", "list": "lists"}


def is_preference(config: RunConfig) -> bool:
    """Whether the loss compares whole replies; else it is a policy gradient or imitation."""
    return config.algorithm.loss.name is not None


def num_replies(config: RunConfig) -> int:
    """Replies of a group that come from models."""
    samples = config.data.samples_per_prompt
    return {"policy": samples, "policy+reference": 2 * samples, "policy+stored": samples}.get(
        config.data.source, 0
    )


def arity_fits(config: RunConfig) -> str | None:
    """A loss compares what its row says: pairs, lists or single replies."""
    name, pairing = config.algorithm.name, config.data.pairing
    arities = METHODS[name].arities
    if ARITY.get(pairing) in arities:
        return None
    wanted = " or ".join(REPLIES[arity] for arity in arities)
    fitting = [value for value, arity in ARITY.items() if arity in arities]
    return (
        f"data.pairing={pairing} does not fit algorithm.name={name}, which compares {wanted}: use "
        f"{', '.join(fitting)}"
    )


def loss_takes(config: RunConfig) -> str | None:
    """Constants that the method's loss does not know are refused."""
    name, loss = config.algorithm.name, config.algorithm.loss
    known = METHODS[name].algorithm["loss"]
    given = [field for field, value in loss if value is not None]
    unknown = [field for field in given if field not in known]
    if loss.name != known["name"]:
        return (
            f"algorithm.loss.name={loss.name} is not the loss of algorithm.name={name}, which is "
            f"{known['name']}: change algorithm.name"
        )
    if not unknown:
        return None
    takes = ", ".join(field for field in known if field != "name")
    return f"algorithm.loss.{unknown[0]} has no meaning for algorithm.name={name}: it takes {takes}"


def c_has_samples(config: RunConfig) -> str | None:
    """What is known of the reference's replies is known from replies of the reference."""
    loss, source = config.algorithm.loss, config.data.source
    for setting, is_given in (
        ("c=estimated", loss.c == "estimated"),
        ("centred=true", loss.centred),
    ):
        if is_given and source != "policy+reference":
            return (
                f"algorithm.loss.{setting} is taken from the reference's replies, and data.source="
                f"{source} has none: use data.source=policy+reference"
            )
    if loss.centred and (loss.label_mode, loss.reduction, loss.c) != ("continuous", "global", 0):
        return (
            "algorithm.loss.centred=true makes scores that are no labels, with no c to add: set "
            "label_mode=continuous, reduction=global and c=0"
        )
    return None


def enough_replies(config: RunConfig) -> str | None:
    """Two replies at least where they are compared."""
    data, needed = config.data, 1 if ARITY.get(config.data.pairing) == "point" else 2
    stored = 2 if "stored" in data.source else 0
    if num_replies(config) + stored >= needed:
        return None
    return (
        f"data.samples_per_prompt={data.samples_per_prompt} gives one reply to compare: set it to "
        "2 or more"
    )


def labels_are_stored(config: RunConfig) -> str | None:
    """People judged the stored replies, and no others."""
    source = config.data.source
    for name, reward in config.feedback.rewards.items():
        if reward.kind == "label" and source != "stored":
            return (
                f"feedback.rewards.{name}.kind=label knows stored replies alone, and data.source="
                f"{source} has others: use a reward model, a function, or data.source=stored"
            )
    return None


def no_kl_term(config: RunConfig) -> str | None:
    """These losses hold on to the reference themselves, or to none."""
    if config.algorithm.kl.coef == 0:
        return None
    return (
        f"algorithm.kl.coef={config.algorithm.kl.coef:g} has no place in algorithm.name="
        f"{config.algorithm.name}, whose loss holds the policy by itself: set it to 0"
    )


def no_policy_gradient(config: RunConfig) -> str | None:
    """Neither advantages nor importance ratios."""
    algorithm = config.algorithm
    given = {
        "advantage": algorithm.advantage,
        "ratio": algorithm.ratio,
        "correction.mode": algorithm.correction.mode,
    }
    for field, value in given.items():
        if value != "none":
            return (
                f"algorithm.{field}={value} has no place in algorithm.name={algorithm.name}: none"
            )
    return None


def reference_fits(config: RunConfig) -> str | None:
    """A loss that measures against a reference has one, and it moves when it is said to."""
    model, algorithm = config.model, config.algorithm
    wanted = (METHODS[algorithm.name].model or {}).get("reference_update", "frozen")
    update = model.reference_update
    if update == "none" and wanted != "none":
        return (
            f"model.reference_update=none, but algorithm.name={algorithm.name} measures against a "
            f"reference: use {wanted}"
        )
    if update == "reset" and algorithm.iteration_steps is None:
        return (
            "model.reference_update=reset needs algorithm.iteration_steps: a third of "
            f"algorithm.num_steps={algorithm.num_steps}, say"
        )
    if update == "ema" and model.reference_interval is None:
        return "model.reference_update=ema needs model.reference_interval: 512, say"
    return None


def iterations_fit(config: RunConfig) -> str | None:
    """Iterations end where checkpoints are, so that a resumed run stands at the start of one."""
    steps, interval = config.algorithm.iteration_steps, config.cluster.checkpoint.interval
    if steps is None:
        return None
    if config.algorithm.num_steps % steps:
        return (
            f"algorithm.iteration_steps={steps} does not divide algorithm.num_steps="
            f"{config.algorithm.num_steps}: choose a divisor"
        )
    if config.data.sliced and interval % steps:
        return (
            f"cluster.checkpoint.interval={interval} would resume inside an iteration, with other "
            f"samplers than it began with: use a multiple of algorithm.iteration_steps={steps}"
        )
    return None


def several_references_fit(config: RunConfig) -> str | None:
    """What is mixed, and by which weights."""
    model, pairing = config.model, config.data.pairing
    extra = len(model.extra_references)
    if extra and model.reference_update == "none":
        return (
            "model.extra_references are mixed with a reference, and model.reference_update=none: "
            "use frozen"
        )
    if extra != 1 and model.reference_weights == "confidence":
        return (
            f"model.reference_weights=confidence weighs one extra reference, and model."
            f"extra_references has {extra}: give one folder, or use uniform"
        )
    pairwise = model.reference_weights == "confidence" or model.reference_clip is not None
    if pairwise and ARITY.get(pairing) != "pair":
        return (
            "model.reference_weights=confidence and model.reference_clip look at pairs, and "
            f"data.pairing={pairing} makes none: use uniform and null"
        )
    return None


def curator_is_a_reward(config: RunConfig) -> str | None:
    """Pairs are curated by a named reward that judges both replies."""
    name, rewards = config.feedback.curate_by, config.feedback.rewards
    if name is None:
        return None
    if name not in rewards or rewards[name].kind == "label":
        return (
            f"feedback.curate_by={name} is no reward that judges replies: name one, such as "
            f"feedback.rewards.{name}.kind=model with weight 0"
        )
    if ARITY.get(config.data.pairing) != "pair":
        return (
            f"feedback.curate_by={name} chooses among pairs, and data.pairing="
            f"{config.data.pairing} makes none: leave it out"
        )
    return None


def moved_references_are_fresh(config: RunConfig) -> str | None:
    """Samples taken ahead would be measured against the reference before."""
    staleness, update = config.algorithm.max_staleness, config.model.reference_update
    if staleness == 0 or update in ("frozen", "none"):
        return None
    return (
        f"algorithm.max_staleness={staleness} takes samples ahead, measured against a reference "
        f"that model.reference_update={update} has left by then: set max_staleness=0"
    )


def slices_have_iterations(config: RunConfig) -> str | None:
    """Slices belong to iterations."""
    is_said = config.model.reference_update == "reset"  # asks for the same, in `reference_fits`
    if not config.data.sliced or is_said or config.algorithm.iteration_steps is not None:
        return None
    return "data.sliced=true needs algorithm.iteration_steps: a third of algorithm.num_steps, say"


def kto_has_others(config: RunConfig) -> str | None:
    """KTO's baseline puts replies behind other prompts of the same lease."""
    engines = config.cluster.rollout.num_engines
    if config.algorithm.loss.name != "kto" or config.data.prompts_per_step >= 4 * engines:
        return None
    return (
        f"data.prompts_per_step={config.data.prompts_per_step} leaves KTO no other prompts to "
        f"measure its baseline on: at least {4 * engines} (4 x cluster.rollout.num_engines)"
    )


def greedy_is_one(config: RunConfig) -> str | None:
    """Greedy replies to one prompt are all the same."""
    if not config.data.sampling.greedy or config.data.samples_per_prompt == 1:
        return None
    return (
        "data.sampling.greedy=true gives the same reply "
        f"{config.data.samples_per_prompt} times: set data.samples_per_prompt=1, or greedy=false"
    )


PREFERENCE = (
    arity_fits,
    loss_takes,
    c_has_samples,
    enough_replies,
    labels_are_stored,
    no_kl_term,
    no_policy_gradient,
    reference_fits,
    iterations_fit,
    moved_references_are_fresh,
    several_references_fit,
    curator_is_a_reward,
    slices_have_iterations,
    kto_has_others,
    greedy_is_one,
)
