"""From a group of judged replies to what a loss compares: pairs, the whole list, or single replies.

Ties are never compared: two replies of equal score, or of equal text, form no pair.
"""

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

Pairing = Literal["given", "best_worst", "all_pairs", "best_vs_random"]
Pair = tuple[int, int]
"""Indices of the chosen and the rejected reply inside their group."""


def pairs(
    scores: Sequence[float], texts: Sequence[str], pairing: Pairing, rng: random.Random
) -> list[Pair]:
    """Pairs of one group; empty where nothing can be told apart.

    given           the first two replies, in the order of their scores
    best_worst      the highest against the lowest score; the first of equals
    all_pairs       every two that differ, the better one first
    best_vs_random  the highest against one of the others, drawn by `rng`

    >>> pairs([0.2, 0.9, 0.2], ["a", "b", "c"], "all_pairs", random.Random(0))
    [(1, 0), (1, 2)]
    >>> pairs([1.0, 1.0], ["a", "b"], "best_worst", random.Random(0))
    []
    """
    indices = range(len(scores))
    best = max(indices, key=lambda index: scores[index])
    match pairing:
        case "given":
            candidates = [(0, 1)]
        case "best_worst":
            candidates = [(best, min(indices, key=lambda index: scores[index]))]
        case "all_pairs":
            candidates = list(combinations(indices, 2))
        case "best_vs_random":
            others = [index for index in indices if _differ(best, index, scores, texts)]
            candidates = [(best, rng.choice(others))] if others else []
    ordered = [(a, b) if scores[a] > scores[b] else (b, a) for a, b in candidates]
    return [pair for pair in ordered if _differ(*pair, scores, texts)]


def group_rng(seed: int, group_id: int) -> random.Random:
    """What `best_vs_random` draws by: `data.seed` and the group alone, so that pairs can be told
    again from what a run recorded."""
    return random.Random(f"{seed}-{group_id}")


def is_list(scores: Sequence[float], texts: Sequence[str]) -> bool:
    """Whether a group tells a list-wise loss anything: two replies differ in text and score."""
    return any(_differ(a, b, scores, texts) for a, b in combinations(range(len(scores)), 2))


def first_drawn(unit: Sequence[int], sources: Sequence[str], wanted: str) -> int:
    """Which place of a unit holds the reply of the wanted source that was drawn first; 0 if none.

    Rows are numbered in the order of drawing, so scores have no say: always taking the chosen
    reply of two would be no sample of the policy (SELM's optimism).

    >>> first_drawn([5, 4], sources=["stored"] * 4 + ["policy"] * 2, wanted="policy")
    1
    """
    own = [row for row in unit if sources[row] == wanted]
    return list(unit).index(min(own)) if own else 0


def _differ(first: int, second: int, scores: Sequence[float], texts: Sequence[str]) -> bool:
    return scores[first] != scores[second] and texts[first] != texts[second]
