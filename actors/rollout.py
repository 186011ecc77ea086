"""One vLLM engine that samples replies: generate, probe, and take over new weights in mid-flight.

    pause(keep) ─▶ update_weights (while the learner broadcasts) ─▶ finish ─▶ version ─▶ resume

Requests in flight survive an update: they are frozen, their KV cache is dropped, and they go on
from their tokens under the new weights. Which version wrote which token is recorded per reply.

vLLM is imported where it is used: who only creates or calls this actor does not load it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.partials import Partial, beginnings, joined, partial_of
from configs.cluster import RolloutPlacement
from configs.schema import SamplingConfig
from rl.fingerprints import Fingerprint
from rl.types import Prompt, Rollout

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)


FIRST = -1
"""Priority of what must not wait behind the replies; theirs is 0."""
TOKEN_S = 3.0
"""How long the token of a health check may wait behind other work."""


class EngineDied(RuntimeError):
    """vLLM's engine core has ended under a living actor: the engine has to be replaced."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Ask for the replies to one leased prompt."""

    group_id: int
    prompt: Prompt
    num_samples: int
    seed: int
    """Of sample 0; sample k draws with `seed + k`."""
    with_greedy: bool = False
    """Decode one more reply greedily, behind the samples: the baseline of ReMax."""
    partials: tuple[Partial, ...] = ()
    """Where not empty: sample these replies alone, each from its tokens on."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything an engine needs to start."""

    name: str
    model_path: str
    dtype: str
    max_length: int
    sampling: SamplingConfig
    placement: RolloutPlacement
    transport: str
    """`gloo`, `nccl` or `ipc`."""
    device: str
    """`cpu` or `cuda`."""
    seed: int
    with_metrics: bool = False
    """Export vLLM's own metrics through Ray."""


