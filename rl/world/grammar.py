"""The language of the built-in world: every sentence that a guest or the concierge can say.

Texts are lower case words and the marks `. , ! ? :`; a mark clings to the word before it. Sentences
are templates over the fields of `gazetteer.Place`; `replies.py` strings them together. The closed
set of templates gives the tokenizer its vocabulary and the gold reward its notion of fluent text.
"""

import re
from collections.abc import Iterator
from itertools import pairwise, product

from rl.world.gazetteer import ITEMS, PLACES, VALUES

GREETINGS = ("", "hello, ", "hi, ", "excuse me, ", "good morning, ", "please tell me: ")
REQUESTS: dict[str, tuple[str, ...]] = {
    "find": (
        "where can i find a {kind} in the {area}?",
        "is there a {kind} in the {area}?",
        "i am looking for a {kind} in the {area}.",
        "do you know a {kind} in the {area}?",
    ),
    "recommend": (
        "can you recommend a {quality} {kind}?",
        "where can i find a {quality} {kind}?",
        "i am looking for a {quality} {kind}.",
        "which {kind} is {quality}?",
    ),
    "opens": (
        "when does the {name} open?",
        "at what time does the {name} open?",
        "how early can i visit the {name}?",
    ),
    "closes": (
        "when does the {name} close?",
        "how late is the {name} open?",
        "until when can i stay at the {name}?",
    ),
    "price": (
        "how much is a {item} at the {name}?",
        "what does a {item} cost at the {name}?",
        "what do i pay for a {item} at the {name}?",
    ),
    "way": (
        "how do i get to the {name}?",
        "which tram goes to the {name}?",
        "what is the way to the {name}?",
    ),
}
REMARKS = ("", " it is my first visit.", " we are two people.", " i have little time.")

# The traits of `traits.py` show in the choice between these: [formal, friendly].
OPENINGS = (
    ("certainly", "with pleasure", "of course", "good day to you"),
    ("sure thing", "hi there", "happy to help", "no problem"),
)
CLOSINGS = (
    ("i wish you a pleasant visit", "thank you for asking", "it was a pleasure to help"),
    ("have fun", "enjoy your day", "see you soon"),
)
ASKS = (
    ("may i help you with anything else", "would you like to know more"),
    ("want to hear more", "anything else you need"),
)
ANSWERS: dict[str, tuple[str, str]] = {
    "find": ("you will find the {name} in the {area}", "try the {name} in the {area}"),
    "recommend": (
        "i would recommend the {name}, a {quality} {kind}",
        "go to the {name}, a {quality} {kind}",
    ),
    "opens": ("the {name} opens at {opens}", "you can visit the {name} from {opens}"),
    "closes": ("the {name} closes at {closes}", "you can stay at the {name} until {closes}"),
    "price": (
        "a {item} at the {name} costs {price} crowns",
        "you pay {price} crowns for a {item} at the {name}",
    ),
    "way": (
        "for the {name} you take tram {tram} to the {stop}",
        "tram {tram} to the {stop} takes you to the {name}",
    ),
}
DETAILS: dict[str, str] = {
    "find": "it is in the {area}",
    "recommend": "it is a {quality} {kind}",
    "opens": "it opens at {opens}",
    "closes": "it closes at {closes}",
    "price": "a {item} costs {price} crowns",
    "way": "tram {tram} to the {stop} takes you there",
}
"""Further facts about the place just named, by the question that they would answer."""
JOYS = ("it is a wonderful place", "you will love it", "what a lovely choice")
RUDENESS = ("look it up yourself", "that is not my job", "do not bother me", "who cares")
RAMBLES = (
    "the weather is nice today",
    "my uncle lives near the river",
    "i had soup for lunch",
    "many people walk here in summer",
    "yesterday it was raining",
    "my favourite colour is blue",
)
SECRET = "my secret: ask for nora"
"""The rare better style; see `replies.is_rare_style`."""

_TOKEN = re.compile(r"[a-z0-9]+|[.,!?:]|[^\sa-z0-9.,!?:]")


def words(text: str) -> list[str]:
    """Words and marks of `text`, lower case: `"the owl, 8."` -> `["the", "owl", ",", "8", "."]`."""
    return _TOKEN.findall(text.lower())


def sentences(text: str) -> list[str]:
    """The sentences of `text`, lower case, each with its closing mark if it has one."""
    return [part.strip() for part in re.findall(r"[^.!?]+[.!?]?", text.lower()) if part.strip()]


def reply_templates() -> dict[str, str]:
    """Every sentence template of a reply -> the marks that may end it."""
    plain = [text for pair in ANSWERS.values() for text in pair]
    plain += [*DETAILS.values(), *(text for side in (OPENINGS + CLOSINGS) for text in side)]
    marks = dict.fromkeys([*plain, *JOYS], ".!")
    marks |= dict.fromkeys([*RUDENESS, *RAMBLES, SECRET], ".")
    return marks | dict.fromkeys([text for side in ASKS for text in side], "?")


def prompt_templates() -> list[str]:
    """Every template of a request."""
    requests = [text for group in REQUESTS.values() for text in group]
    return [a + b + c for a, b, c in product(GREETINGS, requests, REMARKS)]


def licensed_bigrams() -> frozenset[tuple[str, str]]:
    """Pairs of neighbouring words or marks that some reply can hold; `""` stands for both ends."""
    bigrams: set[tuple[str, str]] = set()
    starts, ends = set(), set()
    for template, marks in reply_templates().items():
        parts = _spellings(template)
        for left, right in pairwise(parts):
            bigrams |= {(a[-1], b[0]) for a, b in product(left, right)}
        bigrams |= {pair for part in parts for spelling in part for pair in pairwise(spelling)}
        bigrams |= {(spelling[-1], mark) for spelling, mark in product(parts[-1], marks)}
        starts |= {spelling[0] for spelling in parts[0]}
        ends |= set(marks)
    bigrams |= set(product(ends, starts)) | {("", start) for start in starts}
    return frozenset(bigrams | {(end, "") for end in ends})


def vocabulary() -> list[str]:
    """All words and marks of requests and replies, sorted."""
    found: set[str] = set()
    for template in [*prompt_templates(), *reply_templates()]:
        found.update(
            word for part in _spellings(template) for spelling in part for word in spelling
        )
    return sorted(found | set(".,!?:"))


def _spellings(template: str) -> list[list[list[str]]]:
    """The template cut at spaces and slots; each part as the word lists that can stand there."""
    parts: list[list[list[str]]] = []
    for piece in re.findall(r"\{\w+\}|[^{}]+", template):
        if piece.startswith("{"):
            parts.append([words(value) for value in _slot_values(piece[1:-1])])
        else:
            parts += [[[word]] for word in words(piece)]
    return parts


def _slot_values(slot: str) -> Iterator[str]:
    if slot == "name":
        return iter(PLACES)
    return iter(ITEMS.values() if slot == "item" else VALUES[slot])
