"""The one sentence that says what a run learned, also where it learned nothing or went astray."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.run_record import RunRecord, finite, read_run

DISPLAY_NAMES = {"sft": "Supervised fine-tuning", "reward_model": "Reward model"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One quantity before and after a run, in its own unit."""

    before: float
    after: float
    noise: float
    """Standard error of `after - before` as far as the curve tells; 0 where it cannot."""

    @property
    def verdict(self) -> str:
        """`raised`, `lowered`, or `kept` for a change within twice the noise or the rounding."""
        difference = self.after - self.before
        if abs(difference) <= 2 * self.noise or short(self.before) == short(self.after):
            return "kept"
        return "raised" if difference > 0 else "lowered"


def headline(run_dir: Path) -> str:
    """What the run in `run_dir` learned, in one sentence; raises ValueError without a run there."""
    return sentence(read_run(run_dir))


def sentence(record: RunRecord) -> str:
    """The headline of a run that was read already."""
    if "mixture" in record.summary:
        return _mixture_sentence(record.summary["mixture"])
    if not record.rows:
        return f"{display_name(record)} wrote no learner step: there is nothing to report yet."
    if record.method == "sft":
        return _sft_sentence(record)
    if record.method == "reward_model":
        return _reward_model_sentence(record)
    return _online_sentence(record)


def display_name(record: RunRecord) -> str:
    """The method as people write it: `RLOO`, `Supervised fine-tuning`."""
    return DISPLAY_NAMES.get(record.method, record.method.upper().replace("_", " "))


def reward_change(record: RunRecord, name: str) -> Change | None:
    """Mean reward `name` (`total` for the combined one) before and after.

    From the held-out prompts in summary.json (`reward_before`, `reward_after`: name -> mean, and
    the standard error of their difference) where there are any; else from the curve.
    """
    before = record.summary.get("reward_before")
    after = record.summary.get("reward_after")
    if isinstance(before, dict) and isinstance(after, dict) and name in before and name in after:
        errors = record.summary.get("reward_standard_error", {})
        return Change(before=before[name], after=after[name], noise=errors.get(name, 0.0))
    return curve_change(record, f"reward/{name}/mean")


