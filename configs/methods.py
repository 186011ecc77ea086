"""What a method's name stands for: defaults of the algorithm section; a YAML may change any.

PPO: Schulman et al. 2017 with the RLHF details of Huang et al. (arXiv 2403.17031).
RLOO: Ahmadian et al. (arXiv 2402.14740): leave-one-out baseline, sequence-level KL in the reward,
summed token log-probs, no clipping.
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
}
