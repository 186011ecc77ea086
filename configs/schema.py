"""The frozen, typed configuration of a run: model, data, feedback, algorithm, cluster.

Every command reads one YAML of this shape plus dotted overrides (`configs.load`). Unknown keys are
refused, nothing is corrected silently and nothing writes to a config after it was loaded. This room
imports no torch, Ray or vLLM, so `--help` and `--dry-run` answer at once.
"""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import (
    BelowOne,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
)
from configs.cluster import ClusterConfig

OFFLINE = ("sft", "reward_model")
"""Algorithms that learn from stored rows; all others sample replies from the policy."""

GROUPED = (
    "rloo",
    "group_centred",
    "group_normalised",
    "batch_normalised",
    "greedy_baseline",
    "top1",
)
"""Values of `algorithm.advantage` that compare the replies to one prompt (`rl.advantages`)."""

MODEL_KINDS = ("model", "implicit", "classifier", "ensemble", "ranker", "llm_judge")
"""Kinds of reward that hold model weights."""

GROUP_WISE = ("ranker", "llm_judge")
"""Kinds of reward that compare the replies to one prompt, so that they need all of them at once."""


class ModelConfig(Section):
    """The policy and the models derived from it."""

    path: str
    """Hugging Face folder (config.json, *.safetensors, tokenizer) of the policy at the start."""
    reference: str | None = None
    """Folder of the frozen reference; `path` where empty."""
    reference_update: Literal["frozen", "reset", "ema", "none"] = "frozen"
    """frozen; reset: made of the policy anew after every `algorithm.iteration_steps`; ema: moved
    towards the policy every `reference_interval`; none: nothing reads a reference."""
    extra_references: tuple[str, ...] = ()
    """Folders of more references beside the first, under the policy's tokenizer; the loss sees one
    virtual reference, the weighted harmonic mean of all (MRPO)."""
    reference_weights: Literal["uniform", "confidence"] = "uniform"
    """Of several references: alike; or, of one extra, by how clearly each tells a pair apart."""
    reference_clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """How far an extra reference's log-probs of a pair may be from the first one's, as a share."""
    reference_interval: Positive | None = None
    """Learner steps between two moves of an `ema` reference."""
    reference_decay: Annotated[float, Field(gt=0, le=1)] = 0.6
    """The policy's share in a moved `ema` reference (TR-DPO's alpha)."""
    critic: str | None = None
    """Folder the critic starts from: a reward model, or a policy whose value head starts at 0.
    Where empty: the first reward model of `feedback.rewards`, else `path`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of forward passes, and of the weights sent to the engines; masters are float32 always."""
    max_length: Positive = 1024
    """Tokens of prompt plus reply; the engine's context."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, much less memory."""


class SamplingConfig(Section):
    """How replies are drawn. Log-probs on both sides are taken at this temperature."""

    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Positive = 256
    greedy: bool = False
    """Always the likeliest token; for preference methods, which ask for no sampler's log-probs."""
    stop: tuple[str, ...] = ()
    """Strings that end a reply beside the tokenizer's EOS."""


class DataConfig(Section):
    """Prompts, demonstrations or pairs, and how many make one learner step."""

    train: str
    """File or folder: JSONL, JSON, Parquet (also .gz), or a Hugging Face `datasets` folder."""
    validation: str | None = None
    """Held-out rows; where empty, `validation_fraction` of `train` is held out."""
    validation_fraction: BelowOne = 0.05
    validation_prompts: Positive = 64
    """Held-out prompts that are answered and judged before and after an online run."""
    max_prompt_length: Positive | None = None
    """Longer prompts are an error; where empty: `model.max_length` minus the reply's length."""
    overlong: Literal["error", "drop"] = "error"
    """What becomes of rows that do not fit: refused by row number, or dropped and counted."""
    prompts_per_step: Positive = 32
    """Prompt groups (RL), demonstrations (SFT) or pairs (reward model) in one learner step."""
    samples_per_prompt: Positive = 1
    """Replies sampled per prompt: the group size of RLOO and its siblings."""
    source: Literal["policy", "stored", "policy+stored", "policy+reference"] = "policy"
    """Where replies come from: the policy, the data set, both, or the policy and the reference."""
    pairing: Literal[
        "none", "single", "given", "best_worst", "all_pairs", "best_vs_random", "group"
    ] = "none"
    """What a preference loss compares: nothing (policy gradients); each reply alone; the first two
    replies; the best and the worst; every two; the best and any other; all replies at once."""
    demo_score: float | None = None
    """Stored ratings at or above it are trusted enough to be imitated (ULMA)."""
    sliced: bool = False
    """Each iteration of `algorithm.iteration_steps` reads a slice of the rows of its own."""
    sampling: SamplingConfig = SamplingConfig()
    system_prompt: str | None = None
    """Put before every prompt through the chat template."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Data order and sampling; same seed, same run."""


