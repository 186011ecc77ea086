"""Two policies on the same held-out prompts, judged by a run's rewards: who is better, how surely.

    policy   ─▶ engine ─┐
                        ├─▶ the run's rewards ─▶ paired differences with intervals
    baseline ─▶ engine ─┘

Both sides draw with the same seeds, so a policy against itself differs by exactly nothing.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.engines import EngineHandle, start_engine
from cluster.errors import root_cause
from cluster.evaluation import JudgedReply, answer_and_judge, judges_alone, means
from cluster.fleet import Fleet
from cluster.inputs import check_judges, read_rows
from cluster.progress import default_console
from cluster.runtime import keep_worker_logs, ray_session
from cluster.scoring import reward_groups
from configs.errors import ConfigError
from configs.schema import OFFLINE, RunConfig
from rl.data.encode import split_validation
from rl.folders import check_model_folder, context_length, load_tokenizer
from rl.statistics import paired_bootstrap, proportion_interval
from rl.types import Prompt

LEVEL = 0.95
"""Confidence of every interval."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two policies: `policy` or `baseline`."""

    name: str
    path: Path
    prompts: list[Prompt]
    """The held-out prompts in this policy's own tokens; the same rows on both sides."""


def compare(config: RunConfig, policy: Path, baseline: Path, num_prompts: int) -> dict[str, Any]:
    """Answer held-out prompts with both policies and judge the answers; starts and ends Ray.

    The result can be dumped as JSON; with all replies it is written to evaluate/comparison.json of
    the run folder, beside the logs. Raises `ValueError` for wrong input, before anything starts,
    and `RuntimeError` with the cause in one line for whatever fails afterwards.
    """
    sides = prepare(config, policy, baseline, num_prompts)
    config = _evaluation_config(config)
    folder = Path(config.cluster.run_dir)
    waiting = f"two engines answer {len(sides[0].prompts)} prompts"
    try:
        with default_console().status(waiting), ray_session(config, is_run=False):
            try:
                replies = asyncio.run(_answers(config, sides))
            finally:
                keep_worker_logs(str(folder))
    except Exception as error:
        raise RuntimeError(f"{root_cause(error)}; logs: {folder / 'logs'}") from error
    result = {"policy": str(policy), "baseline": str(baseline)} | summarise(*replies)
    rows = {side.name: [asdict(r) for r in own] for side, own in zip(sides, replies, strict=True)}
    (folder / "comparison.json").write_text(json.dumps(result | {"replies": rows}))
    return result


# ---- before anything starts ----------------------------------------------------------------------


def prepare(config: RunConfig, policy: Path, baseline: Path, num_prompts: int) -> tuple[Side, Side]:
    """Check models and judges and read the prompts; raises `ValueError` with one line."""
    if num_prompts < 1:
        raise ConfigError(f"--prompts is {num_prompts}; it should be at least 1")
    if config.algorithm.name in OFFLINE:
        raise ConfigError(
            f"algorithm.name is {config.algorithm.name}, which has no feedback.rewards to judge "
            "by: give the YAML of an online run"
        )
    paths = {"policy": policy, "baseline": baseline}
    for name, path in paths.items():
        _check_policy(config, path, f"--{name}")
    _check_rewards(config)
    prompts = _held_out(config, paths, num_prompts)
    first, second = (Side(name=name, path=paths[name], prompts=prompts[name]) for name in paths)
    return first, second


def _check_policy(config: RunConfig, path: Path, field: str) -> None:
    longest = context_length(check_model_folder(path, field=field))
    if config.model.max_length > longest:
        raise ConfigError(
            f"model.max_length is {config.model.max_length}, but {path} was made for {longest} "
            "tokens; lower it"
        )


def _check_rewards(config: RunConfig) -> None:
    check_judges(config)
    if not any(judges_alone(reward.kind) for reward in config.feedback.rewards.values()):
        raise ConfigError(
            "no reward of the run judges a fresh reply by itself: add one, such as "
            "feedback.rewards.rm.kind=model feedback.rewards.rm.path=..."
        )


def _held_out(
    config: RunConfig, paths: Mapping[str, Path], num_prompts: int
) -> dict[str, list[Prompt]]:
    """The first held-out rows that both tokenizers can hold, each side's in its own tokens."""
    data = config.data
    read = {
        name: read_rows(
            config, data.validation or data.train, load_tokenizer(path, field=f"--{name}")
        )
        for name, path in paths.items()
    }
    held_out = read["policy"]
    if not data.validation:
        # As the run itself splits; the baseline takes the same rows, whatever its tokenizer.
        _, held_out = split_validation(held_out, data.validation_fraction, data.seed)
    by_row = {name: {prompt.row: prompt for prompt in own} for name, own in read.items()}
    rows = [prompt.row for prompt in held_out if prompt.row in by_row["baseline"]][:num_prompts]
    if not rows:
        raise ConfigError(f"{data.validation or data.train}: no held-out row fits both policies")
    return {name: [own[row] for row in rows] for name, own in by_row.items()}


