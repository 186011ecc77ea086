"""Several requests judged in one pass, each answered as if it had come alone."""

from collections.abc import Mapping, Sequence

from actors.judges.answers import Scores
from actors.reward import Judge
from cluster.serve.wire import ScoreRequest, renumbered
from rl.types import Rollout

Outcome = Scores | str
"""The scores of a request, or why it has none."""


def judge_together(judges: Mapping[str, Judge], requests: Sequence[ScoreRequest]) -> list[Outcome]:
    """One outcome per request, in order.

    Every reward sees the replies of all requests that name it at once. Where that fails, each
    request is judged alone, so that one with a reply that cannot be judged fails no other.
    """
    scores: list[Scores] = [{} for _ in requests]
    reasons: dict[int, str] = {}
    for name, judge in judges.items():
        asked = [i for i, r in enumerate(requests) if name in r.rewards and i not in reasons]
        if not asked:
            continue
        try:
            found = _in_one_pass(judge, [requests[index] for index in asked])
        except Exception as error:  # noqa: BLE001 - whatever a judge raises is told to who asked
            if len(asked) == 1:
                reasons[asked[0]] = _reason(name, error)
                continue
            for index in asked:
                try:
                    scores[index] |= _in_one_pass(judge, [requests[index]])[0]
                except Exception as own:  # noqa: BLE001 - as above
                    reasons[index] = _reason(name, own)
        else:
            for index, part in zip(asked, found, strict=True):
                scores[index] |= part
    return [reasons.get(index, found) for index, found in enumerate(scores)]


def _in_one_pass(judge: Judge, requests: Sequence[ScoreRequest]) -> list[Scores]:
    rollouts: list[Rollout] = []
    for request in requests:
        # Groups are numbered anew in every request, from 0.
        rollouts += renumbered(request.rollouts, len(rollouts))
    together = judge.score(rollouts)
    parts, start = [], 0
    for request in requests:
        end = start + len(request.rollouts)
        parts.append({name: tuple(values[start:end]) for name, values in together.items()})
        start = end
    return parts


def _reason(name: str, error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return (
        text if isinstance(error, ValueError) else f"reward {name}: {type(error).__name__}: {text}"
    )