def curve_change(record: RunRecord, metric: str) -> Change | None:
    """The first step against the mean of the last tenth of the steps, None without two steps.

    The first step alone was sampled by the starting policy. What the curve jumps from one step to
    the next, its trend removed, is the noise of a single step.
    """
    values = finite(record.series(metric)[1])
    if len(values) < 2:
        return None
    num_last = max(1, min(10, len(values) // 10))
    jumps = [b - a for a, b in pairwise(values)]
    trend = math.fsum(jumps) / len(jumps)
    variance = math.fsum((jump - trend) ** 2 for jump in jumps) / (2 * len(jumps))
    noise = math.sqrt(variance * (1 + 1 / num_last)) if len(jumps) >= 3 else 0.0
    after = math.fsum(values[-num_last:]) / num_last
    return Change(before=values[0], after=after, noise=noise)


def _online_sentence(record: RunRecord) -> str:
    gold = next((name for name in record.gold_names if "/" not in name), None)
    judged = record.summary.get("reward_after")
    if gold is None and isinstance(judged, dict) and "total" not in judged:
        return _label_sentence(record)
    change = reward_change(record, gold or "total")
    if change is None:
        steps = "1 step" if len(record.rows) == 1 else f"{len(record.rows)} steps"
        return f"{display_name(record)} recorded {steps}: too few to say what it learned."
    what = "the true reward of the policy" if gold else "the policy's reward"
    told = [_told(display_name(record), what, change) + f" {_extent(record)}"]
    kl = curve_change(record, "kl/ref_k1")
    if kl is not None:
        told.append(f"at a KL of {short(kl.after)} nats")
    return ", ".join(told) + _proxy_clause(record, gold, change) + _length_clause(record) + "."


def _label_sentence(record: RunRecord) -> str:
    """Of a run that learned from what people said of stored replies, and from no other judge."""
    accuracy = curve_change(record, "preference/accuracy")
    if accuracy is not None:
        return (
            f"{display_name(record)} brought the pairs whose better reply gained more from "
            f"{accuracy.before:.0%} to {accuracy.after:.0%} {_extent(record)}"
            f"{_length_clause(record)}."
        )
    loss = curve_change(record, "loss/preference")
    if loss is None:
        return f"{display_name(record)} recorded too few steps to say what it learned."
    return f"{_told(display_name(record), 'its loss', loss)} {_extent(record)}."


def _told(who: str, what: str, change: Change) -> str:
    before, after = short(change.before), short(change.after)
    if change.verdict == "kept":
        return f"{who} did not move {what} measurably (from {before} to {after})"
    difference = short(change.after - change.before, sign=True)
    return f"{who} {change.verdict} {what} from {before} to {after} ({difference})"


def _extent(record: RunRecord) -> str:
    """`in 60 steps`, or `in the first 23 of 60 steps` of a run without its end."""
    done, planned = len(record.rows), record.num_steps
    if planned is not None and done < planned:
        return f"in the first {done} of {planned} steps"
    return f"in {done} steps"


def _proxy_clause(record: RunRecord, gold: str | None, truth: Change) -> str:
    """Over-optimization in words: the reward it learned from rose, the true one did not."""
    proxy = reward_change(record, "total")
    if gold is None or proxy is None or truth.verdict == "raised" or proxy.verdict != "raised":
        return ""
    before, after = short(proxy.before), short(proxy.after)
    return f", although the reward it learned from rose from {before} to {after}"


def _length_clause(record: RunRecord) -> str:
    change = curve_change(record, "length/mean")
    if change is None:
        return ""
    before, after = f"{change.before:.0f}", f"{change.after:.0f}"
    if before == after:
        return f"; replies stayed at {before} tokens"
    return f"; replies went from {before} to {after} tokens"


def _sft_sentence(record: RunRecord) -> str:
    for metric, what in (("validation/loss", "validation"), ("loss/nll", "training")):
        change = curve_change(record, metric)
        if change is not None:
            told = _told(display_name(record), f"the {what} loss", change)
            told = told.replace(" (", " nats per token (", 1) if change.verdict != "kept" else told
            return f"{told} {_extent(record)}{_overfit_clause(record)}."
    return f"{display_name(record)} recorded too few steps to say what it learned."


def _reward_model_sentence(record: RunRecord) -> str:
    for metric, which in (("validation/accuracy", "held-out"), ("accuracy", "training")):
        change = curve_change(record, metric)
        if change is not None:
            told = (
                f"The reward model orders {change.after:.0%} of the {which} pairs as their labels "
                f"do, after {change.before:.0%} at the start (chance is 50%), {_extent(record)}"
            )
            return f"{told}{_overfit_clause(record)}."
    return "The reward model recorded too few steps to say what it learned."


def _mixture_sentence(mixture: dict[str, Any]) -> str:
    assignment, accuracy = mixture["assignment"], mixture["held_out_accuracy"]
    told = []
    for model in sorted(set(assignment.values())):
        people = [name for name, own in assignment.items() if own == model]
        shares = [accuracy[name] for name in people if name in accuracy]
        right = f", {fmean(shares):.0%} of held-out pairs right" if shares else ""
        told.append(
            f"model {model}: {len(people)} ({people[0]}{', ...' * (len(people) > 1)}){right}"
        )
    rounds = len(mixture["log_likelihoods"])
    end = "nobody wanted to change" if mixture["converged"] else "some still changed models"
    return f"Annotators found their models, {'; '.join(told)}; after {rounds} rounds {end}."


def _overfit_clause(record: RunRecord) -> str:
    """Says so where the validation loss was clearly lower before the end."""
    steps, losses = record.series("validation/loss")
    if len(finite(losses)) < 3:
        return ""
    best, step = min((loss, step) for step, loss in zip(steps, losses, strict=True) if loss == loss)
    if losses[-1] <= 1.02 * best:
        return ""
    return f"; the validation loss was lowest, {short(best)}, at step {step} and rose since"


def short(value: float, *, sign: bool = False) -> str:
    """A number in a sentence: two decimals below 10, one above, with a true minus sign."""
    digits = 2 if abs(value) < 10 else 1
    shown = f"{value:{'+' if sign else ''}.{digits}f}"
    return shown.replace("-", "−") if float(shown) else f"{0:.{digits}f}"