class RolloutEngine:
    """An `AsyncLLM` with the sampling settings of the run.

    >>> # engine = RolloutEngine(spec); await engine.start()
    >>> # rollouts = await engine.generate([SampleRequest(...)])   # one list per request
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.engine: AsyncLLM
        self.num_tokens = 0
        self.say: Callable[[str], None] = lambda phase: None
        """Is told what the engine does: `sample`, `sync`, `wait`."""
        self.told: dict[str, float] = {}
        """Newest figures by key of the table of metrics."""
        self._num_replying = 0
        """Requests in the engine, but for health checks and probes."""
        self._starting = asyncio.Lock()
        self._paused_at = 0.0
        self._updating = asyncio.Event()
        self._flying: dict[str, int] = {}
        """Requests in the engine -> sequences of each."""
        self._leaving = False
        self.attempt = 0
        """Of the learner whose weights it takes; an older learner's are refused."""

    async def start(self) -> int:
        """Load the model, once; returns the number of workers that take part in an update."""
        async with self._starting:
            if not hasattr(self, "engine"):
                await self._start()
        return self.spec.placement.tensor_parallel_size

    async def _start(self) -> None:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.envs import enable_envs_cache
        from vllm.v1.engine.async_llm import AsyncLLM

        spec = self.spec
        tensor_parallel = spec.placement.tensor_parallel_size
        arguments = AsyncEngineArgs(
            model=spec.model_path,
            dtype=spec.dtype,  # pyright: ignore[reportArgumentType]
            max_model_len=spec.max_length,
            max_num_seqs=spec.placement.max_num_seqs,
            kv_cache_memory_bytes=int(spec.placement.kv_cache_gib * 2**30),
            enforce_eager=spec.placement.enforce_eager,
            tensor_parallel_size=tensor_parallel,
            distributed_executor_backend="mp" if tensor_parallel > 1 else "uni",
            enable_prefix_caching=True,
            scheduling_policy="priority",
            # vLLM 0.32 rewinds the generator of a seeded request whose prefill was cut in two, and
            # CPU generators cannot be rewound: the engine core dies. So prompts go in whole there.
            enable_chunked_prefill=False if spec.device == "cpu" else None,
            # Log-probs of the distribution that was sampled from: after temperature.
            logprobs_mode="processed_logprobs",
            seed=spec.seed,
            weight_transfer_config=WeightTransferConfig(backend=f"attune_{spec.transport}"),
            worker_extension_cls="actors.worker_extension.WorkerExtension",
            disable_log_stats=True,
        )
        started = time.monotonic()
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=self._stat_loggers())
        self.tokenizer = engine.get_tokenizer()
        self.stop_token_ids = self._eos(engine)
        self.engine = engine
        await self._warm_up()
        # Its statistics look into the environment at every token; the core does the same by itself.
        enable_envs_cache()
        await self.engine.update_weight_version("0")
        self.say("wait")
        logger.info("engine %s ready in %.1f s", spec.name, time.monotonic() - started)

    def _stat_loggers(self) -> list[Any] | None:
        """Who is told vLLM's statistics; None where nobody wants them."""
        if not self.spec.with_metrics:
            return None
        from actors.engine_stats import stats_factory

        return [stats_factory(self.told)]

    def _eos(self, engine: "AsyncLLM") -> list[int]:
        """EOS of the tokenizer, and whatever the model's generation config adds to it."""
        generation = engine.model_config.try_get_generation_config()
        extra = generation.get("eos_token_id", [])
        ids = {self.tokenizer.eos_token_id, *(extra if isinstance(extra, list) else [extra])}
        return sorted(token for token in ids if token is not None)

    async def _warm_up(self) -> None:
        """The first request compiles kernels for seconds; have that over before work comes."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=2, logprobs=0, detokenize=False)
        await self._run([self.stop_token_ids[0]], parameters, "warm-up")

    async def _run(
        self,
        tokens: list[int],
        parameters: "SamplingParams",
        request_id: str,
        priority: int = 0,
    ) -> "RequestOutput":
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        parameters.output_kind = RequestOutputKind.FINAL_ONLY
        final = None
        self._flying[request_id] = parameters.n
        is_reply = priority != FIRST
        try:
            self._count_replying(is_reply)
            async for output in self.engine.generate(
                {"prompt_token_ids": tokens}, parameters, request_id, priority=priority
            ):
                final = output
        except EngineDeadError as error:
            raise EngineDied(f"the engine core of {self.spec.name} has ended") from error
        finally:
            self._flying.pop(request_id, None)
            self._count_replying(-is_reply)
        assert final is not None, f"request {request_id} ended without a result"
        return final

    def _count_replying(self, change: int) -> None:
        """Requests for replies come and go; between them the engine waits."""
        self._num_replying += change
        if not self._updating.is_set():
            self.say("sample" if self._num_replying else "wait")

    async def generate(self, requests: list[SampleRequest]) -> list[list[Rollout]]:
        """Sample all requests side by side; one list of rollouts per request, in order."""
        groups = await asyncio.gather(*(self.sample(request) for request in requests))
        return [[reply for reply in group if isinstance(reply, Rollout)] for group in groups]

    async def sample(self, request: SampleRequest) -> list[Rollout | Partial]:
        """The replies to one request; what is unfinished when the engine leaves, as far as it is.

        A reply that is continued from a `Partial` comes whole. Raises EngineDied.
        """
        # The time makes the id unique when a group is asked for again after a failure.
        request_id = f"{request.group_id}-{time.monotonic_ns()}"
        if self._leaving:
            return list(request.partials or beginnings(request.num_samples + request.with_greedy))
        if request.partials:
            parts = [self._continue(request, partial, request_id) for partial in request.partials]
            return await asyncio.gather(*parts)
        tokens = list(request.prompt.tokens)
        parts = [self._run(tokens, self._parameters(request), request_id)]
        if request.with_greedy:
            greedy = self._parameters(request, is_greedy=True)
            parts.append(self._run(tokens, greedy, f"{request_id}-greedy"))
        return [
            self._reply(request, completion, request.num_samples if index else completion.index)
            for index, output in enumerate(await asyncio.gather(*parts))
            for completion in output.outputs
        ]

    async def _continue(
        self, request: SampleRequest, begun: Partial, request_id: str
    ) -> Rollout | Partial:
        tokens = [*request.prompt.tokens, *begun.tokens.tolist()]
        is_greedy = begun.sample == request.num_samples
        parameters = self._parameters(request, is_greedy=is_greedy)
        parameters.n = 1
        parameters.max_tokens = self.spec.sampling.max_new_tokens - len(begun.tokens)
        if not is_greedy:
            # Its own seed, moved on: the generator must not repeat the numbers of its first tokens.
            parameters.seed = (request.seed + begun.sample + 7919 * len(begun.tokens)) % 2**31
        output = await self._run(tokens, parameters, f"{request_id}-{begun.sample}")
        return self._reply(request, output.outputs[0], begun.sample, begun)

    def _parameters(self, request: SampleRequest, *, is_greedy: bool = False) -> "SamplingParams":
        from vllm import SamplingParams

        sampling = self.spec.sampling
        return SamplingParams(
            n=1 if is_greedy else request.num_samples,
            temperature=0.0 if is_greedy or sampling.greedy else sampling.temperature,
            top_p=1.0 if is_greedy or sampling.greedy else sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop) or None,
            stop_token_ids=self.stop_token_ids,
            detokenize=bool(sampling.stop),
            seed=request.seed,
            logprobs=0,
        )

    def _reply(
        self,
        request: SampleRequest,
        completion: "CompletionOutput",
        sample: int,
        begun: Partial | None = None,
    ) -> Rollout | Partial:
        found = partial_of(completion, sample)
        self.num_tokens += len(found.tokens)
        whole = found if begun is None else joined(begun, found)
        if completion.finish_reason == "abort":
            return whole
        text = completion.text if self.spec.sampling.stop else self._decode(whole.tokens)
        return Rollout(
            group_id=request.group_id,
            sample=sample,
            prompt=request.prompt,
            tokens=whole.tokens,
            text=text,
            rollout_logprobs=whole.rollout_logprobs,
            versions=whole.versions,
            finish_reason=completion.finish_reason or "unknown",
            seed=request.seed + sample,
            engine=self.spec.name,
            is_greedy=sample == request.num_samples,
        )

    async def hand_over(self) -> int:
        """Begin nothing more and give back what is unfinished; returns how many requests that are.

        Every `sample` that waits returns at once, with the replies as far as they are.
        """
        self._leaving = True
        return await self.abandon()

    async def abandon(self) -> int:
        """End all requests in the engine, as for callers that are gone; returns how many."""
        ids = list(self._flying)
        await self.engine.abort(ids)
        return len(ids)

    def _decode(self, tokens: np.ndarray) -> str:
        return str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).strip()

    async def probe(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """Log-probs of given sequences under the present weights, temperature 1.

        Returns one (n,) float32 array per sequence; index 0 is 0, since nothing precedes it.
        """
        from vllm import SamplingParams

        outputs = await asyncio.gather(
            *(
                self._run(
                    tokens,
                    SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, seed=0),
                    f"probe-{index}-{time.monotonic_ns()}",
                    priority=FIRST,
                )
                for index, tokens in enumerate(sequences)
            )
        )
        return [_prompt_logprobs(output) for output in outputs]

    async def check(self) -> float:
        """Generate one token; returns the seconds it took. Raises EngineDied.

        During an update nothing is generated, and the learner watches over the engine. Behind other
        work the token may be late for want of a place or of cache: then a sign of life will do.
        """
        started = time.monotonic()
        if self.engine.errored:
            raise EngineDied(f"the engine core of {self.spec.name} has ended")
        if sum(self._flying.values()) >= self.spec.placement.max_num_seqs:
            await self.ping()
            return time.monotonic() - started
        others = set(self._flying)
        updating = asyncio.create_task(self._updating.wait())
        token = asyncio.create_task(self._one_token())
        try:
            done, _ = await asyncio.wait(
                {updating, token},
                timeout=TOKEN_S if others else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if token in done:
                token.result()
            elif not done:
                await self.ping()
        finally:
            updating.cancel()
            token.cancel()
        return time.monotonic() - started

    async def _one_token(self) -> None:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, detokenize=False)
        request_id = f"check-{time.monotonic_ns()}"
        await self._run([self.stop_token_ids[0]], parameters, request_id, priority=FIRST)

    async def ping(self) -> None:
        """Return once every worker of the engine has answered, between two of its steps."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self.engine.collective_rpc("alive")
        except EngineDeadError as error:
            raise EngineDied(f"the engine core of {self.spec.name} has ended") from error

    async def init_transfer(self, init_info: dict[str, Any], attempt: int = 0) -> None:
        """Join the transfer group of a learner; one that was replaced since is refused."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        if attempt < self.attempt:
            raise RuntimeError(
                f"{self.spec.name} takes weights from learner attempt {self.attempt}, "
                f"no more from {attempt}"
            )
        self.attempt = attempt
        await self.engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def leave_transfer(self) -> None:
        """Leave the transfer group, also amid an update, which must then be made anew and whole."""
        await self.engine.collective_rpc("give_up_update")
        await self.engine.shutdown_weight_transfer_engine()

    async def begin_update(self) -> None:
        """Freeze requests in flight, drop all caches and prepare for new weights."""
        self._paused_at = time.monotonic()
        self._updating.set()
        self.say("sync")
        await self.engine.pause_generation(mode="keep", clear_cache=True)
        await self.engine.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one update (NCCL, gloo) or one packed part of it (IPC)."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.engine.update_weights(WeightTransferUpdateRequest(update_info))

    async def end_update(self, version: int) -> float:
        """Install what was received as `version` and go on; returns the pause in seconds."""
        await self.engine.finish_weight_update(str(version))
        await self.engine.resume_generation()
        self._updating.clear()
        self.told["engine/version"] = float(version)
        self._count_replying(0)
        return time.monotonic() - self._paused_at

    async def version(self) -> int:
        """The policy version this engine samples from."""
        return int(await self.engine.get_weight_version())

    async def received_fingerprints(self) -> dict[str, Fingerprint]:
        """Of the tensors of the last update, as the engine's first worker received them."""
        results = await self.engine.collective_rpc("received_fingerprints")
        return {name: (pair[0], pair[1]) for name, pair in results[0].items()}

    def num_flying(self) -> int:
        """Sequences in the engine at this moment."""
        return sum(self._flying.values())

    def live_facts(self) -> dict[str, float]:
        """For telemetry: what is newest, by key of the table of metrics; from any thread."""
        return {"engine/tokens": float(self.num_tokens), **self.told}

    def tokens_sampled(self) -> int:
        """Response tokens since the engine started."""
        return self.num_tokens

    def __repr__(self) -> str:
        return f"RolloutEngine({self.spec.name})"


def _prompt_logprobs(output: "RequestOutput") -> np.ndarray:
    assert output.prompt_logprobs is not None
    assert output.prompt_token_ids is not None
    values = [0.0]
    for token, step in zip(
        output.prompt_token_ids[1:], list(output.prompt_logprobs)[1:], strict=True
    ):
        assert step is not None
        values.append(step[token].logprob)
    return np.asarray(values, dtype=np.float32)
