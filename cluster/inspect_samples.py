"""`attune inspect RUN --step ... --group ... --sample ...`: samples and their lineage, as text."""

import json
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.rollouts.browser import RolloutBrowser
from cluster.rollouts.detail import Sample
from cluster.rollouts.groups import Group, GroupRow
from cluster.rollouts.lineage import Lineage
from cluster.rollouts.plain import plain
from cluster.rollouts.query import MAX_LIMIT, Query
from cluster.run_folder import check_is_run
from configs.errors import ConfigError

WIDTH = 100
"""Columns at most: longer lines are hard to read."""
INDENT = 10
NO_BREAK = "\N{NO-BREAK SPACE}"
_STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but the line break, and what turns the direction of writing."""
METRICS = ("reward/total/mean", "kl/ref_k1", "length/mean", "staleness/mean", "loss/preference")
"""Of the step that used a sample; `attune inspect --json` has all."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What of a run's samples is asked for; raises ConfigError where that contradicts itself."""

    step: int | None = None
    group: int | None = None
    sample: str | None = None
    worst: int | None = None
    best: int | None = None

    def __post_init__(self) -> None:
        named = {f"--{name}": value for name, value in vars(self).items() if value is not None}
        for alone, others in (
            ("--sample", ("--step", "--group", "--worst", "--best")),
            ("--group", ("--worst", "--best")),
            ("--worst", ("--best",)),
        ):
            if alone in named and (other := next((o for o in others if o in named), None)):
                raise ConfigError(f"{alone} and {other} ask for different things; give one of them")
        for option in ("--worst", "--best"):
            if not 1 <= named.get(option, 1) <= MAX_LIMIT:
                raise ConfigError(f"{option} {named[option]}: give a number from 1 to {MAX_LIMIT}")

    @property
    def is_any(self) -> bool:
        """Whether samples are asked for at all."""
        return any(value is not None for value in vars(self).values())


def samples_to_text(run_dir: Path, wanted: Wanted, *, as_json: bool) -> str:
    """What the command prints; raises ConfigError where the run has no such samples."""
    check_is_run(run_dir)
    found = _find(run_dir, wanted)
    if as_json:
        return json.dumps(plain({"run": str(run_dir), **found}), ensure_ascii=False)
    if "sample" in found:
        lines = render_sample(found["sample"])
    elif "group" in found:
        lines = render_group(found["group"])
    elif "groups" in found:
        lines = render_step(found["step"], found["groups"])
    else:
        lines = render_samples(found["samples"])
    return printable("\n".join([*lines, *(f"note      {note}" for note in found["notes"])]))


def _find(run_dir: Path, wanted: Wanted) -> dict[str, Any]:
    """The records that are asked for, by what they are."""
    browser = RolloutBrowser(run_dir, wanted.step)
    if wanted.sample is not None:
        return {"sample": browser.sample(wanted.sample), "notes": []}
    if wanted.group is not None:
        return {"group": browser.group(wanted.group, wanted.step), "notes": []}
    browser.refresh()
    overview = browser.overview()
    notes = list(overview.notes)
    if not overview.num_samples:
        raise ConfigError(" ".join([_nothing(run_dir, wanted.step), *notes]))
    if wanted.step is not None and wanted.worst is None and wanted.best is None:
        return {
            "step": wanted.step, "groups": browser.groups_of_step(wanted.step), "notes": notes,
        }  # fmt: skip
    is_best = wanted.best is not None
    count = (wanted.best if is_best else wanted.worst) or 1
    page = browser.query(Query(sort="score", descending=is_best, limit=count))
    return {"samples": [browser.sample(row.id) for row in page.rows], "notes": notes}


def _nothing(run_dir: Path, step: int | None) -> str:
    newest = RolloutBrowser(run_dir)
    newest.refresh(0.0)
    last = newest.overview().last_step
    if last is None:
        return (
            f"{run_dir} holds no samples: it has taken no step yet, or its method samples nothing"
        )
    return f"{run_dir} stored no samples of step {step}; its last step is {last}"


# ---- text ----------------------------------------------------------------------------------------


def render_step(step: int, groups: Sequence[GroupRow]) -> list[str]:
    """A line for each group: scores, rewards, the prompt as far as there is room."""
    count = sum(len(group.samples) for group in groups)
    names = [name for name in (groups[0].rewards if groups else ()) if "/" not in name]
    shown = names[:4]
    head = f"{'group':>9} {'row':>7} {'n':>3} {'best':>7} {'mean':>7} {'worst':>7}"
    head += "".join(f" {name[:8]:>8}" for name in shown) + "  prompt"
    lines = [f"step {step}: {len(groups)} groups, {count} samples", "", head]
    for group in groups:
        line = f"{group.group_id:>9} {_count(group.prompt_row):>7} {len(group.samples):>3}"
        line += "".join(f" {_signed(v):>7}" for v in (group.best, group.mean, group.worst))
        line += "".join(f" {_signed(group.rewards.get(name)):>8}" for name in shown)
        room = max(12, width() - len(line) - 2)
        lines.append(f"{line}  {_one_line(group.prompt, room)}")
    if len(names) > len(shown):
        lines.append(f"more rewards: {', '.join(names[len(shown) :])}")
    return [*lines, "", "one of them: attune inspect RUN --group GROUP"]


