"""The method table: what a name stands for, in every section of a run; a YAML may change any of it.

A row is a tuple of the survey's four components (arXiv 2409.02795): model (which reference), data
(where replies come from, what is compared), feedback (labels or rewards) and algorithm (the loss).
`rl.methods` finds the loss of a row; `attune methods` prints the table.
"""

from dataclasses import dataclass
from typing import Any, Literal

Arity = Literal["point", "pair", "list"]
ARITY: dict[str, Arity] = {
    "single": "point",
    "given": "pair",
    "best_worst": "pair",
    "all_pairs": "pair",
    "best_vs_random": "pair",
    "group": "list",
}
"""What a unit of the loss holds under each `data.pairing`."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row."""

    line: str
    """What it does, in a few words."""
    paper: str
    algorithm: dict[str, Any]
    model: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    feedback: dict[str, Any] | None = None
    arities: tuple[Arity, ...] = ()
    """What its loss can compare; empty for policy gradients and imitation."""

    @property
    def settings(self) -> dict[str, Any]:
        """Defaults of the sections of a run."""
        sections = ("model", "data", "feedback", "algorithm")
        return {name: getattr(self, name) for name in sections if getattr(self, name)}


_PLAIN: dict[str, Any] = {"ratio": "none", "correction": {"mode": "none"}, "kl": {"coef": 0.0}}
"""No importance ratio, no correction, no KL term: the loss itself holds on to the reference."""
_UNCLIPPED: dict[str, Any] = {"ratio": "none", "clip_low": None, "clip_high": None}
_LABELS: dict[str, Any] = {"rewards": {"label": {"kind": "label"}}}


def _stored(
    line: str,
    paper: str,
    loss: dict[str, Any],
    *,
    arity: Arity = "pair",
    reference: str = "frozen",
    **model: Any,
) -> Method:
    """A method that learns from stored replies and what people said of them."""
    pairing = {"point": "single", "pair": "given", "list": "group"}[arity]
    return Method(
        line=line,
        paper=paper,
        model={"reference_update": reference, **model},
        data={"source": "stored", "pairing": pairing},
        feedback=_LABELS,
        algorithm={**_PLAIN, **_UNCLIPPED, "loss": loss},
        arities=("pair", "list") if loss["name"] == "rpo" else (arity,),
    )


def _sampled(
    line: str,
    paper: str,
    loss: dict[str, Any],
    *,
    source: str = "policy",
    pairing: str = "best_worst",
    reference: str = "frozen",
    data: dict[str, Any] | None = None,
    **algorithm: Any,
) -> Method:
    """A method that learns from comparisons of the policy's own replies."""
    return Method(
        line=line,
        paper=paper,
        model={"reference_update": reference},
        data={"source": source, "pairing": pairing, "samples_per_prompt": 2, **(data or {})},
        algorithm={**_PLAIN, **_UNCLIPPED, "loss": loss, **algorithm},
        arities=("pair", "list") if loss["name"] == "rpo" else ("pair",),
    )


_HARD = {"name": "rpo", "distance": "bwd", "target": "hard", "beta": 0.1}

