"""bench: our preference losses and trl 1.16.0's, on the same tokens of the same tiny models.

Skipped where trl (the extra `bench`) is missing. trl's value is always that of its own trainer:
built by its constructor from its config, fed by its own tokenization and collation, asked by
`compute_loss`; ours comes from `rl/` with the constants of the method table. Value and gradient of
every weight agree to 1e-5. Where the two differ by design, the name says so and the test holds the
relation that follows. `-s` prints the differences. Policy gradients: `test_policy_against_trl`.
"""

import pytest
import torch

from configs.methods import METHODS
from rl.losses.pointwise import kto, pointwise_dpo
from rl.losses.preference import cpo, orpo
from rl.losses.rpo import rpo
from rl.losses.supervised import nll
from rl.masking import aggregate, masked_sum
from rl.methods import preference_loss

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")


def of_table(method, replies, **extras):
    """(P,) or (P, K): the loss of a row of the method table, with the row's constants."""
    loss = dict(METHODS[method].algorithm["loss"])
    loss.pop("reduction", None)
    return preference_loss(loss.pop("name")).function(replies, **loss, **extras)


def constant(method, name="beta"):
    return METHODS[method].algorithm["loss"][name]


# ---- pairs with a reference --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("dpo", {"loss_type": ["sigmoid"]}),
        ("f_dpo_fkl", {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"}),
        ("f_dpo_js", {"loss_type": ["sigmoid"], "f_divergence_type": "js_divergence"}),
        ("robust_dpo", {"loss_type": ["robust"], "label_smoothing": 0.1}),
        ("exo", {"loss_type": ["exo_pair"], "label_smoothing": 0.1}),
        ("hinge", {"loss_type": ["hinge"]}),
        ("nca", {"loss_type": ["nca_pair"]}),
        ("sppo", {"loss_type": ["sppo_hard"]}),
    ],
)
def test_a_pair_loss_of_the_table_is_trl_s(side, tmp_path, method, config):
    trainer = side.dpo_trainer(tmp_path, beta=constant(method), **config)
    batch = side.collated(trainer)
    replies = side.dpo_replies(trainer, batch)
    assert replies.log_ratios.std() > 0.5  # nothing agrees because policy and reference do
    assert len(replies.lengths.unique()) > 6
    theirs = trainer.compute_loss(trainer.model, batch)
    side.assert_same(method, theirs, of_table(method, replies).mean(), trainer.model)


def per_token_ipo(replies):
    return rpo(
        replies,
        distance="sq",
        target="margin",
        implicit="mean_log_ratio",
        margin=0.5,
        beta=0.2,
        scale=2 / 0.2**2,
    )


def pointwise_pair(replies):
    """`scores` are the labels 1 and 0; trl adds the two replies' losses up."""
    return pointwise_dpo(replies, beta=0.2).sum(-1)


@pytest.mark.parametrize(
    ("loss_type", "ours"),
    [
        ("ipo", per_token_ipo),
        ("sigmoid_norm", lambda r: rpo(r, target="hard", implicit="mean_log_ratio", beta=0.2)),
        ("bco_pair", pointwise_pair),
        ("apo_zero", lambda r: kto(r, torch.zeros(()), beta=0.2).sum(-1)),
    ],
)
def test_a_loss_outside_the_table_is_a_member_of_a_family(side, tmp_path, loss_type, ours):
    trainer = side.dpo_trainer(tmp_path, beta=0.2, loss_type=[loss_type])
    batch = side.collated(trainer)
    theirs = trainer.compute_loss(trainer.model, batch)
    mine = ours(side.dpo_replies(trainer, batch)).mean()
    side.assert_same(loss_type, theirs, mine, trainer.model)


def test_our_ipo_sums_over_tokens_where_trl_takes_their_mean(side, tmp_path):
    """(dh / n - 1 / (2 t))^2 = (dh - n / (2 t))^2 / n^2: for pairs of equal length n, trl's tau
    is n times the paper's and its loss 1 / n^2 of it."""
    n = 6  # five words and EOS
    tau = constant("ipo")
    rows = side.pair_rows(reply=(n - 1, n - 1))
    trainer = side.dpo_trainer(tmp_path, rows, beta=tau * n, loss_type=["ipo"])
    batch = side.collated(trainer)
    replies = side.dpo_replies(trainer, batch)
    assert (replies.lengths == n).all()
    theirs = trainer.compute_loss(trainer.model, batch)
    mine = of_table("ipo", replies).mean() / n**2
    side.assert_same("ipo, sum and mean", theirs, mine, trainer.model)


