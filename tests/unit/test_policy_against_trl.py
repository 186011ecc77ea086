"""bench: our policy-gradient losses and trl 1.16.0's, on the same samples of a tiny model.

As `test_against_trl`: trl's value is that of its own RLOO and GRPO trainers, which tokenize, score,
prepare and judge a batch whose replies alone are given. Value and gradient agree to 1e-5; where the
two differ by design, the name says so and the test holds the relation that follows.
"""

import pytest
import torch

from configs.methods import METHODS
from rl import advantages as adv
from rl.correction import correction_weights
from rl.kl import KLEstimator, k1, kl_loss
from rl.losses.policy import policy_objective
from rl.masking import aggregate, masked_sum, moment_sums
from rl.rewards import shaped_scores

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")


# ---- RLOO --------------------------------------------------------------------------------------


def test_rloo_s_advantages_are_trl_s_with_the_kl_inside_the_score(side, tmp_path):
    made = side.sampled(side.RLOOTrainer, tmp_path, kl=0.03)
    kl = k1(made.logprobs(), made.logprobs(made.trainer.ref_model))
    assert masked_sum(kl, made.mask, -1).std() > 0.5
    shaped = shaped_scores(made.scores.flatten(), kl, made.mask, 0.03)
    ours = adv.rloo(shaped.view(made.scores.shape)).flatten()
    close("rloo, advantages", made.prepared["advantages"], ours)


def test_rloo_bounds_each_token_s_kl_and_trl_does_not(side, tmp_path):
    """With a reference far away some tokens differ by more than 10 nats, the bound of `k1`."""
    made = side.sampled(side.RLOOTrainer, tmp_path, kl=0.03, distance=0.8)
    unbounded = made.logprobs() - made.logprobs(made.trainer.ref_model)
    assert unbounded.abs().max() > 10
    theirs, scores = made.prepared["advantages"], made.scores.flatten()
    whole, bounded = (
        adv.rloo(shaped_scores(scores, kl, made.mask, 0.03).view(made.scores.shape)).flatten()
        for kl in (unbounded, unbounded.clamp(-10, 10))
    )
    close("rloo, unbounded", theirs, whole)
    assert (theirs - bounded).abs().max() > 0.01


def test_rloo_s_clipped_ratio_of_a_reply_is_trl_s(side, tmp_path):
    made = side.sampled(side.RLOOTrainer, tmp_path, epsilon=0.2)
    old, ours_old = made.perturbed_old(0.2)
    theirs = made.loss(old_logps=(old * made.prepared["completion_mask"]).sum(-1))
    per_token, sums = policy_objective(
        made.logprobs(),
        ours_old,
        adv.spread_over_tokens(made.prepared["advantages"], made.mask),
        made.mask,
        ratio="sequence",
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
    )
    assert 0 < sums[1] < sums[0]  # some replies are clipped, others are not
    mine = total(per_token, made, "sequence_sum")
    side.assert_same("rloo, sequence", theirs, mine, made.trainer.model)


def test_rloo_of_the_table_has_trl_s_gradient_before_the_policy_moves(side, tmp_path):
    """-A S instead of -r A: equal slopes at r = 1, other values."""
    made = side.sampled(side.RLOOTrainer, tmp_path)
    theirs = made.loss()
    row = METHODS["rloo"].algorithm
    mine, _ = ours(made, made.logprobs().detach(), row)
    slope = side.gradient_difference(theirs, mine, made.trainer.model)
    print(f"\nrloo of the table: gradient {slope:.1e}")
    assert slope <= side.TOLERANCE
    assert abs(float(theirs - mine)) > 0.1


# ---- GRPO and its kin --------------------------------------------------------------------------

PLAIN_KL = {"loss_type": "grpo", "use_bias_correction_kl": False}
GSPO = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
BNPO = {"ratio": "token", "aggregation": "token_mean", "clip_low": 0.2, "clip_high": 0.2}
LUSPO = {"ratio": "geometric", "aggregation": "sequence_sum", "clip_low": 0.2, "clip_high": 0.2}