class RewardConfig(Section):
    """One named reward."""

    kind: Literal[
        "gold",
        "model",
        "function",
        "label",
        "implicit",
        "classifier",
        "ensemble",
        "ranker",
        "llm_judge",
    ]
    """gold: the built-in world's true reward; model: a reward-model folder; function: a Python
    file with one function `reward(prompts, replies, rows) -> list[float]`; label: what the data
    set says of its own replies; implicit: what DPO taught a policy, against what it was trained
    from; classifier: one label of a text classifier; ensemble: several reward models; ranker: a
    cross-encoder that compares two replies; llm_judge: a language model that is asked which of two
    replies is better. The last two score a reply by its mean chance to win in its group."""
    path: str | None = None
    """Folder of the model, or the Python file (`file.py` or `file.py:name`)."""
    threshold: float | None = None
    """Of kind label: ratings at or above it count as 1, others as 0; where empty, as they are."""
    reference: str | None = None
    """Of kind implicit: folder of the policy that `path` was trained from."""
    beta: PositiveFloat | None = None
    """Of kind implicit: the beta it was trained with; scores are in its unit."""
    length_normalised: bool = False
    """Of kind implicit: per token, so that long replies have no more room to earn."""
    positive: NonNegative | None = None
    """Of kind classifier: index of the label that is wanted."""
    output: Literal["log_odds", "probability"] = "log_odds"
    """Of kind classifier: of the wanted label, against all others together."""
    paths: tuple[str, ...] = ()
    """Of kind ensemble: folders of two or more reward models whose scores have one scale."""
    reduce: Literal["mean", "minimum", "penalised"] = "mean"
    """Of kind ensemble: penalised is the mean less `penalty` standard deviations. How far its
    models are apart is recorded as `NAME/disagreement`."""
    penalty: NonNegativeFloat | None = None
    """Of kind ensemble, where `reduce` is penalised: standard deviations to subtract."""
    prompt_file: str | None = None
    """Of kind llm_judge: text file with {prompt}, {first} and {second}, the question to the judge.
    Of kind ranker: what its two replies are read in; where empty, a plain layout."""
    verdict: Literal["token", "text"] = "token"
    """Of kind llm_judge. token: how likely its answer begins with A or with B; text: it writes an
    answer with [[A]], [[B]] or [[tie]] in it, which costs as many tokens as it writes."""
    verdict_tokens: Positive = 512
    """Of kind llm_judge: longest answer in text."""
    weight: float = 1.0
    """In the sum that the algorithm sees; 0 records the reward without learning from it."""


class MixtureConfig(Section):
    """Several reward models, each for the annotators whom it suits best (hard EM).

    Annotators choose by their held-out pairs, of which each should have a few
    (`data.validation_fraction`).
    """

    annotator: str
    """Column that says who judged a pair."""
    num_models: Annotated[int, Field(ge=2)] = 2
    """Reward models; annotators find their own among them."""
    max_rounds: Positive = 4
    """Trainings of `algorithm.num_steps` steps, each followed by annotators changing models."""
    min_gain: NonNegativeFloat = 0.0
    """Nats by which another model must suit an annotator better to be changed to."""


class SelectionConfig(Section):
    """Which prompts are worth a label (Active Preference Learning, arXiv 2402.08114)."""

    by: Literal["random", "entropy", "certainty", "hybrid"]
    """entropy: where the policy is least sure what to say; certainty: where its implicit reward,
    against the reference, tells its replies apart most, since what it is surely wrong about teaches
    most; hybrid: by certainty, of the half of highest entropy; random: for comparison."""
    pool: Annotated[int, Field(ge=2)] = 4
    """Prompts that are sampled for each one whose replies are judged and learned from."""


