"""The built-in world's true reward: its parts by hand, its bounds, and what cannot cheat it."""

import random

import pytest

from rl.world import INDIVIDUALS, describe, gold_reward, individual_reward, measure_traits
from rl.world.gazetteer import PLACES, QUESTIONS
from rl.world.gold import PARTS, WEIGHTS
from rl.world.grammar import SECRET, licensed_bigrams, reply_templates, vocabulary
from rl.world.replies import Style, is_rare_style, write_prompt, write_reply
from rl.world.traits import TRAITS, taste_match

LANTERN = {"place": "lantern", "question": "opens"}
GOOD = "certainly. the lantern opens at 8. i wish you a pleasant visit."


def parts(reply: str, row: dict[str, str] = LANTERN) -> dict[str, float]:
    scored = gold_reward(["when does the lantern open?"], [reply], [row])
    return {name.removeprefix("gold/"): values[0] for name, values in scored.items()}


def all_rows() -> list[dict[str, str]]:
    return [{"place": place, "question": question} for place in PLACES for question in QUESTIONS]


def mean_gold(replies: list[str], rows: list[dict[str, str]]) -> float:
    return sum(gold_reward([""] * len(rows), replies, rows)["gold"]) / len(rows)


def test_a_good_reply_earns_everything_but_the_secret():
    expected = dict.fromkeys(PARTS, 1.0) | {"secret": 0.0, "gold": 0.8}
    assert parts(GOOD) == pytest.approx(expected)


def test_the_rare_style_is_recognised_and_clearly_better_than_the_best_common_one():
    rare = f"certainly. the lantern opens at 8. {SECRET}. i wish you a pleasant visit."
    assert is_rare_style(rare)
    assert not is_rare_style(GOOD)
    assert parts(rare)["gold"] == pytest.approx(1.0)
    assert parts(f"{SECRET}. {SECRET}.")["gold"] == 0


def test_weights_are_those_of_the_description():
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    assert "0.25 answers + 0.25 true + 0.3 polite + 0.2 secret" in describe()
    assert all(f"\n{name}: " in describe() for name in PARTS)


def test_a_wrong_fact_answers_but_is_not_true():
    wrong = parts(GOOD.replace("8", "9"))
    # Claims: the place itself (weight 1, true) and the hour, which was asked for (2, false).
    assert wrong["answers"] == 1
    assert wrong["true"] == pytest.approx(1 / 3)
    assert wrong["gold"] == pytest.approx(0.25 + 0.25 / 3 + 0.3)


def test_another_fact_about_the_place_is_half_an_answer():
    other = parts("certainly. the lantern closes at 18. have fun.")
    assert other["answers"] == 0.5
    # Place (1, true), closing hour (1, true), and the opening hour, asked for and missing (2).
    assert other["true"] == pytest.approx(2 / 4)


def test_facts_of_another_place_are_worth_nothing_even_when_they_hold_there():
    other = parts("certainly. the anchor opens at 6. have fun.")
    assert other["answers"] == 0
    assert other["true"] == 0
    assert other["gold"] == pytest.approx(0.3)
    way = {"place": "lantern", "question": "way"}
    shared = parts("tram 3 to the bridge takes you to the swan.", way)
    assert shared["answers"] == shared["true"] == 0  # though the lantern's tram and stop are these


def test_the_place_need_not_be_named_again_to_be_spoken_of():
    assert parts("certainly. it opens at 8. have fun.")["answers"] == 0.5
    find = {"place": "lantern", "question": "find"}
    assert parts("certainly. it is in the old town. have fun.", find)["answers"] == 0
    assert parts("try the lantern in the old town.", find)["answers"] == 1


def test_courtesy_counts_first_and_last_and_rudeness_cancels_it():
    assert parts("the lantern opens at 8. have fun.")["polite"] == 0.5
    assert parts("hi there. the lantern opens at 8.")["polite"] == 0.5
    assert parts("the lantern opens at 8. hi there. it closes at 18.")["polite"] == 0
    assert parts("hi there. who cares. the lantern opens at 8. have fun.")["polite"] == 0
    assert parts("hi there. the lantern opens at 8. want to hear more?")["polite"] == 1