METHODS: dict[str, Method] = {
    "sft": Method(
        line="imitate demonstrations",
        paper="Ouyang et al., arXiv 2203.02155",
        algorithm=_PLAIN,
    ),
    "reward_model": Method(
        line="learn to judge from pairs (Bradley-Terry)",
        paper="Ouyang et al., arXiv 2203.02155",
        algorithm=_PLAIN,
    ),
    "rloo": Method(
        line="policy gradient; baseline is the other replies' mean",
        paper="Ahmadian et al., arXiv 2402.14740",
        algorithm={
            **_UNCLIPPED,
            "advantage": "rloo",
            "aggregation": "sequence_sum",
            "kl": {"coef": 0.03},
        },
    ),
    "ppo": Method(
        line="clipped policy gradient with a critic, GAE and KL in the reward",
        paper="Schulman et al. 2017; Huang et al., arXiv 2403.17031",
        algorithm={
            "advantage": "gae",
            "aggregation": "token_mean",
            "ratio": "token",
            "num_epochs": 2,
            "num_minibatches": 2,
            "whiten_advantages": True,
            "kl": {"coef": 0.05},
        },
    ),
    "reinforce_pp": Method(
        line="no critic, KL per token, advantages normalised over the batch",
        paper="Hu et al., arXiv 2501.03262",
        algorithm={
            "advantage": "reward_to_go",
            "aggregation": "token_mean",
            "ratio": "token",
            "whiten_advantages": True,
            "kl": {"coef": 0.01},
        },
    ),
    "reinforce_pp_baseline": Method(
        line="the same with the group's mean as baseline",
        paper="Hu et al., arXiv 2501.03262",
        algorithm={
            "advantage": "group_centred",
            "aggregation": "token_mean",
            "ratio": "token",
            "whiten_advantages": True,
            "kl": {"coef": 0.001, "place": "loss", "estimator": "k2"},
        },
    ),
    "grpo": Method(
        line="group mean and deviation, k3 loss",
        paper="Shao et al., arXiv 2402.03300",
        algorithm={
            "advantage": "group_normalised",
            "aggregation": "sequence_mean",
            "ratio": "token",
            "kl": {"coef": 0.04, "place": "loss", "estimator": "k3"},
        },
    ),
    "dr_grpo": Method(
        line="GRPO without the biases of its two divisors",
        paper="Liu et al., arXiv 2503.20783",
        algorithm={
            "advantage": "group_centred",
            "aggregation": "constant",
            "ratio": "token",
            "kl": {"coef": 0.0},
        },
    ),
    "dapo": Method(
        line="wider upper clip, all tokens alike, equal and cut-off groups left out",
        paper="Yu et al., arXiv 2503.14476",
        algorithm={
            "advantage": "group_normalised",
            "aggregation": "token_mean",
            "ratio": "token",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "mask_truncated": True,
            "filter_groups": True,
            "resample_rounds": 3,
            "kl": {"coef": 0.0},
        },
    ),
    "gspo": Method(
        line="one length-normalised ratio per reply",
        paper="Zheng et al., arXiv 2507.18071",
        algorithm={
            "advantage": "group_normalised",
            "aggregation": "sequence_mean",
            "ratio": "geometric",
            "num_minibatches": 4,
            "clip_low": 0.0003,
            "clip_high": 0.0004,
            "correction": {"mode": "bypass"},
            "kl": {"coef": 0.0},
        },
    ),
    "cispo": Method(
        line="clipped weights, no clipped gradients",
        paper="MiniMax, arXiv 2506.13585; bound: arXiv 2510.13786",
        algorithm={
            "advantage": "group_normalised",
            "aggregation": "token_mean",
            "ratio": "cispo",
            "clip_low": None,
            "clip_high": 4.0,
            "kl": {"coef": 0.0},
        },
    ),
    "remax": Method(
        line="the greedy reply's score as baseline",
        paper="Li et al., arXiv 2310.10505",
        algorithm={
            **_UNCLIPPED,
            "advantage": "greedy_baseline",
            "aggregation": "sequence_sum",
            "kl": {"coef": 0.1},
        },
    ),
    "lite_ppo": Method(
        line="the group's mean, the batch's deviation",
        paper="Liu et al., arXiv 2508.08221",
        algorithm={
            "advantage": "batch_normalised",
            "aggregation": "token_mean",
            "ratio": "token",
            "kl": {"coef": 0.0},
        },
    ),
    "raft": Method(
        line="imitate each group's best reply",
        paper="Dong et al., arXiv 2304.06767",
        algorithm={
            **_UNCLIPPED,
            "advantage": "top1",
            "aggregation": "token_mean",
            "correction": {"mode": "none"},
            "kl": {"coef": 0.0},
        },
    ),
    # ---- stored pairs ----
    "dpo": _stored(
        "widen the margin of the chosen reply", "Rafailov et al., arXiv 2305.18290", _HARD
    ),
    "cdpo": _stored(
        "DPO for labels of which a share is wrong",
        "Mitchell 2023",
        {"name": "rpo", "distance": "ce", "target": "smoothed", "epsilon": 0.1, "beta": 0.1},
    ),
    "robust_dpo": _stored(
        "DPO with an unbiased estimate under label noise",
        "Chowdhury et al., arXiv 2403.00409",
        {"name": "robust_dpo", "beta": 0.1, "epsilon": 0.1},
    ),
    "ipo": _stored(
        "bring the margin to a constant",
        "Azar et al., arXiv 2310.12036",
        {
            "name": "rpo",
            "distance": "sq",
            "target": "margin",
            "margin": 0.5,
            "beta": 0.1,
            "scale": 200.0,
        },
    ),
    "simpo": _stored(
        "length-normalised DPO without a reference",
        "Meng et al., arXiv 2405.14734",
        {
            "name": "rpo",
            "distance": "bwd",
            "target": "hard",
            "implicit": "mean_logprob",
            "beta": 2.5,
            "gamma": 1.375,
        },
        reference="none",
    ),
    "exo": _stored(
        "the other direction of the KL divergence",
        "Ji et al., arXiv 2402.00856",
        {"name": "rpo", "distance": "fwd", "target": "smoothed", "epsilon": 0.1, "beta": 0.1},
    ),
    "f_dpo_fkl": _stored(
        "DPO under forward KL",
        "Wang et al., arXiv 2309.16240",
        {"name": "rpo", "distance": "bwd", "target": "hard", "implicit": "forward_kl", "beta": 0.1},
    ),
    "f_dpo_js": _stored(
        "DPO under Jensen-Shannon divergence",
        "Wang et al., arXiv 2309.16240",
        {"name": "rpo", "distance": "bwd", "target": "hard", "implicit": "js", "beta": 0.1},
    ),
    "rpo": _stored(
        "bring implicit rewards to target rewards",
        "Sun et al., arXiv 2502.00203",
        {"name": "rpo", "distance": "bwd", "target": "scores", "beta": 0.1, "eta": 1.0},
    ),
    "dpo_positive": _stored(
        "DPO that never lowers the chosen reply",
        "Pal et al., arXiv 2402.13228",
        {"name": "dpo_positive", "beta": 0.1, "penalty": 5.0},
    ),
    "dpo_sft": _stored(
        "DPO with imitation of the chosen reply",
        "Liu et al., arXiv 2405.16436",
        {"name": "dpo_sft", "beta": 0.01, "eta": 0.005},
    ),
    "dual_clip_dpo": _stored(
        "DPO whose implicit rewards are bounded (form unverified)",
        "TSO, arXiv 2409.02118",
        {"name": "dual_clip_dpo", "beta": 0.1, "clip_w": 10.0, "clip_l": 10.0},
    ),
    "nca": _stored(
        "raise the chosen reply itself, not the margin alone",
        "Chen et al., arXiv 2402.05369",
        {"name": "nca", "beta": 0.01},
    ),
    "slic": _stored(
        "a margin of log-probabilities, and imitation",
        "Zhao et al., arXiv 2305.10425",
        {"name": "slic", "delta": 1.0, "weight": 0.1},
        reference="none",
    ),
    "hinge": _stored(
        "a margin of normalised log-ratios (RSO)",
        "Liu et al., arXiv 2309.06657",
        {"name": "hinge", "beta": 0.05},
    ),
    "orpo": _stored(
        "imitation and an odds ratio, no reference",
        "Hong et al., arXiv 2403.07691",
        {"name": "orpo", "weight": 0.1},
        reference="none",
    ),
    "cpo": _stored(
        "contrast and imitation, no reference",
        "Xu et al., arXiv 2401.08417",
        {"name": "cpo", "beta": 0.1, "weight": 1.0},
        reference="none",
    ),
    "sppo": _stored(
        "bring both log-ratios to their payoff",
        "Wu et al., arXiv 2405.00675",
        {"name": "sppo", "beta": 1e-3},
    ),
    "tr_dpo": _stored(
        "DPO whose reference follows the policy",
        "Gorbatovski et al., arXiv 2404.09656",
        _HARD | {"beta": 0.05},
        reference="ema",
        reference_interval=512,
        reference_decay=0.6,
    ),
    "mrpo": _stored(
        "DPO against a mixture of two references",
        "Le et al., arXiv 2405.16388",
        _HARD,
        reference_weights="confidence",
        reference_clip=0.1,
    ),
    # ---- stored single replies ----
    "kto": _stored(
        "liked and disliked replies, no pairs",
        "Ethayarajh et al., arXiv 2402.01306",
        {"name": "kto", "beta": 0.1, "desirable": 1.0, "undesirable": 1.0, "reduction": "global"},
        arity="point",
    ),
    "pointwise_dpo": _stored(
        "fit implicit rewards to single judgements",
        "Cai et al., arXiv 2312.02554",
        {
            "name": "pointwise_dpo",
            "beta": 0.1,
            "c": 0.0,
            "centred": False,
            "label_mode": "binary",
            "reduction": "global",
        },
        arity="point",
    ),
    "ulma": _stored(
        "imitate demonstrations and fit judgements in one step",
        "Cai et al., arXiv 2312.02554",
        {
            "name": "ulma",
            "beta": 0.1,
            "c": 0.0,
            "centred": False,
            "label_mode": "binary",
            "reduction": "global",
        },
        arity="point",
    ),
    "unlikelihood": _stored(
        "imitate liked replies, unlearn the others",
        "Cai et al., arXiv 2312.02554",
        {"name": "unlikelihood", "logp_reduction": "token_mean", "weight": 1.0},
        arity="point",
        reference="none",
    ),
    "filtered_sft": _stored(
        "imitate liked replies, ignore the others",
        "Cai et al., arXiv 2312.02554 (baseline)",
        {"name": "unlikelihood", "logp_reduction": "token_mean", "weight": 0.0},
        arity="point",
        reference="none",
    ),
    # ---- lists ----
    "infonca": _stored(
        "a softmax over scored replies",
        "Chen et al., arXiv 2402.05369",
        {"name": "rpo", "distance": "ce", "target": "scores", "beta": 0.1, "eta": 1.0},
        arity="list",
    ),
    "rrhf": _stored(
        "order replies by log-probability, imitate the best",
        "Yuan et al., arXiv 2304.05302",
        {"name": "rrhf", "sft": 1.0},
        arity="list",
        reference="none",
    ),
    "pro": _stored(
        "order replies one after the other",
        "Song et al., arXiv 2306.17492",
        {"name": "pro", "sft": 0.05},
        arity="list",
        reference="none",
    ),
    "lipo": _stored(
        "learning to rank with a lambda loss (form unverified)",
        "Liu et al., arXiv 2402.01878",
        {"name": "lipo", "beta": 0.1},
        arity="list",
    ),
    # ---- the policy's own replies ----
    "online_dpo": _sampled(
        "DPO on pairs of fresh replies",
        "Guo et al., arXiv 2402.04792",
        _HARD,
    ),
    "online_ipo": _sampled(
        "IPO on pairs of fresh replies",
        "Guo et al., arXiv 2402.04792",
        {
            "name": "rpo",
            "distance": "sq",
            "target": "margin",
            "margin": 0.5,
            "beta": 1.0,
            "scale": 2.0,
        },
    ),
    "online_rpo": _sampled(
        "RPO on all fresh replies to a prompt",
        "Sun et al., arXiv 2502.00203",
        {"name": "rpo", "distance": "bwd", "target": "scores", "beta": 0.1, "eta": 1.0},
        pairing="group",
        data={"samples_per_prompt": 4},
    ),
    "rebel": _sampled(
        "regress reward differences on log-ratios to the last policy",
        "Gao et al., arXiv 2404.16767",
        {
            "name": "rpo",
            "distance": "sq",
            "target": "scores",
            "beta": 1.0,
            "eta": 1.0,
            "scale": 2.0,
        },
        reference="reset",
        data={"pairing": "all_pairs"},
        iteration_steps=1,
    ),
    "xpo": _sampled(
        "online DPO that explores away from the reference",
        "Xie et al., arXiv 2405.21046",
        {"name": "xpo", "beta": 0.1, "alpha": 1e-5},
        source="policy+reference",
        data={"samples_per_prompt": 1},
    ),
    "selm": _sampled(
        "DPO of a stored pair and one reply, with optimism, in iterations",
        "Zhang et al., arXiv 2405.19332",
        {"name": "selm", "beta": 0.01, "alpha": 1e-3, "cap": None},
        source="policy+stored",
        reference="reset",
        data={"samples_per_prompt": 1, "sliced": True, "sampling": {"greedy": True}},
    ),
    "selm_online": _sampled(
        "online DPO with SELM's optimism at every step; nothing is stored",
        "Zhang et al., arXiv 2405.19332",
        {"name": "selm", "beta": 0.1, "alpha": 1e-3, "cap": None},
    ),
}