def test_cdpo_is_what_trl_calls_aot_for_one_pair(side, tmp_path):
    """trl 1.16 has no label smoothing in DPO; AOT has, and sorting one pair changes nothing."""
    trainer = side.dpo_trainer(
        tmp_path, beta=constant("cdpo"), loss_type=["aot"], label_smoothing=0.1
    )
    single = [side.collated(trainer, [row]) for row in range(side.NUM_PROMPTS)]
    theirs = torch.stack([trainer.compute_loss(trainer.model, batch) for batch in single]).mean()
    replies = side.dpo_replies(trainer, side.collated(trainer))
    side.assert_same("cdpo", theirs, of_table("cdpo", replies).mean(), trainer.model)


def test_imitation_is_trl_s_sft_term(side, tmp_path):
    trainer = side.dpo_trainer(tmp_path, loss_type=["sft"])
    batch = side.collated(trainer)
    chosen = slice(0, side.NUM_PROMPTS)
    tokens, mask = batch["input_ids"][chosen], batch["completion_mask"][chosen].bool()
    mine = token_mean_nll(side.logprobs_of(trainer.model, tokens, mask), mask)
    theirs = trainer.compute_loss(trainer.model, batch)
    side.assert_same("sft", theirs, mine, trainer.model)


def token_mean_nll(logprobs, mask):
    counts = {"num_tokens": mask.sum(), "num_sequences": len(mask)}
    return aggregate(nll(logprobs, mask), mask, "token_mean", **counts)


# ---- pairs without a reference -----------------------------------------------------------------


def reference_free(side, trainer, rows=None):
    """trl's loss, tokens, reply mask and our replies of a batch of a CPO or an ORPO trainer."""
    batch = side.collated(trainer, range(side.NUM_PROMPTS) if rows is None else rows)
    tokens, mask = side.reference_free_rows(batch)
    replies = side.pairs_of(tokens, mask, trainer.model, None)
    return trainer.compute_loss(trainer.model, batch), tokens, mask, replies


def pair_by_pair(side, trainer, ours):
    """trl's mean over batches of one pair each, and ours of the same pairs."""
    parts = [reference_free(side, trainer, [row]) for row in range(side.NUM_PROMPTS)]
    theirs = torch.stack([loss for loss, _, _, _ in parts]).mean()
    return theirs, torch.cat([ours(replies) for _, _, _, replies in parts]).mean()


def cpo_trainer(side, folder, **config):
    return side.reference_free_trainer(side.CPOTrainer, folder, **config)


def test_simpo_is_cpotrainer_s_without_its_imitation_term(side, tmp_path):
    """trl's margin is simpo_gamma / beta inside beta (...), hence gamma itself, as here."""
    trainer = cpo_trainer(
        side,
        tmp_path,
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=constant("simpo"),
        simpo_gamma=constant("simpo", "gamma"),
    )
    theirs, _, _, replies = reference_free(side, trainer)
    side.assert_same("simpo", theirs, of_table("simpo", replies).mean(), trainer.model)


@pytest.mark.parametrize(
    ("loss_type", "smoothing", "ours"),
    [
        (
            "sigmoid",
            0.1,
            lambda r: rpo(r, distance="ce", target="smoothed", implicit="logprob", beta=0.2),
        ),
        (
            "ipo",
            0.0,
            lambda r: rpo(
                r,
                distance="sq",
                target="margin",
                implicit="mean_logprob",
                beta=0.2,
                scale=2 / 0.2**2,
            ),
        ),
    ],
)
def test_a_contrast_without_reference_is_a_member_of_rpo(
    side, tmp_path, loss_type, smoothing, ours
):
    trainer = cpo_trainer(
        side, tmp_path, loss_type=loss_type, cpo_alpha=0.0, beta=0.2, label_smoothing=smoothing
    )
    theirs, _, _, replies = reference_free(side, trainer)
    side.assert_same(f"CPO's {loss_type}", theirs, ours(replies).mean(), trainer.model)


def test_cpo_of_one_pair_at_a_time_is_trl_s(side, tmp_path):
    config = {"beta": constant("cpo"), "cpo_alpha": constant("cpo", "weight")}
    trainer = cpo_trainer(side, tmp_path, **config)
    theirs, mine = pair_by_pair(side, trainer, lambda replies: of_table("cpo", replies))
    side.assert_same("cpo, pair by pair", theirs, mine, trainer.model)


def test_cpo_of_a_batch_weighs_imitation_by_length_in_trl_and_by_reply_here(side, tmp_path):
    """trl imitates sum(S_w) / sum(n_w), a mean of our S_w / n_w with weights n_w."""
    trainer = cpo_trainer(side, tmp_path, beta=0.1, cpo_alpha=1.0)
    theirs, _, _, replies = reference_free(side, trainer)
    contrast = cpo(replies, beta=0.1, weight=0.0)
    imitation = cpo(replies, beta=0.1, weight=1.0) - contrast
    chosen = replies.lengths[:, 0]
    mine = contrast.mean() + (imitation * chosen).sum() / chosen.sum()
    side.assert_same("cpo, batch", theirs, mine, trainer.model)
    assert abs(theirs - cpo(replies, beta=0.1, weight=1.0).mean()) > 0.01


