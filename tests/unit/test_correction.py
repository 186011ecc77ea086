import math
from typing import get_args

import pytest
import torch

from configs.schema import CorrectionConfig
from rl.correction import (
    CorrectionMode,
    correction_metrics,
    correction_sums,
    correction_weights,
    normalise_weights,
    weight_sums,
)

MODES = get_args(CorrectionMode)


def weights_of(log_w, mode, low=0.0, high=2.0, veto=None, mask=None):
    """Weights and keep for rows of log w; old log-probs are log w above a sampler's -1."""
    log_w = torch.tensor(log_w)
    mask = torch.ones_like(log_w) if mask is None else torch.tensor(mask)
    rollout = torch.full_like(log_w, -1.0)
    return correction_weights(
        rollout + log_w, rollout, mask, mode=mode, low=low, high=high, veto=veto
    )


def assert_rows(weights, *rows):
    torch.testing.assert_close(weights, torch.tensor(rows), rtol=1e-5, atol=1e-6)


def test_the_modes_are_those_of_the_configuration():
    assert get_args(CorrectionConfig.model_fields["mode"].annotation) == MODES


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 2.0, 2.0), (0.5, 5.0, 2.459603)])
def test_token_tis_gives_its_reference_values(low, high, expected):
    weights, keep = weights_of([[0.9]], "token_tis", low, high)
    assert weights.item() == pytest.approx(expected, abs=1e-6)
    assert keep.tolist() == [True]


def test_token_mask_drops_tokens_outside_the_bounds_and_keeps_the_reply():
    log_w = [[math.log(0.4), math.log(3.0), math.log(6.0)]]
    weights, keep = weights_of(log_w, "token_mask", 0.5, 5.0)
    assert_rows(weights, [0.0, 3.0, 0.0])
    assert keep.tolist() == [True]


def test_sequence_tis_clamps_the_product_of_the_reply():
    log_2 = math.log(2.0)
    weights, _ = weights_of([[log_2, log_2], [log_2, -log_2 / 2]], "sequence_tis", 0.0, 3.0)
    assert_rows(weights, [3.0, 3.0], [2**0.5, 2**0.5])


def test_sequence_mask_drops_a_reply_whose_product_leaves_the_bounds():
    log_2 = math.log(2.0)
    weights, keep = weights_of([[log_2, log_2], [log_2, -log_2 / 2]], "sequence_mask", 0.0, 3.0)
    assert_rows(weights, [0.0, 0.0], [2**0.5, 2**0.5])
    assert keep.tolist() == [False, True]


def test_geometric_filter_keeps_whole_replies_without_weighting():
    weights, keep = weights_of([[0.02, -0.02], [0.02, 0.0]], "geometric", 0.999, 1.002)
    assert_rows(weights, [1.0, 1.0], [0.0, 0.0])
    assert keep.tolist() == [True, False]


def test_seq_mask_tis_filters_by_the_geometric_mean_and_weighs_by_raw_tokens():
    weights, keep = weights_of([[2.0, -2.0], [2.0, 0.0]], "seq_mask_tis", 0.999, 1.002)
    assert_rows(weights, [math.exp(2), math.exp(-2)], [0.0, 0.0])
    assert keep.tolist() == [True, False]


def test_k3_filter_bounds_the_mean_divergence_from_above_only():
    """k3 is w - 1 - log w: 0.005171 at log w = 0.1, 0.004837 at -0.1."""
    log_w = [[0.1, 0.0], [0.1, 0.1], [-0.1, -0.1], [0.0, 0.0]]
    weights, keep = weights_of(log_w, "k3", 0.001, 0.005)
    assert keep.tolist() == [True, False, True, True]
    assert_rows(weights, [1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0])


def test_a_long_reply_leaves_product_bounds_and_stays_in_geometric_ones():
    """The length trap: a ratio of 1.1 per token gives 2.6 at 10 tokens and 13 780 at 100."""
    log_w = [[math.log(1.1)] * 100]
    short = [[1] * 10 + [0] * 90]
    weights, _ = weights_of(log_w, "sequence_tis", 0.0, 1e9, mask=short)
    assert weights[0, 0].item() == pytest.approx(2.5937, abs=1e-3)
    weights, _ = weights_of(log_w, "sequence_tis", 0.0, 1e9)
    assert weights[0, 0].item() == pytest.approx(13780, rel=1e-3)
    assert not weights_of(log_w, "sequence_mask", 0.0, 3.0)[1].item()
    assert weights_of(log_w, "geometric", 0.5, 1.2)[1].item()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("none", "bypass")])
def test_veto_drops_a_reply_with_one_nearly_impossible_token(mode):
    log_w = [[0.0, -10.0], [0.0, -10.0]]
    mask = [[1, 1], [1, 0]]
    weights, keep = weights_of(log_w, mode, 0.0, 9.0, veto=1e-4, mask=mask)
    assert keep.tolist() == [False, True]
    assert_rows(weights, [0.0, 0.0], [1.0, 0.0])