def render_group(group: Group) -> list[str]:
    """The prompt, and every reply with its judgement, best first."""
    lines = [
        f"group     {group.group_id}, used by step {group.step}",
        *_field("prompt", group.prompt),
        f"from      row {_count(group.prompt_row)} of the data",
        f"ledger    {_ledger(group.ledger)}",
    ]
    beaten = {
        reply.sample: [b for a, b in group.beats if a == reply.sample] for reply in group.replies
    }
    for reply in group.replies:
        facts = [
            f"score {_signed(reply.score)}",
            f"advantage {_signed(reply.advantage)}" if reply.advantage is not None else "",
            f"{reply.length} tokens",
            reply.finish_reason,
            f"{reply.source} {reply.engine}" if reply.source != reply.engine else reply.source,
            f"versions {', '.join(map(str, reply.versions))}" if reply.source == "policy" else "",
            f"label {reply.label:g}" if reply.label is not None else "",
        ]
        lines += ["", f"{reply.id}   {'  '.join(filter(None, facts))}", *_field("", reply.reply)]
        lines += _rewards(reply.rewards)
        if beaten[reply.sample]:
            lines.append(f"beats     {', '.join(map(str, beaten[reply.sample]))} (by sample)")
    if group.pairing is not None:
        pairs = len(group.beats)
        lines += ["", f"pairing   {group.pairing}" + (f": {pairs} pairs" if pairs else "")]
    return lines


def render_samples(samples: Sequence[Sample]) -> list[str]:
    """Samples one below the other, without their tokens."""
    blocks = [[*_head(sample), *_source(sample.lineage)] for sample in samples]
    return [line for block in blocks for line in [*block, ""]][:-1]


def render_sample(sample: Sample) -> list[str]:
    """Everything of one sample."""
    lineage = sample.lineage
    lines = [*_head(sample), *_source(lineage)]
    lines += [f"seed      {_count(lineage.seed)}, attempt {_count(lineage.attempts)}"]
    for span in lineage.spans:
        if sample.source == "policy":
            kept = ", ".join(span.weights) or "not kept"
            lines.append(
                f"version   {span.version}: tokens {span.start} to {span.end - 1}; weights: {kept}"
            )
    lines += [f"ledger    {_ledger(lineage.ledger)}", f"metrics   {_metrics(lineage.metrics)}"]
    lines += _field("row", sample.extra) if sample.extra not in ("", "{}") else []
    return [*lines, "", *_token_table(sample)]


def _head(sample: Sample) -> list[str]:
    facts = [
        f"score {_signed(sample.score)}",
        f"advantage {_signed(sample.advantage)}" if sample.advantage is not None else "",
        f"KL {_signed(sample.kl)} nats" if sample.kl is not None else "",
        f"{sample.length} tokens",
        sample.finish_reason,
        f"label {sample.label:g}" if sample.label is not None else "",
    ]
    return [
        f"sample    {sample.id}   {'  '.join(filter(None, facts))}",
        *_field("prompt", sample.prompt),
        *_field("reply", sample.reply),
        *_rewards(sample.rewards),
    ]


def _source(lineage: Lineage) -> list[str]:
    """From which row, by whom, for which step."""
    by = lineage.engine or "?"
    by += "".join(f", version {span.version}" for span in lineage.spans)
    return [
        f"from      row {_count(lineage.prompt_row)} of {lineage.data_file or 'the data'}",
        f"by        {by}; used by step {lineage.step}",
    ]


def _token_table(sample: Sample) -> list[str]:
    if not sample.tokens:
        return ["tokens    none stored"]
    numbers = ("sampled", "learner", "reference", "KL", "advantage")
    lines = [
        f"{'#':>5} {'id':>7}  {'token':<20}"
        + "".join(f"{name:>11}" for name in numbers)
        + f"{'version':>9}"
    ]
    for token in sample.tokens:
        values = (
            token.rollout_logprob, token.old_logprob, token.ref_logprob, token.kl, token.advantage,
        )  # fmt: skip
        text = "" if token.text is None else repr(token.text)[1:-1]
        line = f"{token.position:>5} {token.id:>7}  {_one_line(text, 20, keep=True):<20}"
        line += "".join(f"{_signed(value):>11}" for value in values)
        lines.append(f"{line}{_count(token.version):>9}")
    return lines


def _rewards(rewards: Mapping[str, float | None]) -> list[str]:
    # Lines break between rewards, not between a name and its number.
    items = [f"{name}{NO_BREAK}{_signed(value)}" for name, value in rewards.items()]
    lines = _field("rewards", "  ".join(items)) if items else []
    return [line.replace(NO_BREAK, " ") for line in lines]


def _ledger(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "no row of this group at this step"
    return (
        f"{row['status']} at step {row['step']}: {row['num_samples']} samples, "
        f"{row['num_tokens']} tokens, versions {row['oldest_version']} to {row['newest_version']}"
    )


def _metrics(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "no row of this step"
    found = [f"{name} {row[name]:.4g}" for name in METRICS if name in row]
    return f"step {row['step']}: {', '.join(found)}"


def _field(name: str, text: str) -> list[str]:
    """Text behind a name, wrapped; empty text is told from no line."""
    lines = [
        part
        for line in (text or "(empty)").splitlines() or [""]
        for part in textwrap.wrap(line, width() - INDENT, break_on_hyphens=False) or [""]
    ]
    heads: Iterable[str] = [name, *[""] * (len(lines) - 1)]
    return [f"{head:<{INDENT}}{line}".rstrip() for head, line in zip(heads, lines, strict=True)]


def _one_line(text: str, room: int, *, keep: bool = False) -> str:
    text = text if keep else " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _signed(value: float | None) -> str:
    """Four digits; `-` for what is not known."""
    return "-" if value is None else f"{value:.4g}" if abs(value) >= 100 else f"{value:.3f}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def width() -> int:
    """Columns to write in: the terminal's, but not more than `WIDTH`."""
    return min(WIDTH, max(40, shutil.get_terminal_size((WIDTH, 24)).columns))


def printable(text: str) -> str:
    """The text without what would steer a terminal: a model may write anything."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)
