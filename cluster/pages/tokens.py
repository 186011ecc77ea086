"""A reply token by token, shaded by what is known of each: surprise, KL, advantage, version."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.charts import number
from cluster.pages.asking import Ask
from cluster.templates import exact

if TYPE_CHECKING:
    from cluster.rollouts.detail import Sample, Token

MOST_TOKENS = 4000
"""Shown of one reply."""
SURPRISE = (0.05, 0.3, 1.0, 2.0, 4.0)
"""Nats of -log p at which the next shade begins: fixed, so that replies can be compared."""
DRIFT = (0.05, 0.2, 0.6, 1.5)
"""Nats of KL likewise, on either side of 0."""
SHARES = (0.02, 0.25, 0.5, 0.75)
"""Of the largest advantage of the reply."""


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """A token with its shades."""

    text: str
    css: str
    told: str
    """Everything known of it, for the pointer and the keyboard."""


@dataclass(frozen=True, kw_only=True)
class Shade:
    """One way to look at the tokens."""

    key: str
    title: str
    explanation: str
    legend: tuple[tuple[str, str], ...]
    """(style, range)."""


def values(ask: Ask) -> dict[str, Any]:
    """What the template of a sample shows; raises ConfigError where there is no such sample."""
    sample: Sample = ask.view.samples.sample(ask.word("id"))
    shown = sample.tokens[:MOST_TOKENS]
    largest = max((abs(t.advantage) for t in shown if t.advantage is not None), default=0.0)
    group = ask.view.samples.group(sample.lineage.group_id, sample.lineage.step)
    return {
        "sample": sample,
        "data_file": _within(ask.library.root, sample.lineage.data_file),
        "tokens": [shown_token(token, largest) for token in shown],
        "num_hidden": len(sample.tokens) - len(shown),
        "shades": shades(shown, largest),
        "rewards": reward_bars(sample.rewards),
        "siblings": sorted(group.replies, key=lambda reply: reply.sample),
        "raw": shown,
    }


def _within(root: Path, path: str | None) -> str | None:
    """A file's path as seen from the folder that is shown, where it lies in there."""
    if path is None or not Path(path).resolve().is_relative_to(root.resolve()):
        return path
    return Path(path).resolve().relative_to(root.resolve()).as_posix()


def shown_token(token: "Token", largest: float) -> ShownToken:
    """A token with the classes of all its shades; `largest` advantage of the reply."""
    css = [
        f"s{level(-token.old_logprob, SURPRISE)}" if token.old_logprob is not None else "",
        f"k{_signed(token.kl, DRIFT)}" if token.kl is not None else "",
        f"a{_signed(token.advantage / largest, SHARES)}"
        if token.advantage is not None and largest
        else "",
        f"v{token.version % 8}" if token.version is not None else "",
    ]
    return ShownToken(
        text=token.text if token.text is not None else f"⟨{token.id}⟩",
        css=" ".join(name for name in css if name),
        told="\n".join(_facts(token)),
    )


def _facts(token: "Token") -> list[str]:
    known = {
        "log-prob": token.old_logprob,
        "when sampled": token.rollout_logprob,
        "reference": token.ref_logprob,
        "KL": token.kl,
        "advantage": token.advantage,
    }
    facts = [f"token {token.position}, id {token.id}"]
    facts += [f"{name}: {exact(value)}" for name, value in known.items() if value is not None]
    if token.old_logprob is not None:
        facts.append(f"probability: {number(math.exp(min(0.0, token.old_logprob)))}")
    if token.version is not None:
        facts.append(f"weights: version {token.version}")
    return facts


def level(value: float, bounds: Sequence[float]) -> int:
    """How many bounds a value reaches."""
    return sum(value >= bound for bound in bounds)


def _signed(value: float, bounds: Sequence[float]) -> str:
    """`0`, `p1` ... for what lies above 0, `n1` ... for what lies below."""
    found = level(abs(value), bounds)
    return "0" if not found else f"{'p' if value > 0 else 'n'}{found}"


def shades(tokens: Sequence["Token"], largest: float) -> list[Shade]:
    """Those that something is known of."""
    found = []
    if any(token.old_logprob is not None for token in tokens):
        found.append(
            Shade(
                key="s",
                title="Log-prob",
                explanation="How little the policy expected a token: −log p, nats.",
                legend=tuple((f"s{i}", text) for i, text in enumerate(_ranges(SURPRISE))),
            )
        )
    if any(token.kl is not None for token in tokens):
        found.append(
            Shade(
                key="k",
                title="KL",
                explanation="Log-prob of the policy less that of the reference, nats.",
                legend=_two_sided("k", DRIFT),
            )
        )
    if largest:
        bounds = [share * largest for share in SHARES]
        found.append(
            Shade(
                key="a",
                title="Advantage",
                explanation="What the update raises (above 0) and lowers (below 0).",
                legend=_two_sided("a", bounds),
            )
        )
    versions = sorted({token.version for token in tokens if token.version is not None})
    if versions:
        found.append(
            Shade(
                key="v",
                title="Version",
                explanation="Which weights drew a token.",
                legend=tuple((f"v{version % 8}", str(version)) for version in versions[:12]),
            )
        )
    return found


def _ranges(bounds: Sequence[float]) -> list[str]:
    edges = [f"{number(a)}–{number(b)}" for a, b in itertools.pairwise(bounds)]
    return [f"< {number(bounds[0])}", *edges, f"≥ {number(bounds[-1])}"]


def _two_sided(prefix: str, bounds: Sequence[float]) -> tuple[tuple[str, str], ...]:
    count = len(bounds)
    below = [(f"{prefix}n{i}", f"≤ −{number(bounds[i - 1])}") for i in range(count, 0, -1)]
    above = [(f"{prefix}p{i}", f"≥ {number(bounds[i - 1])}") for i in range(1, count + 1)]
    return (*below, (f"{prefix}0", "about 0"), *above)


def reward_bars(rewards: Mapping[str, float | None]) -> list[tuple[str, str, float, float, bool]]:
    """(name, value, left %, width %, is a part): bars from 0, on one scale for the rewards and one
    for the parts of each, as those are often shares.
    """
    bars = []
    for name, value in sorted(rewards.items()):
        head = name.partition("/")[0]
        is_part = "/" in name
        peers = [
            v for n, v in rewards.items()
            if v is not None and ("/" in n) == is_part and (not is_part or n.startswith(f"{head}/"))
        ]  # fmt: skip
        low, high = min([0.0, *peers]), max([0.0, *peers])
        span = (high - low) or 1.0
        left = 100 * (min(0.0, value or 0.0) - low) / span
        width = 100 * abs(value or 0.0) / span
        bars.append((name, "–" if value is None else number(value), left, width, is_part))
    return bars