def test_padding_is_not_vetoed():
    log_w, mask = [[math.log(1.8), 0.0]], [[1, 0]]
    assert weights_of(log_w, "token_tis", veto=1.5, mask=mask)[1].item()


@pytest.mark.parametrize("mode", ["none", "bypass"])
def test_without_correction_every_weight_is_1_whatever_the_drift(mode):
    weights, keep = weights_of([[3.0, -10.0]], mode, veto=0.5, mask=[[1, 1]])
    assert_rows(weights, [1.0, 1.0])
    assert keep.tolist() == [True]


@pytest.mark.parametrize("mode", MODES)
def test_padding_content_changes_nothing_and_weighs_nothing(mode):
    def run(filler):
        return weights_of([[0.1, filler], [0.0, 0.2]], mode, 0.0, 2.0, 1e-4, [[1, 0], [1, 1]])

    (weights, keep), (other, other_keep) = run(0.0), run(math.nan)
    assert torch.equal(weights, other)
    assert torch.equal(keep, other_keep)
    assert weights[0, 1] == 0


def test_log_ratios_are_bounded_before_the_exponential():
    weights, _ = weights_of([[100.0, 100.0]], "sequence_tis", 0.0, math.inf)
    assert weights[0, 0].item() == pytest.approx(math.exp(20), rel=1e-5)


def test_batch_normalised_weights_have_mean_1_over_ranks():
    weights = torch.tensor([[2.0, 1.0], [0.5, 7.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    sums = weight_sums(weights[:1], mask[:1]) + weight_sums(weights[1:], mask[1:])
    assert sums.tolist() == [3.5, 3]
    normalised = normalise_weights(weights, sums)
    assert (normalised * mask).sum().item() / 3 == pytest.approx(1)
    assert normalised[0, 0].item() == pytest.approx(2 * 3 / 3.5)


def test_a_batch_that_was_dropped_whole_stays_zero():
    weights, mask = torch.zeros(1, 2), torch.ones(1, 2)
    assert normalise_weights(weights, weight_sums(weights, mask)).tolist() == [[0, 0]]


def metrics_of(log_w, mask, mode: CorrectionMode = "token_tis", low=0.0, high=2.0):
    """Row by row, as if each were a rank: sums are added, extremes maximised."""
    parts = [
        correction_sums(row, torch.zeros_like(row), valid, mode=mode, low=low, high=high)
        for row, valid in zip(log_w.split(1), mask.split(1), strict=True)
    ]
    sums = torch.stack([part[0] for part in parts]).sum(0)
    return correction_metrics(sums, torch.stack([part[1] for part in parts]).amax(0))


LOG_W = torch.tensor([[math.log(2.0), math.log(0.5)], [math.log(4.0), 9.0]])
MASK = torch.tensor([[1, 1], [1, 0]])


def test_metrics_give_their_hand_computed_values():
    """w = 2, 0.5 | 4: mean 13/6, squares 4 + 1/4 + 16."""
    metrics = metrics_of(LOG_W, MASK, high=3.0)
    k1 = -(math.log(2) + math.log(0.5) + math.log(4)) / 3
    expected = {
        "correction/weight_mean": 6.5 / 3,
        "correction/weight_min": 0.5,
        "correction/weight_max": 4.0,
        "correction/out_of_bounds": 1 / 3,
        "correction/kl_k1": k1,
        "correction/kl_k3": 6.5 / 3 - 1 + k1,
        "correction/ppl_ratio": (1 + 0.25) / 2,
        "correction/chi2": 20.25 / 3 - 1,
        "correction/ess": 6.5**2 / 20.25,
        "correction/error": (2 + 2 + 4) / 3,
    }
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_out_of_bounds_counts_replies_where_the_mode_bounds_replies():
    assert metrics_of(LOG_W, MASK, "sequence_mask")["correction/out_of_bounds"] == 0.5
    assert metrics_of(LOG_W, MASK, "geometric", 0.9, 1.1)["correction/out_of_bounds"] == 0.5


def test_out_of_bounds_does_not_count_padding_where_the_bounds_exclude_1():
    assert metrics_of(LOG_W, MASK, "token_mask", 1.5, 3.0)["correction/out_of_bounds"] == 2 / 3


def test_a_rank_without_tokens_is_neutral_and_a_batch_without_them_has_no_metrics():
    empty_log_w = torch.cat([LOG_W, torch.ones(1, 2)])
    empty_mask = torch.cat([MASK, torch.zeros(1, 2, dtype=torch.long)])
    assert metrics_of(empty_log_w, empty_mask) == metrics_of(LOG_W, MASK)
    assert metrics_of(empty_log_w[2:], empty_mask[2:]) == {}