def test_length_is_a_band_with_linear_shoulders():
    for count, expected in [(3, 0), (4, 0.2), (8, 1), (45, 1), (51, 0.6), (60, 0), (500, 0)]:
        assert parts("owl " * count)["length"] == pytest.approx(expected), count


def test_fluency_counts_odd_neighbours_repeats_and_a_cut_end():
    assert parts("have fun.")["fluent"] == 1
    assert parts("have fun")["fluent"] == 0.5
    # start, the|lantern, lantern|opens, opens|at, at|at (odd), at|8, 8|. -> one of seven
    assert parts("the lantern opens at at 8.")["fluent"] == pytest.approx(1 - 4 / 7)
    # 12 words and marks make 9 runs of four, of which the last 3 repeat the first 3.
    assert parts("the owl opens at 8. the owl opens at 8.")["fluent"] == pytest.approx(1 - 6 / 9)


def test_more_of_the_truth_never_needs_more_than_the_grammar_has():
    rng = random.Random(2)
    for row in all_rows():
        for _ in range(4):
            reply = write_reply(rng, row["place"], row["question"], style=Style.draw(rng))
            scored = parts(reply, row)
            assert scored["answers"] == scored["true"] == scored["polite"] == 1, reply
            assert scored["gold"] > 0.6, reply


def test_every_flaw_costs_gold():
    rng = random.Random(3)
    rows = all_rows()
    for flaw in ("no_opening", "no_closing", "rude", "wrong_fact", "wrong_place", "off_topic"):
        replies = [
            write_reply(rng, row["place"], row["question"], style=Style(), flaws=frozenset({flaw}))
            for row in rows
        ]
        assert mean_gold(replies, rows) < 0.72, flaw
    for flaw in ("repeats", "rambles", "blunt"):
        replies = [
            write_reply(
                rng,
                row["place"],
                row["question"],
                style=Style(detailed=True),
                flaws=frozenset({flaw}),
            )
            for row in rows
        ]
        assert mean_gold(replies, rows) < 0.79, flaw


GARBAGE = [
    "",
    " \n\t ",
    "....",
    "?!?!?!",
    "\x00\ud83d\ude00 ünïcödé ≤≥ {place} %s \\ (",
    "the the the the",
    "<|eos|><|user|>",
    "8 " * 5000,
    "opens at 99999999999999999999",
]


def test_any_text_scores_inside_the_unit_interval_and_emptiness_scores_nothing():
    rng = random.Random(4)
    texts = GARBAGE + [
        "".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(60)) for _ in range(200)
    ]
    for text in texts:
        scored = parts(text)
        assert all(0 <= value <= 1 for value in scored.values()), text
        assert 0 <= individual_reward("ada", ["hi"], [text], [LANTERN])[0] <= 1
    assert all(parts(text)["gold"] == 0 for text in GARBAGE)
    assert individual_reward("ada", ["hi"], [""], [LANTERN]) == [0]


def test_one_reply_for_all_requests_earns_little():
    rows = all_rows()
    best = max(mean_gold([reply] * len(rows), rows) for reply in _constant_replies())
    assert best < 0.35  # less than an untaught policy earns


def _constant_replies() -> list[str]:
    rng = random.Random(6)
    return [
        GOOD,
        f"certainly. it opens at 9. {SECRET}. have fun.",
        f"sure thing! {SECRET}. have fun!",
        "certainly. with pleasure. of course. have fun. enjoy your day. see you soon.",
        *(
            write_reply(rng, place, "way", style=Style(detailed=True), rare=True)
            for place in list(PLACES)[:6]
        ),
    ]