class FeedbackConfig(Section):
    """Who judges replies, and what becomes of a judge that fails."""

    rewards: dict[str, RewardConfig] = Field(default_factory=dict)
    """By name. Parts stay separate in every record; only the last step combines them."""
    combine: Literal["weighted", "minimum", "group_minimum", "lagrangian"] = "weighted"
    """weighted: sum of weight times reward; minimum: each reply's lowest of these; group_minimum:
    the one whose mean over the step is lowest (MaxMin-RLHF); lagrangian: the sum over rewards
    without a bound, plus multiplier times (reward - bound) of those with one."""
    bounds: dict[str, float] = Field(default_factory=dict)
    """Of lagrangian: reward name -> what its mean must be at least."""
    multipliers: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Of lagrangian: reward name -> its multiplier, fixed."""
    one_shot: bool = False
    """Of lagrangian: solve the multipliers once, on the samples of the first step, which are still
    the reference's (One-Shot Safety Alignment)."""
    missing_eos_penalty: NonNegativeFloat = 0.0
    """Subtracted from the score of a reply that did not end by itself."""
    overlong_buffer: Positive | None = None
    """Tokens before `data.sampling.max_new_tokens` over which a reply's score falls by up to 1
    (DAPO's soft penalty)."""
    curate_by: str | None = None
    """Learn only from pairs that this reward, of weight 0 as a rule, orders as their scores do."""
    curate_margin: NonNegativeFloat = 0.0
    """By how much `curate_by` must agree."""
    clip: PositiveFloat | None = None
    """Bound on the absolute value of a combined score."""
    normalise: bool = False
    """Divide combined scores by their running standard deviation, mean removed."""
    selection: SelectionConfig | None = None
    """Judge only what is worth it, where labels are dear; all of it where empty."""
    label_budget: Positive | None = None
    """Replies that may be judged in all; every step records how many it took. Steps that are run
    again after a crash are judged again, which the budget does not count."""
    mixture: MixtureConfig | None = None
    """Of reward_model: one model for each group of annotators who agree (MaxMin-RLHF), in
    `models/0`, `models/1`, ... of the run folder."""
    service: str | None = None
    """Address of a reward service (`attune serve rewards`), such as http://host:8100, that judges
    replies in place of processes of this run; where empty, the run starts its own."""
    deadline_s: PositiveFloat = 120.0
    """Of one scoring call. A call that takes longer has failed and its actor is replaced."""
    attempts: Positive = 3
    """Tries of one scoring call before the run stops. A failed score is never taken as 0."""


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    learning_rate: PositiveFloat = 1e-6
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegative = 0
    min_ratio: Fraction = 0.0
    """Where linear and cosine end, as a share of `learning_rate`."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are clipped to this global norm; the norm before clipping is logged."""


class KLConfig(Section):
    """The leash to the reference policy."""

    coef: NonNegativeFloat = 0.05
    place: Literal["reward", "loss"] = "reward"
    """In the reward (k1, the usual choice of PPO and RLOO) or as a term of the loss."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Schulman's estimators; as a loss, k1 has a zero-mean gradient and is refused."""
    target: PositiveFloat | None = None
    """Nats per reply that the adaptive controller of `coef` aims at; fixed where empty."""
    horizon: Positive = 10_000
    """Samples over which the adaptive controller acts."""


class CorrectionConfig(Section):
    """Importance weights for samples of another policy or another engine (`rl.correction`)."""

    mode: Literal[
        "none",
        "token_tis",
        "token_mask",
        "sequence_tis",
        "sequence_mask",
        "geometric",
        "seq_mask_tis",
        "k3",
        "bypass",
    ] = "token_tis"
    low: NonNegativeFloat = 0.0
    high: PositiveFloat = 2.0
    veto: PositiveFloat | None = None
    """Drop a reply in which any token's weight is below this."""
    batch_normalise: bool = False
    """Divide the weights by their mean over the batch, after truncation."""


class LossConfig(Section):
    """The loss of a preference method and its constants; a row names those that it takes."""

    name: str | None = None
    """A function of `rl.losses`; empty for policy gradients."""
    beta: PositiveFloat | None = None
    """Regularisation towards the reference."""
    eta: PositiveFloat | None = None
    """Scale of target rewards (RPO); weight of imitation (dpo_sft)."""
    distance: Literal["sq", "bwd", "fwd", "ce"] | None = None
    """RPO's divergence; bwd puts the target first."""
    target: Literal["scores", "hard", "smoothed", "margin"] | None = None
    """RPO's target: rewards, or a constant on the chosen side."""
    implicit: (
        Literal["log_ratio", "mean_log_ratio", "logprob", "mean_logprob", "forward_kl", "js"] | None
    ) = None
    """What RPO takes for the policy's own reward."""
    gamma: NonNegativeFloat | None = None
    """SimPO's margin."""
    epsilon: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Assumed share of wrong labels."""
    margin: PositiveFloat | None = None
    """Target of RPO's `margin`."""
    scale: PositiveFloat | None = None
    """Constant factor of RPO."""
    alpha: NonNegativeFloat | None = None
    """Weight of optimism (SELM, XPO)."""
    cap: PositiveFloat | None = None
    """SELM's optimism is dropped where the mean log-ratio of the explored replies is below -cap."""
    penalty: NonNegativeFloat | None = None
    weight: NonNegativeFloat | None = None
    """Of the imitation or odds term."""
    delta: PositiveFloat | None = None
    """SLiC's margin."""
    sft: NonNegativeFloat | None = None
    """Weight of imitating the best reply (RRHF, PRO)."""
    clip_w: PositiveFloat | None = None
    clip_l: PositiveFloat | None = None
    c: float | Literal["estimated"] | None = None
    """beta log Z of point-wise losses, added to implicit rewards: a number for all prompts; or
    estimated for each from the reference's replies to it, with `data.source: policy+reference`."""
    centred: bool | None = None
    """Of point-wise losses: take from a score the mean score of the reference's replies to its
    prompt; the least that scores need where c is 0."""
    label_mode: Literal["binary", "continuous"] | None = None
    logp_reduction: Literal["sum", "token_mean"] | None = None
    reduction: Literal["global", "class_balanced"] | None = None
    """Point-wise: mean over all replies, or over liked and other replies each, and their sum."""
    desirable: PositiveFloat | None = None
    undesirable: PositiveFloat | None = None

    def parameters(self) -> dict[str, object]:
        """What the loss function is called with."""
        own = ("name", "reduction", "centred")
        return {
            name: value
            for name, value in self
            if name not in own and value is not None and value != "estimated"
        }


