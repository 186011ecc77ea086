"""How a language model's answer becomes a judgement, without the model."""

import math

import pytest

from actors.judges.llm import Opening, letter_tokens
from tests.integration import toy


def test_the_odds_of_the_two_letters_decide_whatever_else_is_likely():
    assert Opening(text="A", first=0.6, second=0.2).win() == pytest.approx(0.75)
    assert Opening(text="The", first=0.01, second=0.03).win() == pytest.approx(0.25)


def test_an_answer_that_begins_with_neither_letter_is_no_verdict():
    with pytest.raises(ValueError, match=r"begins with 'Both', and with A or B in 0\.70% of"):
        Opening(text="Both", first=0.004, second=0.003).win()
    with pytest.raises(ValueError, match=r"in 0\.00% of"):
        Opening(text="", first=math.exp(-800), second=0.0).win()


def test_a_tokenizer_without_the_letters_is_refused():
    tokenizer = toy.tokenizer()
    assert letter_tokens(tokenizer, "w7") == [7]  # with a space before it, it is the same token
    with pytest.raises(ValueError, match=r"no token for w6 w7; set verdict=text"):
        letter_tokens(tokenizer, "w6 w7")
