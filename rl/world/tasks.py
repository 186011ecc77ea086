"""Tasks for constrained decoding: words that a reply must hold, or a number of words to hit.

The request does not mention the constraint, so plain sampling meets it by luck only: `base_rate` is
the share of demonstration-like replies that do. `reference` is a faultless reply that meets it, so
search can gain up to `headroom = 1 - base_rate`.
"""

import random
from collections.abc import Mapping
from typing import Any

from rl.world import grammar
from rl.world.replies import Style, draw_flaws, draw_request, write_prompt, write_reply

KEYWORDS = ("opens", "closes", "crowns", "tram", "quarter", "wonderful", "love", "lovely")
KEYWORDS += ("pleasure", "thank", "fun", "enjoy", "soon", "certainly", "help", "know", "hear")
"""Words that no kind of request calls for in every reply."""
NUM_KEYWORDS = 3
SLACK = 1
"""A length task accepts this many words more or fewer than its reference."""
TOLERANCE = 10
"""Words outside the band at which the score of a length task reaches 0."""
BASE_SAMPLES = 64
"""Replies drawn to estimate `base_rate`."""


def task_score(task: Mapping[str, Any], reply: str) -> float:
    """How far the reply meets the task, in [0, 1]; 1 means fully.

    keywords: share of the task's words that occur as words of the reply. length: 1 from
    `min_words` to `max_words` (marks are no words), falling by 0.1 per word outside.
    """
    found = [word for word in grammar.words(reply) if word.isalnum()]
    if task["task"] == "keywords":
        return sum(word in found for word in task["keywords"]) / len(task["keywords"])
    distance = max(task["min_words"] - len(found), len(found) - task["max_words"], 0)
    return max(0.0, 1 - distance / TOLERANCE)


def draw_task(rng: random.Random, kind: str) -> dict[str, Any]:
    """One task row of `kind` "keywords" or "length"; the columns of tasks.parquet."""
    place, question, reference, chosen = _draw_reference(rng)
    count = sum(word.isalnum() for word in grammar.words(reference))
    is_length = kind == "length"
    task: dict[str, Any] = {
        "prompt": write_prompt(rng, place, question),
        "place": place,
        "question": question,
        "task": kind,
        "keywords": [] if is_length else chosen,
        "min_words": count - SLACK if is_length else None,
        "max_words": count + SLACK if is_length else None,
        "reference": reference,
    }
    base_rate = _base_rate(rng, task)
    return task | {"base_rate": base_rate, "headroom": 1 - base_rate}


def _draw_reference(rng: random.Random) -> tuple[str, str, str, list[str]]:
    """Place, question, a faultless reply that holds enough keywords, and the keywords taken."""
    while True:
        place, question = draw_request(rng)
        reply = write_reply(rng, place, question, style=Style.draw(rng))
        present = [word for word in KEYWORDS if word in grammar.words(reply)]
        if len(present) >= NUM_KEYWORDS:
            return place, question, reply, rng.sample(present, NUM_KEYWORDS)


def _base_rate(rng: random.Random, task: Mapping[str, Any]) -> float:
    met = 0
    for _ in range(BASE_SAMPLES):
        flaws = draw_flaws(rng)
        reply = write_reply(
            rng, task["place"], task["question"], style=Style.draw(rng), flaws=flaws
        )
        met += task_score(task, reply) == 1.0
    return met / BASE_SAMPLES
