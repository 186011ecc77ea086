"""Comparing the replies to one prompt two by two: questions in both orders, wins as scores."""

from collections.abc import Callable, Sequence
from itertools import permutations

import torch

from actors.judges.answers import Scores, checked
from actors.judges.inputs import PLACES
from rl.feedback.ranking import cancel_order, mean_win_probability
from rl.types import Rollout

LAYOUT = "{prompt}\n\nA: {first}\n\nB: {second}"
"""How a ranker reads two replies where the user gives no layout."""

Ask = Callable[[list[str]], Sequence[float]]
"""Filled layouts -> how likely the first reply of each is the better one."""


def fill(layout: str, prompt: str, first: str, second: str) -> str:
    """The layout with its places filled; what a reply spells out is never taken for a place.

    >>> fill("{prompt}|{first}|{second}", "q", "{second}", "b")
    'q|{second}|b'
    """
    texts = {"prompt": prompt, "first": first, "second": second}
    return PLACES.sub(lambda place: texts[place[1]], layout)


def mean_wins(
    name: str, rollouts: Sequence[Rollout], layout: str, ask: Ask, plain: Callable[[str], str]
) -> Scores:
    """Each reply's mean chance to beat the others of its group, which must be here whole.

    Every two replies are shown in both orders, so that a judge that favours what it reads first
    favours nobody. Equal questions are asked once. `plain` makes a text safe for the judge.
    """
    groups: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        groups.setdefault(rollout.group_id, []).append(row)
    texts = [plain(rollout.text) for rollout in rollouts]
    questions: dict[str, int] = {}
    numbers: dict[tuple[int, int], int] = {}
    for rows in groups.values():
        prompt = rollouts[rows[0]].prompt
        if len(rows) < 2:
            raise ValueError(
                f"reward {name}: the prompt of row {prompt.row} has one reply and nothing to "
                "compare it with; set data.samples_per_prompt to 2 or more"
            )
        for i, j in permutations(rows, 2):
            question = fill(layout, plain(prompt.text), texts[i], texts[j])
            numbers[i, j] = questions.setdefault(question, len(questions))
    answers = ask(list(questions))
    scores = [0.0] * len(rollouts)
    for rows in groups.values():
        probabilities = torch.full((len(rows), len(rows)), 0.5, dtype=torch.float64)
        for (a, i), (b, j) in permutations(enumerate(rows), 2):
            probabilities[a, b] = answers[numbers[i, j]]
        wins = mean_win_probability(cancel_order(probabilities))
        for row, win in zip(rows, wins.tolist(), strict=True):
            scores[row] = win
    return {name: checked(name, scores, rollouts)}
