"""What a loss compares: pairs, lists, and the ties it never compares."""

import random

import pytest

from rl.pairing import Pairing, first_drawn, is_list, pairs

TEXTS = ["a", "b", "c", "d"]


def paired(scores: list[float], pairing: Pairing, texts: list[str] = TEXTS) -> list:
    return pairs(scores, texts[: len(scores)], pairing, random.Random(0))


def test_given_orders_the_first_two_by_their_scores():
    assert paired([1.0, 0.0, 5.0], "given") == [(0, 1)]
    assert paired([0.0, 1.0, 5.0], "given") == [(1, 0)]


def test_best_and_worst_leave_the_middle_out():
    assert paired([0.2, 0.9, 0.1, 0.5], "best_worst") == [(1, 2)]


def test_all_pairs_put_the_better_one_first_and_skip_equals():
    assert paired([0.2, 0.9, 0.2], "all_pairs") == [(1, 0), (1, 2)]
    assert len(paired([1.0, 2.0, 3.0, 4.0], "all_pairs")) == 6


def test_the_best_meets_each_of_the_others_sooner_or_later():
    rng = random.Random(0)
    found = {pairs([1, 3, 2], TEXTS[:3], "best_vs_random", rng)[0] for _ in range(40)}
    assert found == {(1, 0), (1, 2)}


@pytest.mark.parametrize("pairing", ["given", "best_worst", "all_pairs", "best_vs_random"])
def test_equal_scores_and_equal_texts_form_no_pair(pairing: Pairing):
    assert paired([1.0, 1.0], pairing) == []
    assert paired([1.0, 0.0], pairing, ["same", "same"]) == []


def test_a_list_tells_something_when_two_replies_differ():
    assert is_list([1.0, 0.0, 0.0], TEXTS[:3])
    assert not is_list([1.0, 1.0, 1.0], TEXTS[:3])
    assert not is_list([1.0, 0.0], ["same", "same"])


def test_the_first_drawn_reply_is_found_wherever_its_score_put_it():
    both = ["policy", "policy"]
    assert first_drawn([0, 1], both, "policy") == 0
    assert first_drawn([1, 0], both, "policy") == 1
    mixed = ["policy", "stored", "stored"]
    assert first_drawn([1, 2, 0], mixed, "policy") == 2
    assert first_drawn([1, 0], ["policy", "reference"], "reference") == 0
    assert first_drawn([0, 1], both, "reference") == 0
