"""Writing requests and replies: good ones, and ones with the flaws that the gold reward sees."""

import random
from dataclasses import dataclass, replace
from typing import Any

from rl.world import grammar
from rl.world.gazetteer import ASKED, PLACES, QUESTIONS, VALUES, Place

MAX_REPLY_TOKENS = 60
"""Words and marks of the longest reply; with EOS it fits into 64 tokens."""
RARE_SHARE = 0.001
"""Share of demonstrations in the rare better style."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """The four traits as a writer's choices."""

    detailed: bool = False
    formal: bool = False
    enthusiastic: bool = False
    asks: bool = False

    @classmethod
    def draw(cls, rng: random.Random) -> "Style":
        """Each trait by a fair coin."""
        return cls(**{name: rng.random() < 0.5 for name in STYLE_NAMES})


STYLE_NAMES = tuple(Style.__dataclass_fields__)

FLAWS: dict[str, float] = {
    "no_opening": 0.62,
    "no_closing": 0.62,
    "rude": 0.30,
    "wrong_fact": 0.30,
    "wrong_place": 0.15,
    "off_topic": 0.25,
    "repeats": 0.20,
    "rambles": 0.15,
    "blunt": 0.20,
}
"""Chance of each flaw in a demonstration. `no_*` leaves out a courtesy; `off_topic` answers another
question about the place; `blunt` is the answer alone; `repeats` and `rambles` make it long."""


def draw_flaws(rng: random.Random, scale: float = 1.0) -> frozenset[str]:
    """Independent flaws, each with `scale` times its chance in `FLAWS`."""
    return frozenset(name for name, chance in FLAWS.items() if rng.random() < scale * chance)


def write_prompt(rng: random.Random, place: str, question: str) -> str:
    """A request whose one right subject is `place`."""
    facts = _slots(PLACES[place])
    request = rng.choice(grammar.REQUESTS[question]).format(**facts)
    return rng.choice(grammar.GREETINGS) + request + rng.choice(grammar.REMARKS)


def write_reply(
    rng: random.Random,
    place: str,
    question: str,
    *,
    style: Style,
    flaws: frozenset[str] = frozenset(),
    rare: bool = False,
) -> str:
    """A fluent reply of at most `MAX_REPLY_TOKENS` words and marks, with the given flaws."""
    side = 0 if style.formal else 1
    mark = "!" if style.enthusiastic else "."
    body = _body(rng, _subject(rng, PLACES[place], question, flaws), question, style, flaws)
    if "blunt" in flaws:
        parts = [body[0] + "."]
    else:
        parts = [text + mark for text in body]
        if "no_opening" not in flaws:
            parts.insert(0, rng.choice(grammar.OPENINGS[side]) + mark)
        if rare:
            parts.append(grammar.SECRET + ".")
        if style.asks:
            parts.append(rng.choice(grammar.ASKS[side]) + "?")
        if "no_closing" not in flaws:
            parts.append(rng.choice(grammar.CLOSINGS[side]) + mark)
    return " ".join(_fit(_spoil(rng, parts, flaws)))


def is_rare_style(reply: str) -> bool:
    """Whether the reply passes on the concierge's secret, whatever else it says."""
    return grammar.SECRET + "." in " ".join(reply.lower().split())


def draw_request(rng: random.Random) -> tuple[str, str]:
    """A (place, question), all equally likely."""
    return rng.choice(list(PLACES)), rng.choice(QUESTIONS)


def _slots(place: Place) -> dict[str, Any]:
    return vars(place) | {"item": place.item}


def _subject(rng: random.Random, place: Place, question: str, flaws: frozenset[str]) -> Place:
    """The place as the writer believes it to be."""
    if "wrong_place" in flaws:
        place = PLACES[rng.choice([name for name in PLACES if name != place.name])]
    if "wrong_fact" in flaws:
        field = rng.choice(ASKED[question])
        wrong = [value for value in VALUES[field] if value != str(getattr(place, field))]
        place = replace(place, **{field: rng.choice(wrong)})
    return place


def _body(
    rng: random.Random, place: Place, question: str, style: Style, flaws: frozenset[str]
) -> list[str]:
    """The answer, and for the detailed style two further facts; for joy, a word of it."""
    others = [other for other in QUESTIONS if other != question]
    topic = rng.choice(others) if "off_topic" in flaws else question
    body = [grammar.ANSWERS[topic][0 if style.formal else 1]]
    if style.detailed:
        spare = [other for other in others if other != topic]
        body += [grammar.DETAILS[key] for key in rng.sample(spare, 2)]
    body = [text.format(**_slots(place)) for text in body]
    return [*body, rng.choice(grammar.JOYS)] if style.enthusiastic else body


def _spoil(rng: random.Random, parts: list[str], flaws: frozenset[str]) -> list[str]:
    if "rude" in flaws:
        parts = [*parts, rng.choice(grammar.RUDENESS) + "."]
    if "repeats" in flaws:
        at = rng.randrange(len(parts))
        parts = parts[:at] + [parts[at]] * rng.choice((2, 3)) + parts[at:]
    if "rambles" in flaws:
        at = rng.randrange(len(parts) + 1)
        chatter = [text + "." for text in rng.sample(grammar.RAMBLES, 4)]
        parts = parts[:at] + chatter + parts[at:]
    return parts


def _fit(parts: list[str]) -> list[str]:
    """As many leading sentences as fit into `MAX_REPLY_TOKENS`."""
    kept, used = [], 0
    for part in parts:
        used += len(grammar.words(part))
        if used > MAX_REPLY_TOKENS:
            break
        kept.append(part)
    return kept
