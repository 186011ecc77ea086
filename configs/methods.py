"""What a method's name stands for: defaults of the algorithm section; a YAML may change any.

PPO: Schulman et al. 2017 with the RLHF details of Huang et al. (arXiv 2403.17031).
RLOO: Ahmadian et al. (arXiv 2402.14740): leave-one-out baseline, sequence-level KL in the reward,
summed token log-probs, no clipping.
REINFORCE++ (arXiv 2501.03262): no critic, KL per token, advantages normalised over the whole batch;
KL coefficients as in OpenRLHF's examples. Its baseline variant compares replies to one prompt.
GRPO (arXiv 2402.03300), and without the biases of its two divisors: Dr. GRPO (arXiv 2503.20783).
DAPO (arXiv 2503.14476): a wider upper bound, all tokens alike, groups of equal scores and cut-off
replies left out; the soft length penalty is `feedback.overlong_buffer`.
GSPO (arXiv 2507.18071): one ratio per reply; the sampler's log-probs are the old ones in it.
CISPO (arXiv 2506.13585): clipped weights of at most 5 (arXiv 2510.13786), no clipped gradients.
ReMax (arXiv 2310.10505): the greedy reply's score as baseline.
Lite PPO (arXiv 2508.08221): the group's mean, the batch's deviation.
RAFT (arXiv 2304.06767): imitation of each group's best reply.
"""

from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"ratio": "none", "correction": {"mode": "none"}, "kl": {"coef": 0.0}},
    "reward_model": {"ratio": "none", "correction": {"mode": "none"}, "kl": {"coef": 0.0}},
    "rloo": {
        "advantage": "rloo",
        "aggregation": "sequence_sum",
        "ratio": "none",
        "clip_low": None,
        "clip_high": None,
        "kl": {"coef": 0.03},
    },
    "ppo": {
        "advantage": "gae",
        "aggregation": "token_mean",
        "ratio": "token",
        "num_epochs": 2,
        "num_minibatches": 2,
        "whiten_advantages": True,
        "kl": {"coef": 0.05},
    },
    "reinforce_pp": {
        "advantage": "reward_to_go",
        "aggregation": "token_mean",
        "ratio": "token",
        "whiten_advantages": True,
        "kl": {"coef": 0.01},
    },
    "reinforce_pp_baseline": {
        "advantage": "group_centred",
        "aggregation": "token_mean",
        "ratio": "token",
        "whiten_advantages": True,
        "kl": {"coef": 0.001, "place": "loss", "estimator": "k2"},
    },
    "grpo": {
        "advantage": "group_normalised",
        "aggregation": "sequence_mean",
        "ratio": "token",
        "kl": {"coef": 0.04, "place": "loss", "estimator": "k3"},
    },
    "dr_grpo": {
        "advantage": "group_centred",
        "aggregation": "constant",
        "ratio": "token",
        "kl": {"coef": 0.0},
    },
    "dapo": {
        "advantage": "group_normalised",
        "aggregation": "token_mean",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "mask_truncated": True,
        "filter_groups": True,
        "kl": {"coef": 0.0},
    },
    "gspo": {
        "advantage": "group_normalised",
        "aggregation": "sequence_mean",
        "ratio": "geometric",
        "num_minibatches": 4,
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "correction": {"mode": "bypass"},
        "kl": {"coef": 0.0},
    },
    "cispo": {
        "advantage": "group_normalised",
        "aggregation": "token_mean",
        "ratio": "cispo",
        "clip_low": None,
        "clip_high": 4.0,
        "kl": {"coef": 0.0},
    },
    "remax": {
        "advantage": "greedy_baseline",
        "aggregation": "sequence_sum",
        "ratio": "none",
        "clip_low": None,
        "clip_high": None,
        "kl": {"coef": 0.1},
    },
    "lite_ppo": {
        "advantage": "batch_normalised",
        "aggregation": "token_mean",
        "ratio": "token",
        "kl": {"coef": 0.0},
    },
    "raft": {
        "advantage": "top1",
        "aggregation": "token_mean",
        "ratio": "none",
        "clip_low": None,
        "clip_high": None,
        "correction": {"mode": "none"},
        "kl": {"coef": 0.0},
    },
}
