"""Stored replies in the form of samples."""

import pytest

from rl.data.stored import mismatched, prompt_of, stored_rollouts
from rl.types import Demonstration, PreferencePair, Prompt, Rating, ScoredReplies


def prompt(row: int = 0, **extra: object) -> Prompt:
    return Prompt(row=row, text=f"prompt {row}", tokens=(5, 6, row + 7), extra=extra)


PAIR = PreferencePair(
    prompt=prompt(), chosen="yes", rejected="no",
    chosen_tokens=(5, 6, 7, 20, 1), rejected_tokens=(5, 6, 7, 21, 22, 1),
)  # fmt: skip


def rating(score: float, **extra: object) -> Rating:
    return Rating(prompt=prompt(**extra), reply="so", tokens=(5, 6, 7, 30, 1), score=score)


def test_a_pair_becomes_two_replies_without_the_prompt_the_chosen_one_first():
    chosen, rejected = stored_rollouts(4, PAIR, version=2)
    assert chosen.tokens.tolist() == [20, 1]
    assert rejected.tokens.tolist() == [21, 22, 1]
    assert (chosen.label, rejected.label) == (1.0, 0.0)
    assert (chosen.is_demo, rejected.is_demo) == (True, False)
    assert [r.sample for r in (chosen, rejected)] == [0, 1]
    assert {r.group_id for r in (chosen, rejected)} == {4}
    assert {r.source for r in (chosen, rejected)} == {"stored"}
    assert chosen.oldest_version == rejected.newest_version == 2


def test_a_rating_is_a_demonstration_only_by_its_column_or_its_score():
    assert not stored_rollouts(0, rating(0.9), 0)[0].is_demo
    assert stored_rollouts(0, rating(0.9), 0, demo_score=0.9)[0].is_demo
    assert not stored_rollouts(0, rating(0.8), 0, demo_score=0.9)[0].is_demo
    assert stored_rollouts(0, rating(0.1, is_demo=True), 0)[0].is_demo
    assert stored_rollouts(0, rating(0.25), 0)[0].label == 0.25


def test_a_demonstration_is_liked_and_imitated():
    item = Demonstration(prompt=prompt(), text="do", tokens=(40, 1))
    (reply,) = stored_rollouts(0, item, 0)
    assert (reply.label, reply.is_demo, reply.tokens.tolist()) == (1.0, True, [40, 1])


def test_a_list_gives_every_reply_its_score():
    item = ScoredReplies(
        prompt=prompt(), replies=("a", "b", "c"), tokens=((20, 1), (21, 1), (22, 23, 1)),
        scores=(0.1, 0.9, 0.5),
    )  # fmt: skip
    replies = stored_rollouts(3, item, 0, demo_score=0.9)
    assert [reply.label for reply in replies] == [0.1, 0.9, 0.5]
    assert [reply.is_demo for reply in replies] == [False, True, False]
    assert replies[2].tokens.tolist() == [22, 23, 1]


def test_the_prompt_of_a_row_with_or_without_replies():
    assert prompt_of(prompt(3)).row == 3
    assert prompt_of(PAIR).text == "prompt 0"


def test_a_mismatched_reply_keeps_its_words_and_takes_the_other_prompt():
    own = stored_rollouts(1, PAIR, 0)[0]
    other_item = Demonstration(prompt=prompt(8), text="elsewhere", tokens=(50, 51, 1))
    found = mismatched(own, stored_rollouts(2, other_item, 0)[0])
    assert found.tokens.tolist() == [50, 51, 1]
    assert found.prompt is own.prompt
    assert (found.group_id, found.label, found.is_demo) == (1, None, False)


def test_a_reply_of_no_known_row_is_an_error():
    with pytest.raises(AttributeError):
        stored_rollouts(0, "text", 0)  # pyright: ignore[reportArgumentType]
