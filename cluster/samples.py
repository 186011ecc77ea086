"""Replies of a policy to a file of prompts, judged: data for offline methods, and best-of-N.

    prompts ─▶ engines, N replies each ─▶ the run's rewards ─▶ FILE: prompt, replies, scores

The file is in the layout of lists (`rl.data.layouts`), so that any method on stored replies learns
from it; the scores are what a run would learn from, its rewards put together.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from actors.rollout import SampleRequest
from cluster.engines import EngineHandle, start_engines
from cluster.evaluation import JudgedReply, judged_replies, judges_alone, with_total
from cluster.fleet import Fleet
from cluster.groups import sample_seed
from cluster.inputs import check_judges, check_models
from cluster.ledger import write_table
from cluster.progress import RunProgress
from cluster.runtime import keep_worker_logs, ray_session
from cluster.scoring import merge_scores, reward_groups
from configs.errors import ConfigError
from configs.schema import OFFLINE, RunConfig
from rl.data.encode import load_prompts
from rl.data.layouts import SCORES
from rl.folders import load_tokenizer
from rl.kl import best_of_n_kl
from rl.statistics import Interval, best_of_n, mean_interval
from rl.types import Prompt, Rollout

CHUNK = 64
"""Prompts sampled at a time."""
_LEFT_OUT = ("chosen", "rejected")
"""Columns of the prompts' file that would make pairs of the new one."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is to be drawn, checked."""

    config: RunConfig
    """Of the run, with the policy as `model.path`, drawing from the policy alone."""
    prompts: list[Prompt]
    out: Path


def prepare(
    config: RunConfig, policy: Path, out: Path, count: int, num_prompts: int | None
) -> Samples:
    """Check everything and read the prompts of `data.train`; `ConfigError` with one line."""
    if out.suffix != ".parquet":
        raise ConfigError(f"--out: {out} should end with .parquet")
    if out.exists():
        raise ConfigError(f"--out: {out} exists; give another file, or remove it")
    if count < 2 or (num_prompts is not None and num_prompts < 1):
        raise ConfigError("--samples should be at least 2, and --prompts at least 1")
    if config.feedback.overlong_buffer is not None:
        raise ConfigError(
            "feedback.overlong_buffer is of runs alone: give feedback.overlong_buffer=null"
        )
    if config.algorithm.name in OFFLINE:
        raise ConfigError(
            f"algorithm.name is {config.algorithm.name}, which samples nothing: give the YAML of "
            "an online run"
        )
    _check_rewards(config)
    data = config.data.model_copy(update={"samples_per_prompt": count, "source": "policy"})
    model = config.model.model_copy(update={"path": str(policy)})
    cluster = config.cluster.model_copy(update={"run_dir": str(out.parent)})  # for logs
    config = config.model_copy(update={"data": data, "model": model, "cluster": cluster})
    check_models(config)
    longest = data.max_prompt_length or config.model.max_length - data.sampling.max_new_tokens
    prompts = load_prompts(
        data.train,
        load_tokenizer(policy, field="--policy"),
        max_prompt_length=longest,
        overlong=data.overlong,
        system_prompt=data.system_prompt,
    )
    return Samples(config=config, prompts=prompts[:num_prompts], out=out)


def _check_rewards(config: RunConfig) -> None:
    rewards = config.feedback.rewards
    if config.feedback.one_shot:
        raise ConfigError("feedback.one_shot finds multipliers in a run; give feedback.multipliers")
    check_judges(config)
    for name, reward in rewards.items():
        if reward.weight and not judges_alone(reward.kind):
            raise ConfigError(
                f"feedback.rewards.{name}: a {reward.kind} gives no score to a single fresh reply; "
                "set its weight to 0, or name another reward"
            )
    if not any(reward.weight for reward in rewards.values()):
        raise ConfigError(
            "there is no reward to score replies by: add one, such as feedback.rewards.rm.kind="
            "model feedback.rewards.rm.path=..."
        )


def run_alone(samples: Samples) -> list[list[float]]:
    """`draw` on a Ray of its own."""
    with ray_session(samples.config, is_run=False):
        try:
            with RunProgress(len(samples.prompts), "sampling") as progress:
                return draw(samples, progress)
        finally:
            keep_worker_logs(samples.config.cluster.run_dir)


def draw(samples: Samples, progress: RunProgress) -> list[list[float]]:
    """Sample and judge on a started Ray, and write the file; returns its scores, (P, N).

    The file is whole or not there.
    """
    config = samples.config
    progress.status(f"starting {config.cluster.rollout.num_engines} engine to sample")
    engines = start_engines(config)
    try:
        groups, replies = asyncio.run(_judged(samples, engines, progress))
    finally:
        for engine in engines * ray.is_initialized():
            ray.kill(engine.actor)
    replies = with_total(replies, config.feedback)
    count = config.data.samples_per_prompt
    own = [replies[start : start + count] for start in range(0, len(replies), count)]
    write_table(as_table(config, groups, own), samples.out)
    return [[reply.rewards["total"] for reply in group] for group in own]


