"""The four dashboards: Learning, Flow, Fleet and faults, Memory. Panels are named here alone."""

from cluster.dashboards.panel import Curve, Dashboard, Panel, Section, panel

REWARD = panel(
    "Reward it learns from", "mean over replies",
    Curve(
        key="reward/total/mean", label="combined",
        low="reward/total/p10", high="reward/total/p90",
    ),
    Curve(key="reward/{reward}/mean", label="{reward}", where=(("of", "judge"),)),
    explanation="Shaded: from the 10th to the 90th percentile of the replies.",
)  # fmt: skip
TRUE_REWARD = panel(
    "True reward", "mean over replies",
    Curve(key="reward/{reward}/mean", label="{reward}", where=(("of", "gold"),)),
    explanation="Known by rule in the built-in world; judges only approximate it.",
)  # fmt: skip
REWARDS = Section(title="Reward", panels=(
    TRUE_REWARD,
    REWARD,
    panel(
        "Parts of the rewards", "mean over replies",
        Curve(key="reward/{reward}/mean", label="{reward}", where=(("of", "part"),)),
    ),
    panel(
        "Spread of each reward", "10th and 90th percentile",
        Curve(key="reward/{reward}/p10", label="{reward}, 10th", where=(("of", "judge"),)),
        Curve(key="reward/{reward}/p90", label="{reward}, 90th", where=(("of", "judge"),)),
        Curve(key="reward/{reward}/p10", label="{reward}, 10th", where=(("of", "gold"),)),
        Curve(key="reward/{reward}/p90", label="{reward}, 90th", where=(("of", "gold"),)),
    ),
))  # fmt: skip
FEEDBACK = Section(title="Feedback", panels=(
    panel(
        "Which reward decides", "share of replies", ("feedback/decides/{reward}", "{reward}"),
        explanation="Of the rewards that the lowest is taken of, which it is; of groups, 1 for the "
        "worst-off.",
    ),
    panel("Multipliers of the constraints", "", ("feedback/multiplier/{reward}", "{reward}")),
    panel(
        "Room above the bounds", "mean reward less its bound",
        ("feedback/slack/{reward}", "{reward}"),
        explanation="Below 0 a constraint is broken.",
    ),
    panel(
        "Pairs that the curating reward agrees with", "share", ("feedback/kept_fraction", "kept"),
        explanation="The others are not learned from.",
    ),
    panel(
        "Labels", "judged replies per step", ("labels", "labels"),
        explanation="Of groups that were sampled again too; not of what was left unlabelled.",
    ),
    panel(
        "Label budget", "judged replies",
        ("labels/used", "used"), ("labels/budget", "budget"),
    ),
    panel(
        "Groups without a signal", "share", ("zero_std_groups", "equal rewards"),
        explanation="Prompts whose replies all earned the same: they teach nothing.",
    ),
))  # fmt: skip
MOVED = Section(title="How the policy moved", panels=(
    panel(
        "KL to the reference", "nats per reply", ("kl/ref_k1", "k1"), ("kl/ref_k3", "k3"),
        explanation="How far the policy has moved from where it started.",
    ),
    panel("Reply length", "tokens", ("length/mean", "mean"), ("length/max", "longest")),
    panel(
        "Entropy", "nats per token", ("entropy", "entropy"),
        explanation="How undecided the policy still is; near 0 it has stopped exploring.",
    ),
    panel(
        "Replies that ended by themselves", "share", ("eos_rate", "ended"),
        explanation="The others ran into the length limit.",
    ),
    panel("KL coefficient", "", ("kl/coef", "coefficient")),
))  # fmt: skip
LEARNED = Section(title="How it learned", panels=(
    panel(
        "Loss", "mean",
        ("loss/nll", "training, nats per token"),
        ("loss/bradley_terry", "training, nats per pair"),
        ("validation/loss", "validation"),
    ),
    panel(
        "Pairs ordered as labelled", "share; chance is 0.5",
        ("accuracy", "training"), ("validation/accuracy", "validation"),
    ),
    panel(
        "Margin", "chosen minus rejected", ("margin", "margin"),
        explanation="By how much the chosen reply is scored above the rejected one.",
    ),
    panel("Preference loss", "mean", ("loss/preference", "loss")),
    panel(
        "Better replies that gained more", "share; 0.5 before the first step",
        ("preference/accuracy", "training"),
        explanation="How often the policy raised the better reply above the worse one.",
    ),
    panel("Margin of log-ratios", "nats, best minus worst", ("preference/margin", "margin")),
    panel(
        "What is explored", "nats, log-ratio to the reference",
        ("preference/explored_log_ratio", "explored replies"),
        explanation="Optimism (SELM, XPO) makes them less likely, to leave room for others.",
    ),
    panel(
        "What the loss compared", "per step", ("units", "units"), ("groups", "groups"),
        explanation="Groups whose replies could not be told apart give no unit.",
    ),
    panel("Policy loss", "", ("loss/policy", "policy")),
    panel("Value loss", "", ("loss/value", "value")),
    panel(
        "Explained variance", "of the returns", ("explained_variance", "critic"),
        explanation="1 is a perfect critic, 0 one that knows only the mean.",
    ),
    panel("Gradient norm", "before clipping", ("grad_norm", "norm")),
    panel(
        "Clipped tokens", "share", ("clip_fraction", "clipped"),
        explanation="Tokens whose ratio left the trust region of the update.",
    ),
    panel("Learning rate", "", ("learning_rate", "rate")),
))  # fmt: skip
MISMATCH = Section(title="Engine against learner", panels=(
    panel(
        "Gap after a sync", "nats, largest",
        ("probe/gap", "gap"), ("probe/tolerance", "stops the run"),
        explanation="Log-probs of fixed sequences on both sides, after each weight sync.",
    ),
    panel(
        "Importance weights", "learner over engine",
        ("correction/weight_mean", "mean"), ("correction/weight_min", "smallest"),
        ("correction/weight_max", "largest"),
        explanation="1 where the learner gives a token the probability that it was sampled with.",
    ),
    panel("Weights out of bounds", "share", ("correction/out_of_bounds", "corrected")),
    panel(
        "Effective sample size", "tokens",
        ("correction/ess", "effective"), ("num_tokens", "all"),
        explanation="How many tokens the importance weights leave, in effect.",
    ),
    panel(
        "Drift between sampling and learning", "nats per token",
        ("correction/kl_k1", "k1"), ("correction/kl_k3", "k3"),
    ),
))  # fmt: skip
STEP_TIME = panel(
    "Where a step's time goes", "seconds",
    ("time/sample", "sample"), ("time/score", "score"), ("time/train", "train"),
    ("time/sync", "sync"), ("time/checkpoint", "checkpoint"), ("time/idle", "idle"),
    is_stacked=True,
)  # fmt: skip
WAITING = Section(title="Who waits for whom", panels=(
    STEP_TIME,
    panel(
        "Idle share", "of the last seconds", ("idle_share", "{actor}"),
        explanation="Who waits while others work. Near 1: it could do more, or needs fewer.",
        is_noisy=True,
    ),
    panel(
        "Queues", "groups and batches",
        ("queue/waiting_groups", "groups being sampled"), ("queue/ready_batches", "batches ready"),
        explanation="Batches that lie ready say that the learner is the slower part.",
    ),
    panel("Learner's wait for a batch", "seconds", ("time/wait", "wait")),
    panel(
        "Staleness", "learner versions", ("staleness/mean", "mean"), ("staleness/max", "oldest"),
        explanation="How many updates lie between sampling a reply and learning from it.",
    ),
    panel(
        "Replies by staleness", "replies per step", ("staleness/replies/{age}", "{age}"),
        is_stacked=True,
    ),
))  # fmt: skip
SPEED = Section(title="Speed", panels=(
    panel("Learning", "tokens per second", ("tokens_per_s", "learned from")),
    panel("Sampling", "tokens per second", ("engine/tokens", "{actor}")),
    panel("Sequences in the engines", "sequences",
          ("engine/running", "{actor} at work"), ("engine/waiting", "{actor} waiting")),
    panel("KV cache in use", "share", ("engine/kv_cache", "{actor}")),
    panel(
        "Weight sync", "seconds",
        ("time/sync", "in all"), ("sync/transfer_s", "transfer"), ("sync/pause_s", "pause"),
        explanation="The pause is what sampling loses.",
    ),
    panel("Judges", "seconds per call", ("judge/{judge}/latency_s", "{judge}")),
))  # fmt: skip
ENGINES = panel(
    "Engines", "",
    ("fleet/wanted", "wanted"), ("fleet/live", "live"), ("fleet/healthy", "healthy"),
)  # fmt: skip
MEMBERS = Section(title="Fleet", panels=(
    ENGINES,
    panel("Weights on the engines", "version", ("engine/version", "{actor}"),
          ("policy_version", "learner")),
    panel("Learner ranks", "", ("learner/world_size", "ranks")),
    panel("Engines in a sync", "", ("sync/engines", "took the weights")),
))  # fmt: skip
FAULTS = Section(title="Faults", panels=(
    panel(
        "Events", "since the run began", Curve(key="events/{kind}", label="{kind}", is_total=True),
        explanation="What failed, joined, left or was replaced.",
    ),
    panel(
        "Replaced", "engines and collectors, since the run began",
        Curve(key="fleet/restarts", label="replaced", is_total=True),
    ),
    panel(
        "Groups asked for again", "since the run began",
        Curve(key="fleet/retried_groups", label="groups", is_total=True),
    ),
    panel(
        "Calls of judges made again", "since the run began",
        Curve(key="judge/{judge}/retries", label="{judge}", is_total=True),
    ),
))  # fmt: skip
HOST_MEMORY = panel(
    "Host memory",
    "MiB, private",
    ("memory/host_mib", "{actor}"),
    explanation="Of each process and its children; shared memory is left out.",
)
DEVICE_MEMORY = panel("Device memory", "MiB", ("memory/device_mib", "{actor}"))

LEARNING = Dashboard(
    uid="attune-learning", title="Attune: Learning",
    description="Is the reward rising, and is the policy drifting?",
    sections=(REWARDS, MOVED, LEARNED, FEEDBACK, MISMATCH),
)  # fmt: skip
FLOW = Dashboard(
    uid="attune-flow", title="Attune: Flow",
    description="Who waits for whom?", sections=(WAITING, SPEED),
)  # fmt: skip
FLEET = Dashboard(
    uid="attune-fleet", title="Attune: Fleet and faults",
    description="Who is there, and what failed?", sections=(MEMBERS, FAULTS),
)  # fmt: skip
MEMORY = Dashboard(
    uid="attune-memory", title="Attune: Memory",
    description="What does each process hold?",
    sections=(Section(title="Memory", panels=(HOST_MEMORY, DEVICE_MEMORY)),),
)  # fmt: skip
DASHBOARDS = (LEARNING, FLOW, FLEET, MEMORY)

OVERVIEW: tuple[Panel, ...] = (
    TRUE_REWARD, REWARD, *MOVED.panels[:3], STEP_TIME, ENGINES, HOST_MEMORY,
)  # fmt: skip
"""What a person looks at first."""
