"""The browser of samples: which ones, in which order, and what belongs to them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.pages.asking import ROLLOUT_FIELDS, Ask
from cluster.pages.view import RunView
from configs.errors import ConfigError

if TYPE_CHECKING:
    from cluster.rollouts.query import Filter, Page

PER_PAGE = 25
SORTS = {
    "step": "Step",
    "score": "Reward",
    "advantage": "Advantage",
    "length": "Length",
    "staleness": "Staleness",
}


def values(ask: Ask) -> dict[str, Any]:
    """What the template shows; the browser of samples has locks of its own."""
    view, given = ask.view, {name: ask.word(name) for name in ROLLOUT_FIELDS}
    problem = ""
    try:
        found = _page(view, given)
    except ConfigError as error:
        problem, found = str(error), None
    overview = view.samples.overview()
    rewards = {f"rewards/{name}": name for name in overview.rewards}
    return {
        "given": given,
        "is_narrowed": any(given[n] for n in ROLLOUT_FIELDS if n not in ("sort", "order", "page")),
        "problem": problem,
        "found": found,
        "overview": overview,
        "sorts": SORTS,
        "reward_sorts": rewards,
        "number_of_page": 1 if problem else max(1, _whole(given, "page") or 1),
        "is_live": view.is_running or (found is not None and not found.is_whole),
        "per_page": PER_PAGE,
    }


def _page(view: RunView, given: Mapping[str, str]) -> "Page":
    """The rows that a form asks for; raises ConfigError where it makes no sense."""
    from cluster.rollouts.query import Query

    number = max(1, _whole(given, "page") or 1)
    query = Query(
        filter=_filter(given),
        sort=given["sort"] or "step",
        descending=given["order"] != "asc",
        offset=(number - 1) * PER_PAGE,
        limit=PER_PAGE,
    )
    return view.samples.query(query)


def _filter(given: Mapping[str, str]) -> "Filter":
    from cluster.rollouts.query import Filter

    return replace(
        Filter(),
        text=given["q"],
        finish_reason=given["finish"] or None,
        engine=given["engine"] or None,
        source=given["source"] or None,
        steps=(_number(given, "from"), _number(given, "to")),
        scores=(_number(given, "least"), _number(given, "most")),
        version=_whole(given, "version"),
        prompt_row=_whole(given, "prompt"),
        group_id=_whole(given, "group"),
    )


def _number(given: Mapping[str, str], name: str) -> float | None:
    try:
        return float(given[name]) if given[name] else None
    except ValueError as error:
        raise ConfigError(f"{name}: {given[name]!r} is no number; clear it or give one") from error


def _whole(given: Mapping[str, str], name: str) -> int | None:
    if not given[name]:
        return None
    if not given[name].isascii() or not given[name].isdigit() or len(given[name]) > 18:
        raise ConfigError(f"{name}: {given[name]!r} is no whole number; clear it or give one")
    return int(given[name])


def step_values(ask: Ask) -> dict[str, Any]:
    """The groups that a step used, and its figures; raises ConfigError without such a step."""
    step, view = _asked_whole(ask, "step"), ask.view
    groups = view.samples.groups_of_step(step)
    with view.opened():
        row = next((dict(row) for row in view.history.rows if row["step"] == step), {})
        last_step = view.step
    if not groups and not row:
        raise ConfigError(f"step {step}: the run holds nothing of it")
    figures = [(key, value) for key, value in row.items() if isinstance(value, int | float)]
    return {"step": step, "groups": groups, "figures": figures, "last_step": last_step}


def prompt_values(ask: Ask) -> dict[str, Any]:
    """All groups about one row of the data; raises ConfigError where there are none."""
    row, view = _asked_whole(ask, "row"), ask.view
    groups = view.samples.groups_of_prompt(row)
    if not groups:
        raise ConfigError(f"prompt {row}: no group about it is indexed; ask again, or for another")
    first = view.samples.sample(groups[0].samples[0])
    return {"row": row, "groups": groups, "prompt": first.prompt, "extra": first.extra}


def group_values(ask: Ask) -> dict[str, Any]:
    """A prompt with all replies to it; raises ConfigError where there is no such group."""
    step = _asked_whole(ask, "step") if ask.word("step") else None
    group = ask.view.samples.group(_asked_whole(ask, "group"), step)
    by_sample = {reply.sample: reply for reply in group.replies}
    pairs = [(by_sample[a], by_sample[b]) for a, b in group.beats]
    in_pairs = {sample for pair in group.beats for sample in pair}
    return {
        "group": group,
        "pairs": pairs,
        "alone": [reply for reply in group.replies if reply.sample not in in_pairs],
    }


def _asked_whole(ask: Ask, name: str) -> int:
    found = _whole({name: ask.word(name)}, name)
    if found is None:
        raise ConfigError(f"{name}: give a whole number")
    return found