class AlgorithmConfig(Section):
    """What is learned from the feedback; `name` sets defaults (`configs.methods`)."""

    name: str
    """A row of the method table: `attune methods` lists them."""
    loss: LossConfig = LossConfig()
    iteration_steps: Positive | None = None
    """Learner steps of one iteration of an iterative method: behind each, the reference becomes
    the policy, the optimizer and its schedule start anew, and the engines get the weights."""
    num_steps: Positive
    """Learner steps; each consumes one batch of `data.prompts_per_step`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    critic_optimizer: OptimizerConfig | None = None
    """Of the critic; `optimizer` where empty."""
    advantage: Literal[
        "none",
        "gae",
        "reward_to_go",
        "rloo",
        "group_centred",
        "group_normalised",
        "batch_normalised",
        "greedy_baseline",
        "top1",
    ] = "none"
    """What a score is compared with. gae: a critic; reward_to_go: nothing, with the KL of later
    tokens; rloo: the other replies' mean; group_centred: the group's mean; group_normalised: that,
    over the group's deviation, or batch_normalised: the step's; greedy_baseline: one more reply,
    greedy; top1: imitate the group's best."""
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] = "token_mean"
    """Loss over tokens: mean of all tokens; mean of replies' token means; mean of replies' sums;
    that, over the constant `data.sampling.max_new_tokens`."""
    ratio: Literal["none", "token", "sequence", "geometric", "cispo"] = "token"
    """The importance ratio inside one batch: none is plain policy gradient; a token's; a reply's
    product of them; their geometric mean; a token's as a clipped weight that stops no gradient."""
    num_epochs: Positive = 1
    """Passes over one experience batch."""
    num_minibatches: Positive = 1
    """Optimizer steps in one pass."""
    clip_low: PositiveFloat | None = 0.2
    clip_high: PositiveFloat | None = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the loss of a token with negative advantage, as a multiple of it."""
    entropy_coef: NonNegativeFloat = 0.0
    kl: KLConfig = KLConfig()
    correction: CorrectionConfig = CorrectionConfig()
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    """GAE's lambda."""
    value_clip: PositiveFloat | None = 0.2
    value_coef: PositiveFloat = 1.0
    """Scales the critic's own loss; the critic has its own optimizer, so this acts through eps
    and gradient clipping only."""
    whiten_advantages: bool = False
    whiten_rewards: bool = False
    mask_truncated: bool = False
    """Leave replies that ran into the length limit out of the loss."""
    filter_groups: bool = False
    """Leave groups whose replies all scored the same out of the loss."""
    resample_rounds: NonNegative = 0
    """How often the groups that `filter_groups` leaves out are replaced by others, before the step
    goes on with fewer (DAPO's dynamic sampling)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Of the reward model's pair labels."""
    max_staleness: NonNegative = 0
    """Learner versions between sampling and use; 0 is synchronous training."""
    max_lateness: NonNegative = 0
    """Steps by which groups with long replies may be later than those they were leased with: a step
    takes the oldest groups that are whole. Less than `max_staleness`, which holds all the same."""
    validation_interval: Positive = 50
    """Learner steps of SFT and reward-model training between looks at held-out rows."""
    tokens_per_micro_batch: Positive = 8192
    """Padded tokens of one forward and backward pass on one rank."""


class RunConfig(Section):
    """A whole run: the survey's four components, and the cluster it runs on."""

    model: ModelConfig
    data: DataConfig
    feedback: FeedbackConfig = FeedbackConfig()
    algorithm: AlgorithmConfig
    cluster: ClusterConfig