async def _judged(
    samples: Samples, engines: Sequence[EngineHandle], progress: RunProgress
) -> tuple[list[list[Rollout]], list[JudgedReply]]:
    """All replies by prompt, and side by side with the scores of each reward."""
    config = samples.config
    rollout = config.cluster.rollout
    kinds = {name: reward.kind for name, reward in config.feedback.rewards.items()}
    judges = {n: g for n, g in reward_groups(config).items() if judges_alone(kinds[n])}
    fleet = Fleet(samples.config, engines)
    waiting = asyncio.Semaphore(2 * len(engines))  # one chunk is judged while another is sampled
    done = 0

    async def chunk(start: int) -> tuple[list[list[Rollout]], list[JudgedReply]]:
        nonlocal done
        prompts = samples.prompts[start : start + CHUNK]
        async with waiting:
            groups = await fleet.generate(_requests(config, prompts, start))
            flat = [reply for group in groups for reply in group]
            results = await asyncio.gather(*(judge.score(flat) for judge in judges.values()))
        scores = {name: s for parts in results for name, s in merge_scores(parts).items()}
        done += len(prompts)
        progress.update({"step": done})
        return groups, judged_replies(flat, scores)

    try:
        await asyncio.wait_for(
            asyncio.gather(
                *(engine.actor.start.remote() for engine in engines),
                *(judge.ready() for judge in judges.values()),
            ),
            rollout.start_deadline_s,
        )
        parts = await asyncio.gather(*(chunk(s) for s in range(0, len(samples.prompts), CHUNK)))
    except TimeoutError as error:
        raise RuntimeError(
            f"the engines did not start within {rollout.start_deadline_s:.0f} s (phase: start); "
            "raise cluster.rollout.start_deadline_s"
        ) from error
    finally:
        for judge in judges.values():
            judge.end()
    return [g for groups, _ in parts for g in groups], [r for _, own in parts for r in own]


def _requests(config: RunConfig, prompts: Sequence[Prompt], start: int) -> list[SampleRequest]:
    """For prompts of which the first is number `start` of all."""
    count = config.data.samples_per_prompt
    return [
        SampleRequest(
            group_id=number,
            prompt=prompt,
            num_samples=count,
            seed=sample_seed(config.data.seed, number, count),
        )
        for number, prompt in enumerate(prompts, start)
    ]


def as_table(
    config: RunConfig, groups: Sequence[Sequence[Rollout]], judged: Sequence[Sequence[JudgedReply]]
) -> pa.Table:
    """The file: the prompts' own columns, and their replies as lists."""
    prompts = [group[0].prompt for group in groups]
    messages = [_messages(config, prompt) for prompt in prompts]
    # One column has one type: text, unless some prompt is more than the user's only message.
    is_text = all(len(own) == 1 for own in messages)
    rows = [
        {
            **{name: value for name, value in prompt.extra.items() if name not in _LEFT_OUT},
            "prompt": own[0]["content"] if is_text else own,
            "replies": [reply.reply for reply in replies],
            SCORES: [reply.rewards["total"] for reply in replies],
            "num_tokens": [reply.num_tokens for reply in replies],
            "finish_reasons": [reply.finish_reason for reply in replies],
            **{
                f"rewards/{name}": [reply.rewards[name] for reply in replies]
                for name in config.feedback.rewards
                if name in replies[0].rewards
            },
        }
        for prompt, own, replies in zip(prompts, messages, judged, strict=True)
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])


def _messages(config: RunConfig, prompt: Prompt) -> list[dict[str, str]]:
    messages = [dict(message) for message in prompt.messages]
    messages = messages or [{"role": "user", "content": prompt.text}]
    if config.data.system_prompt and messages[0]["role"] == "system":
        return messages[1:]  # whoever reads the file says again what comes before prompts
    return messages


# ---- best-of-N -----------------------------------------------------------------------------------


def best_of(scores: Sequence[Sequence[float]]) -> dict[int, Interval]:
    """n -> mean over prompts of the expected best of n of their replies; n = 1, 2, 4, ..., N."""
    count = len(scores[0])
    powers = [2**k for k in range(int(math.log2(count)) + 1)]
    values = np.asarray(scores)
    return {n: _interval(best_of_n(values, n)) for n in dict.fromkeys([*powers, count])}


def _interval(values: np.ndarray) -> Interval:
    """Of one prompt there is none."""
    if len(values) == 1:
        return Interval(mean=float(values[0]), low=math.nan, high=math.nan)
    return mean_interval(values)


def render(scores: Sequence[Sequence[float]]) -> str:
    """The table for a terminal; the KL is a bound (Beirami et al., arXiv 2401.01879)."""
    lines = [f"{'best of':>8}  {'score':>8}  {'95% interval':<20}KL at most, nats"]
    for n, one in best_of(scores).items():
        reach = f"[{one.low:.3f}, {one.high:.3f}]" if math.isfinite(one.low) else "-"
        lines.append(f"{n:>8}  {one.mean:>8.3f}  {reach:<20}{best_of_n_kl(n):.2f}")
    return "\n".join(lines)