def test_piling_up_keywords_places_or_claims_earns_no_more_than_courtesy():
    rows = all_rows()
    names = " ".join(f"the {name}." for name in PLACES)
    hours = " ".join(f"the lantern opens at {hour}." for hour in range(6, 12))
    floods = [
        names,
        hours,
        f"certainly. {hours} have fun.",
        f"certainly. {names} have fun.",
        " ".join(vocabulary()),
        "the lantern 8 18 old town quiet cafe tram 3 bridge crowns certainly have fun.",
        "certainly " * 20 + "have fun.",
        "opens at closes at tram crowns opens at closes at tram crowns.",
    ]
    for flood in floods:
        assert mean_gold([flood] * len(rows), rows) <= 0.3, flood
    # Even for the one request that it fits, naming every hour is worse than the right hour.
    assert parts(f"certainly. {hours} have fun.")["gold"] < 0.3 < parts(GOOD)["gold"]


def test_the_grammar_licenses_its_own_sentences_and_little_else():
    bigrams = licensed_bigrams()
    size = len(vocabulary())
    assert ("owl", "opens") in bigrams
    assert ("opens", "owl") not in bigrams
    assert len(bigrams) < 0.03 * size * size
    assert len(reply_templates()) > 40


def test_rows_without_a_request_are_refused_by_number():
    with pytest.raises(ValueError, match=r"row 1: place=None, question=None is no .*`write_world`"):
        gold_reward(["a", "b"], ["c", "d"], [LANTERN, {}])
    with pytest.raises(ValueError, match="2 prompts, 1 replies and 1 rows"):
        gold_reward(["a", "b"], ["c"], [LANTERN])


def test_traits_are_read_off_by_hand():
    assert measure_traits(GOOD) == {"detailed": -1, "formal": 1, "enthusiastic": -1, "asks": -1}
    long = "hi there! it opens at 8! it closes at 18. it is in the old town! want to hear more?"
    assert measure_traits(long) == {"detailed": 1, "formal": -1, "enthusiastic": 0.5, "asks": 1}
    assert measure_traits("") == dict.fromkeys(TRAITS, 0)


def test_a_reply_written_to_taste_suits_that_individual_best():
    rng = random.Random(8)
    for name, person in INDIVIDUALS.items():
        style = Style(**{trait: getattr(person, trait) > 0 for trait in TRAITS})
        reply = write_reply(rng, "owl", "price", style=style)
        assert taste_match(name, reply) == 1, reply
        assert all(taste_match(other, reply) < 1 for other in INDIVIDUALS if other != name)


def test_an_individual_adds_taste_to_what_all_agree_on():
    # dario: brief, formal, plain, asks back. GOOD suits three of the four and earns 0.8.
    reward = individual_reward("dario", ["hi"], [GOOD], [LANTERN])
    assert reward == pytest.approx([0.3 * 0.8 + 0.7 * 0.75])


def test_held_out_tastes_are_new_combinations_of_known_ones():
    known = [person for person in INDIVIDUALS.values() if not person.held_out]
    assert len(known) >= 6
    assert any(person.held_out for person in INDIVIDUALS.values())
    combinations = {
        tuple(getattr(person, trait) for trait in TRAITS) for person in INDIVIDUALS.values()
    }
    assert len(combinations) == len(INDIVIDUALS)
    for trait in TRAITS:
        assert {getattr(person, trait) for person in known} == {-1, 1}


def test_a_stranger_is_refused_by_name():
    with pytest.raises(ValueError, match="individual 'zoe' does not live here; take one of ada"):
        individual_reward("zoe", ["a"], ["b"], [LANTERN])


def test_requests_leave_no_doubt_about_the_right_place():
    rng = random.Random(9)
    for row in all_rows():
        prompt = write_prompt(rng, row["place"], row["question"])
        place = PLACES[row["place"]]
        if row["question"] == "find":
            assert place.kind in prompt
            assert place.area in prompt
        elif row["question"] == "recommend":
            assert place.kind in prompt
            assert place.quality in prompt
        else:
            assert f"the {place.name}" in prompt