def test_orpo_behind_a_prompt_of_one_token_is_trl_s_pair_by_pair(side, tmp_path):
    """A first token is never predicted, so here trl's imitation covers the reply alone, too."""
    trainer = side.reference_free_trainer(
        side.ORPOTrainer,
        tmp_path,
        side.pair_rows(prompt=(1, 1)),
        beta=constant("orpo", "weight"),
    )
    theirs, mine = pair_by_pair(side, trainer, lambda replies: of_table("orpo", replies))
    side.assert_same("orpo, pair by pair", theirs, mine, trainer.model)


def test_orpo_of_a_batch_imitates_prompts_too_in_trl_and_replies_alone_here(side, tmp_path):
    """The odds terms are the same; trl's other term is the token mean over prompt and reply."""
    trainer = side.reference_free_trainer(side.ORPOTrainer, tmp_path, beta=0.3)
    theirs, tokens, _, replies = reference_free(side, trainer)
    odds = orpo(replies, weight=0.3) - orpo(replies, weight=0.0)
    texts = tokens[: side.NUM_PROMPTS]
    predicted = texts != side.PAD
    predicted[:, 0] = False
    imitation = token_mean_nll(side.logprobs_of(trainer.model, texts, predicted), predicted)
    side.assert_same("orpo, batch", theirs, imitation + odds.mean(), trainer.model)
    assert abs(theirs - orpo(replies, weight=0.3).mean()) > 0.01


# ---- single replies ----------------------------------------------------------------------------


def kto_parts(side, trainer, rows):
    """trl's loss of the rows, our replies (B, 1), and z: mean log-ratio of trl's mismatched rows,
    the previous row's reply behind each prompt (ours takes the next one's)."""
    batch = side.collated(trainer, rows)
    models = (trainer.model, trainer.ref_model)
    mask, other = batch["completion_mask"].bool(), batch["KL_completion_mask"].bool()
    own, ref = (masked_sum(side.logprobs_of(m, batch["input_ids"], mask), mask, -1) for m in models)
    moved, stays = (
        masked_sum(side.logprobs_of(m, batch["KL_input_ids"], other), other, -1) for m in models
    )
    replies = side.Replies(
        logprobs=own[:, None],
        ref_logprobs=ref.detach()[:, None],
        lengths=mask.sum(-1, keepdim=True).float(),
        scores=batch["label"].float()[:, None],
        is_demo=torch.zeros(len(own), 1, dtype=torch.bool),
    )
    return trainer.compute_loss(trainer.model, batch), replies, (moved - stays).mean()


@pytest.mark.parametrize("swapped", [False, True])
def test_kto_is_trl_s_with_z_of_the_same_mismatched_rows(side, tmp_path, swapped):
    trainer = side.kto_trainer(tmp_path, swapped=swapped, beta=constant("kto"))
    theirs, replies, z = kto_parts(side, trainer, range(side.NUM_PROMPTS))
    assert (z > 0.05) != swapped  # one case each where z is positive and where it is cut off at 0
    mine = of_table("kto", replies, baseline=z.clamp(min=0)).mean()
    side.assert_same(f"kto, mean log-ratio {float(z.detach()):.2f}", theirs, mine, trainer.model)


def test_kto_s_weights_are_trl_s(side, tmp_path):
    weights = {"desirable": 1.3, "undesirable": 0.7}
    trainer = side.kto_trainer(
        tmp_path, beta=0.2, **{f"{name}_weight": value for name, value in weights.items()}
    )
    theirs, replies, z = kto_parts(side, trainer, range(side.NUM_PROMPTS))
    mine = kto(replies, z.clamp(min=0), beta=0.2, **weights).mean()
    side.assert_same("kto, weighted", theirs, mine, trainer.model)


def test_kto_s_z_is_of_the_micro_batch_in_trl_and_of_the_whole_step_here(side, tmp_path):
    """trl's mean over two micro-batches has a z for each; ours of the step has one."""
    trainer = side.kto_trainer(tmp_path, beta=0.3)
    halves = [range(8), range(8, side.NUM_PROMPTS)]
    parts = [kto_parts(side, trainer, half) for half in halves]
    theirs = torch.stack([loss for loss, _, _ in parts]).mean()
    split = [kto(replies, z.clamp(min=0), beta=0.3).mean() for _, replies, z in parts]
    side.assert_same("kto, two z", theirs, torch.stack(split).mean(), trainer.model)
    z = torch.stack([z for _, _, z in parts]).mean().clamp(min=0)
    whole = torch.stack([kto(replies, z, beta=0.3).mean() for _, replies, _ in parts]).mean()
    assert abs(float(theirs - whole)) > 1e-4
