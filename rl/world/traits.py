"""Eight individuals who like different replies, over four traits that any reply can be measured on.

A trait runs from -1 to 1: brief to detailed, friendly to formal, plain to enthusiastic, closing
without to with a question back. Two individuals are held out: their combination of tastes belongs
to nobody else, yet each single taste is shared with others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.world import grammar
from rl.world.gold import find_claims, fluent, gold_reward

TRAITS = ("detailed", "formal", "enthusiastic", "asks")
GOLD_SHARE = 0.3
"""How much an individual cares about what everybody cares about; the rest is taste."""

_FORMAL, _FRIENDLY = (
    frozenset(
        text for group in (grammar.OPENINGS, grammar.CLOSINGS, grammar.ASKS) for text in group[side]
    )
    for side in (0, 1)
)
_ASKS = frozenset(text for side in grammar.ASKS for text in side)


@dataclass(frozen=True, kw_only=True)
class Individual:
    """One person's taste: +1 or -1 per trait."""

    detailed: int
    formal: int
    enthusiastic: int
    asks: int
    held_out: bool = False


INDIVIDUALS: dict[str, Individual] = {
    "ada": Individual(detailed=1, formal=1, enthusiastic=-1, asks=-1),
    "bruno": Individual(detailed=-1, formal=-1, enthusiastic=1, asks=-1),
    "chiara": Individual(detailed=1, formal=-1, enthusiastic=1, asks=1),
    "dario": Individual(detailed=-1, formal=1, enthusiastic=-1, asks=1),
    "elif": Individual(detailed=-1, formal=1, enthusiastic=1, asks=-1),
    "farid": Individual(detailed=1, formal=-1, enthusiastic=-1, asks=1),
    "gita": Individual(detailed=1, formal=1, enthusiastic=1, asks=1, held_out=True),
    "hugo": Individual(detailed=-1, formal=-1, enthusiastic=-1, asks=1, held_out=True),
}
"""By name."""


def measure_traits(reply: str) -> dict[str, float]:
    """The four traits of any text, each in [-1, 1]; 0 where the text says nothing about it.

    detailed: distinct sentences that state a fact, one or none is -1, three or more is 1.
    formal: formal against friendly courtesies. enthusiastic: share of `!` among statements.
    """
    sentences = dict.fromkeys(grammar.sentences(reply))
    if not sentences:
        return dict.fromkeys(TRAITS, 0.0)
    phrases = [sentence.rstrip(".!? ") for sentence in sentences]
    informative = sum(bool(find_claims(sentence, None)) for sentence in sentences)
    formal, friendly = (sum(text in side for text in phrases) for side in (_FORMAL, _FRIENDLY))
    marks = [sentence[-1] for sentence in sentences if sentence[-1] in ".!"]
    return {
        "detailed": float(max(-1, min(1, informative - 2))),
        "formal": (formal - friendly) / (formal + friendly) if formal + friendly else 0.0,
        "enthusiastic": 2 * marks.count("!") / len(marks) - 1 if marks else 0.0,
        "asks": 1.0 if any(text in _ASKS for text in phrases) else -1.0,
    }


def taste_match(name: str, reply: str) -> float:
    """How well the reply's traits suit the individual, in [0, 1]; ValueError for a stranger."""
    if name not in INDIVIDUALS:
        known = ", ".join(INDIVIDUALS)
        raise ValueError(f"individual {name!r} does not live here; take one of {known}")
    taste = INDIVIDUALS[name]
    traits = measure_traits(reply)
    return sum((1 + getattr(taste, trait) * traits[trait]) / 2 for trait in TRAITS) / len(TRAITS)


def individual_reward(
    name: str,
    prompts: Sequence[str],
    replies: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> list[float]:
    """What one individual thinks of each reply, in [0, 1]: 0.3 gold + 0.7 fluent * taste match.

    Arguments and errors as for `gold.gold_reward`; ValueError for an unknown name.
    """
    gold = gold_reward(prompts, replies, rows)["gold"]
    return [
        GOLD_SHARE * value + (1 - GOLD_SHARE) * fluent(reply) * taste_match(name, reply)
        for value, reply in zip(gold, replies, strict=True)
    ]
