"""The true reward of the built-in world, computed by rule from named parts.

    gold = fluent * length * (0.25 answers + 0.25 true + 0.3 polite + 0.2 secret)

Every part lies in [0, 1] and gives partial credit. Without the rare secret (`replies`) a perfect
reply earns 0.8, with it 1. `describe()` explains each part.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from rl.world import grammar
from rl.world.gazetteer import ASKED, PLACES, QUESTIONS, VALUES, Place
from rl.world.replies import is_rare_style

WEIGHTS = {"answers": 0.25, "true": 0.25, "polite": 0.3, "secret": 0.2}
"""Of the parts that add; `fluent` and `length` multiply their sum."""

PARTS = {
    "answers": "Half for naming the place that the request is about (for `find` and `recommend`, "
    "the place that fits), half for stating the asked kind of fact about it, true or not.",
    "true": "Share of the reply's claims that the gazetteer confirms. Asked-for facts count twice, "
    "and as false where they are missing; claims about any other place are false. The same claim "
    "counts once however often it is made.",
    "polite": "Half for a courteous first sentence, half for a courteous last one; any rude "
    "sentence brings it to 0.",
    "secret": "The rare better style: 1 if a reply that answers passes on the concierge's secret, "
    "0 if it answers no more than half or keeps the secret.",
    "length": "1 from 8 to 45 words, falling to 0 at 3 and at 60.",
    "fluent": "1 less four times the share of neighbouring words that the grammar never puts side "
    "by side, times 1 less twice the share of repeated four-word runs, halved if the last "
    "sentence is cut off.",
}
"""What each part rewards, by name."""

SHORTEST, SHORT, LONG, LONGEST = 3, 8, 45, 60

Claim = tuple[str | None, str, str]
"""(place, field, value); a place named at all is the claim that it is the subject."""


def _any(values: Sequence[str]) -> str:
    return "|".join(sorted(values, key=len, reverse=True))


_NAME = re.compile(rf"\bthe ({_any(list(PLACES))})\b")
_CLAIMS = {
    "opens": re.compile(r"\b(?:opens at|visit the \w+ from) (\d+)\b"),
    "closes": re.compile(r"\b(?:closes at|until) (\d+)\b"),
    "price": re.compile(r"\b(\d+) crowns\b"),
    "tram": re.compile(r"\btram (\d+)\b"),
    "stop": re.compile(rf"\bto the ({_any(VALUES['stop'])})\b"),
    "area": re.compile(rf"\bin the ({_any(VALUES['area'])})\b"),
    "quality": re.compile(rf"\ba ({_any(VALUES['quality'])})\b"),
    "kind": re.compile(rf"\ba (?:\w+ )?({_any(VALUES['kind'])})\b"),
    "item": re.compile(r"\ba (coffee|dinner|cake|ticket|map|seat)\b"),
}
_OPENINGS = frozenset(text for side in grammar.OPENINGS for text in side)
_CLOSINGS = frozenset(text for side in (*grammar.CLOSINGS, *grammar.ASKS) for text in side)
_RUDENESS = frozenset(grammar.RUDENESS)
_bigrams = cache(grammar.licensed_bigrams)


def gold_reward(
    prompts: Sequence[str], replies: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """The true reward and its parts, one number in [0, 1] per reply under each name.

    `rows[i]["place"]` and `rows[i]["question"]` say what `prompts[i]` asks. Any text is a valid
    reply. Raises ValueError for a row without them, or for lists of different lengths.
    """
    if not len(prompts) == len(replies) == len(rows):
        raise ValueError(
            f"gold reward: {len(prompts)} prompts, {len(replies)} replies and {len(rows)} rows; "
            "give one of each per reply"
        )
    scored = [
        gold_parts(reply, *request_of(row, index))
        for index, (reply, row) in enumerate(zip(replies, rows, strict=True))
    ]
    gold = {"gold": [combine(parts) for parts in scored]}
    return gold | {f"gold/{name}": [parts[name] for parts in scored] for name in PARTS}


def gold_parts(reply: str, place: Place, question: str) -> dict[str, float]:
    """The parts named in `PARTS` for one reply."""
    claims = find_claims(reply, None if question in ("find", "recommend") else place.name)
    answers = _answers(claims, place, question)
    return {
        "answers": answers,
        "true": _true(claims, place, question),
        "polite": _polite(reply),
        "secret": max(0.0, 2 * answers - 1) * is_rare_style(reply),
        "length": length(reply),
        "fluent": fluent(reply),
    }


def combine(parts: Mapping[str, float]) -> float:
    """The gold reward from its parts."""
    total = sum(weight * parts[name] for name, weight in WEIGHTS.items())
    return parts["fluent"] * parts["length"] * total


def request_of(row: Mapping[str, Any], index: int) -> tuple[Place, str]:
    """The place and the question of a row; ValueError names the row that lacks them."""
    place, question = row.get("place"), row.get("question")
    if str(place) not in PLACES or str(question) not in QUESTIONS:
        raise ValueError(
            f"row {index}: place={place!r}, question={question!r} is no request of the built-in "
            "world; take prompts that `write_world` wrote, with all their columns"
        )
    return PLACES[str(place)], str(question)


def find_claims(reply: str, subject: str | None) -> set[Claim]:
    """What the reply says about which place; `subject` is meant until a place is named."""
    claims: set[Claim] = set()
    for sentence in grammar.sentences(reply):
        names = _NAME.findall(sentence)
        claims |= {(name, "name", name) for name in names}
        subject = names[0] if names else subject
        for field, pattern in _CLAIMS.items():
            claims |= {(subject, field, value) for value in pattern.findall(sentence)}
    return claims


def length(reply: str) -> float:
    """1 inside the band of words, falling linearly to 0 on both sides."""
    count = sum(word.isalnum() for word in grammar.words(reply))
    rising = (count - SHORTEST) / (SHORT - SHORTEST)
    falling = (LONGEST - count) / (LONGEST - LONG)
    return max(0.0, min(1.0, rising, falling))


def fluent(reply: str) -> float:
    """How well neighbouring words fit, and how little is said twice; 0 for an empty reply."""
    words = grammar.words(reply)
    if not words:
        return 0.0
    bigrams = list(pairwise(["", *words]))
    odd = sum(pair not in _bigrams() for pair in bigrams) / len(bigrams)
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    repeated = 1 - len(runs) / max(1, runs.total()) if runs else 0.0
    whole = 1.0 if words[-1] in ".!?" else 0.5
    return whole * max(0.0, 1 - 4 * odd) * max(0.0, 1 - 2 * repeated)


def describe() -> str:
    """The gold reward in words, one line for the formula and one per part."""
    total = " + ".join(f"{weight} {name}" for name, weight in WEIGHTS.items())
    lines = [f"gold = fluent * length * ({total})"]
    return "\n".join(lines + [f"{name}: {text}" for name, text in PARTS.items()])


def _answers(claims: set[Claim], place: Place, question: str) -> float:
    named = (place.name, "name", place.name) in claims
    asked = ASKED[question]
    stated = {field for subject, field, _ in claims if subject == place.name}
    return 0.5 * named + 0.5 * sum(field in stated for field in asked) / len(asked)


def _true(claims: set[Claim], place: Place, question: str) -> float:
    asked = ASKED[question]
    stated = {field for subject, field, _ in claims if subject == place.name}
    total, right = 2 * sum(field not in stated for field in asked), 0
    for subject, field, value in claims:
        weight = 2 if field in asked else 1
        total += weight
        right += weight * (subject == place.name and value == str(getattr(place, field)))
    return right / total


def _polite(reply: str) -> float:
    parts = [sentence.rstrip(".!? ") for sentence in grammar.sentences(reply)]
    if not parts or _RUDENESS.intersection(parts):
        return 0.0
    return 0.5 * (parts[0] in _OPENINGS) + 0.5 * (parts[-1] in _CLOSINGS)