@pytest.mark.parametrize(
    ("row", "config", "kl"),
    [
        pytest.param(METHODS["grpo"].algorithm, PLAIN_KL, 0.04, id="grpo"),
        pytest.param(BNPO, PLAIN_KL | {"loss_type": "bnpo"}, 0.04, id="bnpo"),
        pytest.param(METHODS["dr_grpo"].algorithm, {"loss_type": "dr_grpo"}, 0.0, id="dr_grpo"),
        pytest.param(
            METHODS["dapo"].algorithm,
            {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28},
            0.0,
            id="dapo",
        ),
        pytest.param(
            METHODS["gspo"].algorithm,
            GSPO | {"epsilon": 3e-4, "epsilon_high": 4e-4},
            0.0,
            id="gspo",
        ),
        pytest.param(LUSPO, GSPO | {"loss_type": "luspo"}, 0.0, id="luspo"),
        pytest.param(
            METHODS["cispo"].algorithm,
            {"loss_type": "cispo", "epsilon_high": 5.0},
            0.0,
            id="cispo-bound of the ratio itself: 5 is 1 + clip_high",
        ),
        pytest.param(
            METHODS["grpo"].algorithm | {"dual_clip": 3.0},
            {"loss_type": "grpo", "delta": 3.0},
            0.0,
            id="dual clip-delta",
        ),
    ],
)
def test_a_clipped_objective_is_trl_s(side, tmp_path, request, row, config, kl):
    made = side.sampled(side.GRPOTrainer, tmp_path, kl=kl, distance=side.NEAR, **config)
    old, ours_old = made.perturbed_old(1.0)
    mine, sums = ours(made, ours_old, row, kl=kl)
    assert 0 < sums[1] < sums[0]  # the bounds bind somewhere and not everywhere
    theirs = made.loss(old_per_token_logps=old)
    side.assert_same(request.node.callspec.id, theirs, mine, made.trainer.model)


def test_grpo_s_kl_is_multiplied_by_the_ratio_in_trl_and_not_here(side, tmp_path):
    """trl's default, `use_bias_correction_kl`: beta r k3, whose gradient is unbiased off-policy."""
    made = side.sampled(side.GRPOTrainer, tmp_path, kl=0.04, distance=side.NEAR, loss_type="grpo")
    old, ours_old = made.perturbed_old(0.5)
    policy, _ = ours(made, ours_old, METHODS["grpo"].algorithm)
    logprobs = made.logprobs()
    penalty = kl_loss(logprobs, made.logprobs(made.trainer.ref_model).detach(), "k3")
    weighted = (logprobs - ours_old).exp() * penalty
    mine = policy + 0.04 * total(weighted, made, "sequence_mean")
    theirs = made.loss(old_per_token_logps=old)
    side.assert_same("grpo, r k3", theirs, mine, made.trainer.model)
    assert abs(float(theirs - ours(made, ours_old, METHODS["grpo"].algorithm, kl=0.04)[0])) > 1e-4


def test_grpo_s_default_kl_in_trl_has_the_gradient_of_our_k2_before_the_policy_moves(
    side, tmp_path
):
    """d(r k3) = (k3 + 1 - e^-x) dlogp = x dlogp at r = 1, with x = logp - ref: that of x^2 / 2."""
    made = side.sampled(side.GRPOTrainer, tmp_path, kl=0.04, loss_type="grpo")
    old = made.logprobs().detach()
    mine, _ = ours(made, old, METHODS["grpo"].algorithm, kl=0.04, estimator="k2")
    slope = side.gradient_difference(made.loss(), mine, made.trainer.model)
    print(f"\ngrpo, k2: gradient {slope:.1e}")
    assert slope <= side.TOLERANCE


def test_grpo_bounds_each_token_s_k3_and_trl_does_not(side, tmp_path):
    """trl's loss holds in addition beta times what ours cuts off of k3 above 10."""
    made = side.sampled(side.GRPOTrainer, tmp_path, kl=0.04, **PLAIN_KL)
    mine, _ = ours(made, made.logprobs().detach(), METHODS["grpo"].algorithm, kl=0.04)
    d = made.logprobs() - made.logprobs(made.trainer.ref_model).detach()
    excess = (torch.expm1(-d) + d - 10).clamp(min=0)
    assert (excess > 0).sum() > 5
    added = 0.04 * total(excess, made, "sequence_mean")
    side.assert_same("grpo, unbounded k3", made.loss(), mine + added, made.trainer.model)
    assert added > 0.01


