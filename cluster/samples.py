"""Replies of a policy to a file of prompts, judged: data for offline methods, and best-of-N.

    prompts ─▶ engines, N replies each ─▶ the run's rewards ─▶ FILE: prompt, replies, scores

The file is in the layout of lists (`rl.data.layouts`), so that any method on stored replies learns
from it; the scores are what a run would learn from, its rewards put together.
"""

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from actors.rollout import SampleRequest
from cluster.evaluation import JudgedReply, judged_replies, judges_alone, with_total
from cluster.fleet import EngineHandle, Fleet, start_engines
from cluster.inputs import check_models, check_reward
from cluster.progress import RunProgress
from cluster.runtime import keep_worker_logs, ray_session
from cluster.scoring import ScoringGroup, merge_scores, reward_groups
from configs.errors import ConfigError
from configs.schema import OFFLINE, RunConfig
from rl.data.encode import load_prompts
from rl.data.layouts import COMPLETION, PROMPT, REPLIES, SCORE, SCORES
from rl.folders import load_tokenizer
from rl.kl import best_of_n_kl
from rl.statistics import Interval, best_of_n, mean_interval
from rl.types import Prompt, Rollout

CHUNK = 64
"""Prompts sampled at a time."""
_REPLACED = {*PROMPT, *COMPLETION, *SCORE, *REPLIES, SCORES, "messages", "chosen", "rejected"}
"""Columns of the prompts' file that would give the new one another meaning."""


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
    if count < 1 or (num_prompts is not None and num_prompts < 1):
        raise ConfigError("--samples and --prompts should be at least 1")
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
    for name, reward in rewards.items():
        check_reward(f"feedback.rewards.{name}", reward)
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
    with ray_session(samples.config):
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
        rows = asyncio.run(_rows(samples, engines, progress))
    finally:
        for engine in engines * ray.is_initialized():
            ray.kill(engine.actor)
    samples.out.parent.mkdir(parents=True, exist_ok=True)
    partial = samples.out.with_name(f".{samples.out.name}.{os.getpid()}")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(samples.out)
    return [row[SCORES] for row in rows]


async def _rows(
    samples: Samples, engines: Sequence[EngineHandle], progress: RunProgress
) -> list[dict[str, Any]]:
    config = samples.config
    rollout = config.cluster.rollout
    kinds = {name: reward.kind for name, reward in config.feedback.rewards.items()}
    groups = {n: g for n, g in reward_groups(config).items() if judges_alone(kinds[n])}
    started = asyncio.gather(
        *(engine.actor.start.remote() for engine in engines),
        *(group.ready() for group in groups.values()),
    )
    try:
        await asyncio.wait_for(started, rollout.start_deadline_s)
    except TimeoutError as error:
        raise RuntimeError(
            f"the engines did not start within {rollout.start_deadline_s:.0f} s (phase: start); "
            "raise cluster.rollout.start_deadline_s"
        ) from error
    fleet = Fleet(engines, rollout.generate_deadline_s)
    waiting = asyncio.Semaphore(2 * len(engines))  # one chunk is judged while another is sampled
    done = 0

    async def chunk(start: int) -> list[dict[str, Any]]:
        nonlocal done
        prompts = samples.prompts[start : start + CHUNK]
        async with waiting:
            rows = await _chunk(config, fleet, groups, prompts, start)
        done += len(prompts)
        progress.update({"step": done})
        return rows

    parts = await asyncio.gather(*(chunk(s) for s in range(0, len(samples.prompts), CHUNK)))
    return [row for part in parts for row in part]


async def _chunk(
    config: RunConfig,
    fleet: Fleet,
    groups: Mapping[str, ScoringGroup],
    prompts: Sequence[Prompt],
    start: int,
) -> list[dict[str, Any]]:
    """Rows of the file, in the order of the prompts, the first of which has number `start`."""
    count = config.data.samples_per_prompt
    requests = [
        SampleRequest(
            group_id=number,
            prompt=prompt,
            num_samples=count,
            seed=(config.data.seed * 1_000_003 + number * count) % 2**31,
        )
        for number, prompt in enumerate(prompts, start)
    ]
    rollouts = await fleet.generate(requests)
    flat = [rollout for group in rollouts for rollout in group]
    results = await asyncio.gather(*(group.score(flat) for group in groups.values()))
    scores = {name: s for parts in results for name, s in merge_scores(parts).items()}
    judged = with_total(judged_replies(flat, scores), config.feedback)
    return [
        _row(config, group, judged[index * count : (index + 1) * count])
        for index, group in enumerate(rollouts)
    ]


def _row(
    config: RunConfig, group: Sequence[Rollout], judged: Sequence[JudgedReply]
) -> dict[str, Any]:
    prompt = group[0].prompt
    messages = [dict(message) for message in prompt.messages]
    if config.data.system_prompt and messages and messages[0]["role"] == "system":
        messages = messages[1:]  # whoever reads the file says again what comes before prompts
    rewards = {
        f"rewards/{name}": [reply.rewards[name] for reply in judged]
        for name in config.feedback.rewards
        if name in judged[0].rewards
    }
    return {
        **{name: value for name, value in prompt.extra.items() if name not in _REPLACED},
        "prompt": messages if len(messages) > 1 else prompt.text,
        "replies": [reply.reply for reply in judged],
        SCORES: [reply.rewards["total"] for reply in judged],
        "num_tokens": [reply.num_tokens for reply in judged],
        "finish_reasons": [reply.finish_reason for reply in judged],
        **rewards,
    }


# ---- best-of-N -----------------------------------------------------------------------------------


def best_of(scores: Sequence[Sequence[float]]) -> dict[int, Interval]:
    """n -> mean over prompts of the expected best of n of their replies; n = 1, 2, 4, ..., N."""
    count = len(scores[0])
    powers = [2**k for k in range(int(math.log2(count)) + 1)]
    values = np.asarray(scores)
    return {n: mean_interval(best_of_n(values, n)) for n in dict.fromkeys([*powers, count])}


def render(scores: Sequence[Sequence[float]]) -> str:
    """The table for a terminal; the KL is a bound (Beirami et al., arXiv 2401.01879)."""
    lines = [f"{'best of':>8}  {'score':>8}  {'95% interval':<20}KL at most, nats"]
    for n, one in best_of(scores).items():
        reach = f"[{one.low:.3f}, {one.high:.3f}]"
        lines.append(f"{n:>8}  {one.mean:>8.3f}  {reach:<20}{best_of_n_kl(n):.2f}")
    return "\n".join(lines)
