"""Rollout tokens/s through our actor, over bare vLLM with the same engine and sampling settings.

A third engine exports vLLM's own metrics and tells of itself; its speed over that of the first.
"""

import asyncio
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from actors.rollout import EngineSpec, SampleRequest
from cluster.engines import LoggedEngine
from cluster.metrics.telemetry import switch_on
from cluster.runtime import role_env
from configs.cluster import RolloutPlacement
from configs.schema import SamplingConfig
from rl.types import Prompt
from rl.world.model import build_tokenizer, write_model
from rl.world.replies import draw_request, write_prompt

ROUNDS = 15
NUM_PROMPTS, NUM_SAMPLES, NUM_TOKENS = 32, 4, 48


class BareEngine:
    """vLLM as its own documentation uses it: generate, count tokens, nothing else."""

    async def start(self, spec: EngineSpec) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=spec.model_path,
                dtype="float32",
                max_model_len=spec.max_length,
                max_num_seqs=spec.placement.max_num_seqs,
                kv_cache_memory_bytes=int(spec.placement.kv_cache_gib * 2**30),
                enforce_eager=True,
                distributed_executor_backend="uni",
                enable_chunked_prefill=False,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
            )
        )

    async def generate(self, requests: list[SampleRequest]) -> tuple[int, float]:
        """Tokens, and seconds measured in this process."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        async def one(request: SampleRequest) -> int:
            parameters = SamplingParams(
                n=request.num_samples, max_tokens=NUM_TOKENS, detokenize=False, seed=request.seed,
                logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            tokens = {"prompt_token_ids": list(request.prompt.tokens)}
            name = f"{request.group_id}-{time.monotonic_ns()}"
            async for output in self.engine.generate(tokens, parameters, name):
                final = output
            return sum(len(completion.token_ids) for completion in final.outputs)

        started = time.perf_counter()
        counts = await asyncio.gather(*(one(request) for request in requests))
        return sum(counts), time.perf_counter() - started


def requests(round_number: int) -> list[SampleRequest]:
    rng = random.Random(round_number)
    tokenizer = build_tokenizer()
    made = []
    for index in range(NUM_PROMPTS):
        text = write_prompt(rng, *draw_request(rng))
        ids = tokenizer.encode(text)
        prompt = Prompt(row=index, text=text, tokens=tuple(ids), extra={})
        made.append(
            SampleRequest(group_id=index, prompt=prompt, num_samples=NUM_SAMPLES, seed=index * 4)
        )
    return made


def rollout(folder: Path) -> dict[str, Any]:
    """The two engines in turn, round by round; the ratio of each round's speeds."""
    write_model(folder / "model")
    spec = EngineSpec(
        name="engine", model_path=str(folder / "model"), dtype="float32", max_length=128,
        sampling=SamplingConfig(max_new_tokens=NUM_TOKENS),
        placement=RolloutPlacement(max_num_seqs=128, kv_cache_gib=0.1), transport="gloo",
        device="cpu", seed=0,
    )  # fmt: skip
    options = {"num_cpus": 2, "runtime_env": role_env(2, "cpu")}
    ours: Any = ray.remote(LoggedEngine).options(**options).remote(spec, str(folder))
    watched_dir = folder / "watched"
    switch_on(watched_dir, 2.0)
    watched: Any = (
        ray.remote(LoggedEngine)
        .options(**options)
        .remote(replace(spec, with_metrics=True), str(watched_dir))
    )
    bare: Any = ray.remote(BareEngine).options(**options).remote()
    ray.get([ours.start.remote(), watched.start.remote(), bare.start.remote(spec)], timeout=300)
    ratios, ours_speed, bare_speed, watched_ratios = [], [], [], []
    for number in range(-1, ROUNDS):
        asked = requests(number)
        started = time.perf_counter()
        groups: Any = ray.get(ours.generate.remote(asked))
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        ray.get(watched.generate.remote(asked))
        watched_seconds = time.perf_counter() - started
        tokens = sum(len(rollout.tokens) for group in groups for rollout in group)
        bare_tokens, bare_seconds = ray.get(bare.generate.remote(asked))
        if number < 0:
            continue  # warm-up
        ours_speed.append(tokens / seconds)
        bare_speed.append(bare_tokens / bare_seconds)
        ratios.append(ours_speed[-1] / bare_speed[-1])
        watched_ratios.append(seconds / watched_seconds)
    ray.kill(ours)
    ray.kill(watched)
    ray.kill(bare)
    return {
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "watched_over_unwatched_median": round(statistics.median(watched_ratios), 3),
        "watched_over_unwatched_min": round(min(watched_ratios), 3),
        "watched_over_unwatched_max": round(max(watched_ratios), 3),
        "actor_tokens_per_s": round(statistics.median(ours_speed)),
        "bare_tokens_per_s": round(statistics.median(bare_speed)),
        "rounds": ROUNDS,
        "replies": NUM_PROMPTS * NUM_SAMPLES,
    }