def test_the_reference_s_log_probs_are_trl_s_on_left_padded_prompts(side, tmp_path):
    made = side.sampled(side.GRPOTrainer, tmp_path, kl=0.04)
    theirs = made.laid_out(made.prepared["ref_per_token_logps"])
    close("log-probs of the reference", theirs, made.logprobs(made.trainer.ref_model))


@pytest.mark.parametrize(
    ("scale", "estimator"), [("group", "group_normalised"), ("none", "group_centred")]
)
def test_group_advantages_are_trl_s(side, tmp_path, scale, estimator):
    made = side.sampled(side.GRPOTrainer, tmp_path, scale_rewards=scale)
    ours = adv.GROUP_ESTIMATORS[estimator](made.scores, torch.empty(3)).flatten()
    close(f"{estimator}, advantages", made.prepared["advantages"], ours)


def test_the_batch_s_deviation_is_unbiased_in_trl_and_biased_here(side, tmp_path):
    """A = c / (s + eps): s = c / A_trl - eps is unbiased, ours is s * sqrt((N - 1) / N)."""
    made = side.sampled(side.GRPOTrainer, tmp_path, scale_rewards="batch")
    size, eps = made.scores.numel(), 1e-4
    centred = adv.group_centred(made.scores).flatten()
    taught = centred != 0
    unbiased = centred[taught] / made.prepared["advantages"][taught] - eps
    derived = centred[taught] / (unbiased * ((size - 1) / size) ** 0.5 + eps)
    ours = adv.batch_normalised(made.scores, moment_sums(made.scores), eps=eps).flatten()
    close("batch_normalised, advantages", derived, ours[taught])
    assert (ours - made.prepared["advantages"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("theirs", "mode"),
    [
        ("token_truncate", "token_tis"),
        ("token_mask", "token_mask"),
        ("sequence_truncate", "sequence_tis"),
        ("sequence_mask", "sequence_mask"),
    ],
)
def test_the_correction_for_the_sampler_is_trl_s(side, tmp_path, theirs, mode):
    made = side.sampled(
        side.GRPOTrainer,
        tmp_path,
        sampler_noise=0.4,
        vllm_importance_sampling_mode=theirs,
        vllm_importance_sampling_clip_min=0.5,
        vllm_importance_sampling_clip_max=2.0,
    )
    ratio = made.prepared["importance_sampling_ratio"]
    ratio = ratio.expand_as(made.prepared["completion_mask"])
    ours, _ = correction_weights(
        made.logprobs().detach(),
        made.laid_out(made.prepared["sampling_per_token_logps"]),
        made.mask,
        mode=mode,
        low=0.5,
        high=2.0,
        veto=None,
    )
    assert len(ours[made.mask].unique()) > 20
    close(f"correction {mode}", made.laid_out(ratio), ours)


def close(name, theirs, ours):
    difference = float((theirs - ours).abs().max())
    print(f"\n{name}: {difference:.1e}")
    assert difference <= 1e-5


def total(per_token, made, aggregation):
    """The loss of a step that is this one batch."""
    return aggregate(
        per_token,
        made.mask,
        aggregation,
        num_tokens=made.mask.sum(),
        num_sequences=len(made.mask),
        longest=made.trainer.max_completion_length,
    )


def ours(made, old, row, *, kl=0.0, estimator: KLEstimator = "k3"):
    """Loss and sums of a row of the method table with trl's advantages."""
    logprobs = made.logprobs()
    per_token, sums = policy_objective(
        logprobs,
        old,
        adv.spread_over_tokens(made.prepared["advantages"], made.mask),
        made.mask,
        ratio=row["ratio"],
        clip_low=row.get("clip_low", 0.2),
        clip_high=row.get("clip_high", 0.2),
        dual_clip=row.get("dual_clip"),
    )
    if kl:
        reference = made.logprobs(made.trainer.ref_model).detach()
        per_token = per_token + kl * kl_loss(logprobs, reference, estimator)
    return total(per_token, made, row["aggregation"]), sums