def _evaluation_config(config: RunConfig) -> RunConfig:
    """Two engines, judges of single replies, and a folder of its own inside the run's."""
    folder = Path(config.cluster.run_dir) / "evaluate"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cluster.run_dir: {folder} cannot be written ({error.strerror}); give another folder"
        ) from error
    rollout = config.cluster.rollout.model_copy(update={"num_engines": 2})
    cluster = config.cluster.model_copy(update={"run_dir": str(folder), "rollout": rollout})
    alone = {n: r for n, r in config.feedback.rewards.items() if judges_alone(r.kind)}
    feedback = config.feedback.model_copy(update={"rewards": alone})
    return config.model_copy(update={"cluster": cluster, "feedback": feedback})


# ---- on a started Ray ----------------------------------------------------------------------------


async def _answers(config: RunConfig, sides: Sequence[Side]) -> list[list[JudgedReply]]:
    """Both sides' judged replies; engines and judges load side by side."""
    engines = [start_engine(config, side.name, str(side.path)) for side in sides]
    rewards = reward_groups(config)
    await asyncio.gather(
        _started(engines, config.cluster.rollout.start_deadline_s),
        *(group.ready() for group in rewards.values()),
    )
    return await asyncio.gather(
        *(
            answer_and_judge(Fleet(config, [engine]), rewards, side.prompts, config.data.seed)
            for engine, side in zip(engines, sides, strict=True)
        )
    )


async def _started(engines: Sequence[EngineHandle], deadline_s: float) -> None:
    calls = [engine.actor.start.remote() for engine in engines]
    try:
        await asyncio.wait_for(asyncio.gather(*calls), deadline_s)
    except TimeoutError as error:
        raise RuntimeError(
            f"the engines did not start within {deadline_s:.0f} s (phase: start); raise "
            "cluster.rollout.start_deadline_s"
        ) from error


# ---- what came out -------------------------------------------------------------------------------


def summarise(policy: Sequence[JudgedReply], baseline: Sequence[JudgedReply]) -> dict[str, Any]:
    """Means, paired differences and win rates of replies to the same prompts, with intervals."""
    first, second = means(policy), means(baseline)
    rewards = {}
    for name in first:
        values = ([reply.rewards[name] for reply in replies] for replies in (policy, baseline))
        rewards[name] = {"policy": first[name], "baseline": second[name]} | _paired(*values)
    lengths = [[float(reply.num_tokens) for reply in replies] for replies in (policy, baseline)]
    length = {"policy": float(np.mean(lengths[0])), "baseline": float(np.mean(lengths[1]))}
    return {
        "num_prompts": len(policy),
        "level": LEVEL,
        "rewards": rewards,
        "length": length | {"difference": _paired(*lengths)["difference"]},
        "eos_rate": {"policy": _eos_rate(policy), "baseline": _eos_rate(baseline)},
    }


def _paired(policy: Sequence[float], baseline: Sequence[float]) -> dict[str, dict[str, float]]:
    result = paired_bootstrap(policy, baseline, level=LEVEL)
    return {
        "difference": {"mean": result.mean, "low": result.low, "high": result.high},
        "win_rate": {"mean": result.win_rate, "low": result.win_low, "high": result.win_high},
    }


def _eos_rate(replies: Sequence[JudgedReply]) -> dict[str, float]:
    """Share of replies that ended by themselves, not at the length limit."""
    ended = sum(reply.finish_reason == "stop" for reply in replies)
    return asdict(proportion_interval(ended, len(replies), LEVEL))


def render(result: Mapping[str, Any]) -> str:
    """The result as a table for a terminal."""
    header = f"{'':<24}{'policy':>10}{'baseline':>10}  {'difference':<28}policy better"
    lines = [
        f"policy    {result['policy']}",
        f"baseline  {result['baseline']}",
        f"{result['num_prompts']} held-out prompts; {result['level']:.0%} intervals in brackets",
        "",
        header,
    ]
    for name, row in result["rewards"].items():
        wins = row["win_rate"]
        share = f"{wins['mean']:.1%} [{wins['low']:.1%}, {wins['high']:.1%}]"
        lines.append(_line(name, row, 3) + share)
    lines.append(_line("tokens", result["length"], 1).rstrip())
    ended = (f"{result['eos_rate'][side]['mean']:.1%}" for side in ("policy", "baseline"))
    lines.append(f"{'ended by itself':<24}" + "".join(f"{share:>10}" for share in ended))
    return "\n".join(lines)


def _line(name: str, row: Mapping[str, Any], digits: int) -> str:
    gap = row["difference"]
    interval = f"[{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]"
    shown = f"{gap['mean']:+.{digits}f} {interval}"
    return f"{name:<24}{row['policy']:>10.{digits}f}{row['baseline']:>10.{digits}f}  {shown:<28}"
