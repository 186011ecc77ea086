"""The reward service: a run's named rewards as an autoscaled Ray Serve deployment.

    HTTP ─▶ proxy, queue of at most `max_queued` ─▶ replica: batch ─▶ judges, one thread
                │ full                                 │ one batch too long
                └─▶ 503, ask again                     └─▶ unhealthy, replaced

Every replica holds all named rewards. `GET /v1/rewards` lists them with their definitions,
`POST /v1/score` judges replies (`cluster.serve.wire`).
"""

import asyncio
import hmac
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from actors.reward import build_judge
from cluster.runtime import role_env, runtime_env
from cluster.scoring import reward_specs
from cluster.serve.checks import check_rewards
from cluster.serve.definitions import Definition, definitions
from cluster.serve.judging import Outcome, judge_together
from cluster.serve.token import REMEDY, digest_of, read_token
from cluster.serve.wire import JSON, ScoreRequest, WireError, decode_request, encode_scores
from configs.errors import ConfigError
from configs.load import load_config
from configs.paths import absolute_paths
from configs.schema import RunConfig

NAME = "rewards"
"""Of the Serve application and of its deployment."""
MIB = 1 << 20


class Rewards:
    """One replica."""

    async def __init__(
        self, config: RunConfig, told: dict[str, Definition], token_digest: str | None
    ) -> None:
        self.config, self.told, self.token_digest = config, told, token_digest
        self.service = config.cluster.reward_service
        self.since: float | None = None
        """When the batch in progress began."""
        # Models are loaded and called by one thread: its loop, if it has one, stays its own.
        self.thread = ThreadPoolExecutor(1, "judges")
        self.judges = await self._in_thread(self._load)
        batching: Any = self._judged
        batching.set_max_batch_size(self.service.batch_requests)
        batching.set_batch_wait_timeout_s(self.service.batch_wait_s)

    def _load(self) -> dict[str, Any]:
        return {
            name: build_judge(name, reward, reward_specs(self.config, name, reward)[0])
            for name, reward in self.config.feedback.rewards.items()
        }

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *args)

    async def __call__(self, request: Request) -> Response:
        """Answer one request; errors are JSON, `{"error": line}`."""
        if not self._may_ask(request):
            return _error(401, "wrong or missing token: send it as Authorization: Bearer TOKEN")
        match request.method, request.url.path:
            case "GET", "/v1/rewards":
                told = {"rewards": self.told, "max_replies": self.service.max_replies}
                return Response(json.dumps(told), media_type=JSON)
            case "POST", "/v1/score":
                return await self._score(request)
        return _error(404, "ask GET /v1/rewards or POST /v1/score")

    def _may_ask(self, request: Request) -> bool:
        if self.token_digest is None:
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme == "Bearer" and hmac.compare_digest(digest_of(token), self.token_digest)

    async def _score(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip()
        limit = self.service.max_request_mib * MIB
        try:
            body = await _body(request, limit)
        except ClientDisconnect:
            return _error(400, "the request broke off")
        if body is None:
            return _error(413, f"more than {limit} bytes: send fewer replies")
        try:
            asked = decode_request(body, content_type)
        except WireError as error:
            return _error(400, str(error))
        for name in asked.rewards:
            if name not in self.judges:
                return _error(404, f"no reward {name}: there are {', '.join(self.judges)}")
        wanted, own = request.headers.get("if-match"), self._fingerprint(asked.rewards)
        if wanted not in (None, own):
            return _error(412, f"the definition of {', '.join(asked.rewards)} is another one now")
        outcome = await self._judged(asked)
        if isinstance(outcome, str):
            return _error(422, outcome)
        return Response(encode_scores(outcome, content_type), media_type=content_type)

    def _fingerprint(self, names: Sequence[str]) -> str:
        return ",".join(self.told[name]["fingerprint"] for name in names)

    @serve.batch
    async def _judged(self, requests: Sequence[ScoreRequest]) -> list[Outcome]:
        self.since = time.monotonic()
        try:
            return await self._in_thread(judge_together, self.judges, requests)
        finally:
            self.since = None

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises: here, one whose judge hangs."""
        longest, since = self.config.feedback.deadline_s, self.since
        if since is not None and time.monotonic() - since > longest:
            raise RuntimeError(f"a batch takes more than {longest:.0f} s (feedback.deadline_s)")


async def _body(request: Request, limit: int) -> bytes | None:
    """The whole body; None once it is longer than `limit` bytes."""
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _error(status: int, line: str) -> Response:
    return Response(json.dumps({"error": line}), status_code=status, media_type=JSON)


def application(config: RunConfig, token: str | None) -> serve.Application:
    """The deployment of a run's rewards; of the token only a digest leaves this process."""
    service, placement = config.cluster.reward_service, config.cluster.reward
    role = role_env(placement.cpus_per_worker, config.cluster.device)
    deployment = serve.deployment(
        name=NAME,
        autoscaling_config=AutoscalingConfig(
            min_replicas=service.min_replicas,
            max_replicas=service.max_replicas,
            target_ongoing_requests=service.target_requests,
            upscale_delay_s=service.upscale_delay_s,
            downscale_delay_s=service.downscale_delay_s,
            look_back_period_s=service.look_back_s,
        ),
        # One batch is judged while the next one comes together.
        max_ongoing_requests=2 * service.batch_requests,
        max_queued_requests=service.max_queued,
        health_check_period_s=service.health_period_s,
        health_check_timeout_s=service.health_timeout_s,
        ray_actor_options={
            "num_cpus": placement.cpus_per_worker,
            "num_gpus": placement.gpus_per_worker,
            "runtime_env": {"env_vars": runtime_env()["env_vars"] | role["env_vars"]},
        },
    )(Rewards)
    digest = None if token is None else digest_of(token)
    return deployment.bind(config, definitions(config), digest)


def build(args: dict[str, Any]) -> serve.Application:
    """For a Serve config file: `import_path: cluster.serve.app:build`.

    `args` are `config`, the path of a run's YAML, and `overrides`, a list. The proxies' address is
    not known here, so a token is required.
    """
    unknown = sorted(set(args) - {"config", "overrides"})
    if unknown or "config" not in args:
        raise ConfigError("args should be `config`, a run's YAML, and `overrides`, a list")
    config = absolute_paths(load_config(Path(args["config"]), list(args.get("overrides") or [])))
    token = read_token(config)
    if token is None:
        raise ConfigError(f"a reward service needs a token: {REMEDY}")
    check_rewards(config)
    return application(config, token)
