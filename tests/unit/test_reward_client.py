"""A run's side of a reward service, before services that lie, hang, are busy or go away."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cluster.errors import Unrecoverable
from cluster.events import read_events
from cluster.scoring import merge_scores, reward_groups
from cluster.serve.client import check_service
from cluster.serve.definitions import definitions
from cluster.serve.wire import ARROW, decode_request, encode_scores
from configs.errors import ConfigError
from configs.schema import RunConfig
from tests.unit.test_reward_definitions import run
from tests.unit.test_reward_wire import rollout

Answer = Callable[[int, int], Any]
"""(number of the call, replies) -> scores by name, a status with its error,
an answer of a proxy, or seconds to hang."""

pytestmark = pytest.mark.timeout(60)


@contextmanager
def service(told: dict[str, Any], answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A service of one's own making on a free port: its address, and the tokens it was sent."""
    tokens: list[str] = []
    started: Any = threading.Event()
    calls = iter(range(1_000_000))

    async def listing(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization", ""))
        return web.json_response({"rewards": told, "max_replies": 64})

    async def score(request: web.Request) -> web.Response:
        asked = decode_request(await request.read(), ARROW)
        said = answer(next(calls), len(asked.rollouts))
        if isinstance(said, float):
            await asyncio.sleep(said)
            said = {"judge": [1.0] * len(asked.rollouts)}
        if isinstance(said, web.Response):
            return said
        if isinstance(said, tuple):
            return web.json_response({"error": said[1]}, status=said[0])
        return web.Response(body=encode_scores(said, ARROW), content_type=ARROW)

    async def main() -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/rewards", listing), web.post("/v1/score", score)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        started.port, started.stop = runner.addresses[0][1], asyncio.Event()
        started.loop = asyncio.get_running_loop()
        started.set()
        await started.stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{started.port}", tokens
    finally:
        started.loop.call_soon_threadsafe(started.stop.set)
        thread.join(10)


def judged(config: RunConfig, *texts: str) -> tuple[tuple[float, ...], int]:
    """Scores of replies, each to another prompt, and how many calls had to be made again."""
    judge = reward_groups(config)["judge"]
    replies = [rollout(text, group) for group, text in enumerate(texts)]
    return merge_scores(asyncio.run(judge.score(replies)))["judge"], judge.retries


def asking(tmp_path: Path, url: str, **feedback: float) -> RunConfig:
    (tmp_path / "run").mkdir(exist_ok=True)
    settings = [f"feedback.{name}={value}" for name, value in feedback.items()]
    return run(tmp_path, f"feedback.service={url}", *settings)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"judge": [float("nan"), 0.0]}, "reward judge returned nan for reply 0"),
        ({"judge": [1.0]}, "reward judge returned 1 scores for 2 replies"),
        ({"judg": [1.0, 1.0]}, "no scores of reward judge in the answer"),
        ((422, "judge judge: out of memory"), "judge judge: out of memory"),
    ],
)
def test_a_lie_is_told_by_name_asked_again_and_never_a_score(
    tmp_path: Path, lie: Any, message: str
) -> None:
    told = definitions(run(tmp_path))
    with service(told, lambda call, n: lie if call == 0 else {"judge": [2.0] * n}) as (url, _):
        config = asking(tmp_path, url, attempts=2)
        assert judged(config, "a", "b") == ((2.0, 2.0), 1)
    events = read_events(tmp_path / "run")
    assert [event["kind"] for event in events] == ["judge_failed"]
    assert message in events[0]["reason"]
    with service(told, lambda *_: lie) as (url, _):
        with pytest.raises(RuntimeError, match=r"failed 2 times \(phase: score\)") as failure:
            judged(asking(tmp_path, url, attempts=2), "a", "b")
        assert f"reward judge at {url}" in str(failure.value)
        assert message in str(failure.value)


def test_a_slow_service_is_a_failed_try_that_names_the_setting(tmp_path: Path) -> None:
    told = definitions(run(tmp_path))
    with service(told, lambda call, n: 30.0 if call == 0 else {"judge": [2.0] * n}) as (url, _):
        assert judged(asking(tmp_path, url, attempts=2, deadline_s=3), "a") == ((2.0,), 1)
    with (
        service(told, lambda *_: 30.0) as (url, _),
        pytest.raises(RuntimeError, match=r"no answer within 1 s \(feedback\.deadline_s\)"),
    ):
        judged(asking(tmp_path, url, attempts=1, deadline_s=1), "a")


def test_a_full_queue_is_waited_for_within_one_try(tmp_path: Path) -> None:
    told = definitions(run(tmp_path))
    with service(told, lambda c, n: (503, "full") if c < 4 else {"judge": [2.0] * n}) as (url, _):
        assert judged(asking(tmp_path, url, attempts=1), "a") == ((2.0,), 0)
    with (
        service(told, lambda *_: (503, "full")) as (url, _),
        pytest.raises(RuntimeError, match=r"no answer within 1 s .*; HTTP 503: full"),
    ):
        judged(asking(tmp_path, url, attempts=1, deadline_s=1), "a")


def test_a_proxy_that_has_no_route_yet_is_waited_for(tmp_path: Path) -> None:
    told = definitions(run(tmp_path))

    def answer(call: int, n: int) -> Any:
        return web.Response(status=404, text="no route") if call < 2 else {"judge": [2.0] * n}

    with service(told, answer) as (url, _):
        assert judged(asking(tmp_path, url, attempts=1), "a") == ((2.0,), 1)


def test_a_replica_that_dies_is_waited_out_within_one_try(tmp_path: Path) -> None:
    told = definitions(run(tmp_path))
    with service(told, lambda c, n: (500, "died") if c < 2 else {"judge": [2.0] * n}) as (url, _):
        assert judged(asking(tmp_path, url, attempts=1), "a") == ((2.0,), 1)


def test_what_asking_again_cannot_mend_ends_the_run_at_once(tmp_path: Path) -> None:
    told = definitions(run(tmp_path))
    calls = []

    def refuse(call: int, n: int) -> tuple[int, str]:
        calls.append(call)
        return 412, "the definition of judge is another one now"

    with service(told, refuse) as (url, _), pytest.raises(Unrecoverable, match="another one now"):
        judged(asking(tmp_path, url), "a")
    assert len(calls) == 1


def test_the_token_is_sent_and_a_service_of_other_rewards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTUNE_REWARD_TOKEN", "word")
    told = definitions(run(tmp_path))
    with service(told, lambda *_: {}) as (url, tokens):
        check_service(asking(tmp_path, url))
        assert tokens == ["Bearer word"]
        (tmp_path / "other.py").write_text("def reward(p, r, rows): return [1.0] * len(r)")
        config = run(
            tmp_path,
            f"feedback.service={url}",
            f"feedback.rewards.judge.path={tmp_path / 'other.py'}",
        )
        with pytest.raises(ConfigError, match=r"^feedback\.rewards\.judge: .*path has other"):
            check_service(config)
    with (
        service({"style": told["judge"]}, lambda *_: {}) as (url, _),
        pytest.raises(ConfigError, match="serves no reward of this name; there are style"),
    ):
        check_service(asking(tmp_path, url))


def test_a_service_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with service({}, lambda *_: {}) as (url, _):
        pass
    with pytest.raises(ConfigError) as refusal:
        check_service(asking(tmp_path, url))
    assert str(refusal.value).startswith(f"feedback.service: {url} does not answer")
    assert "attune serve rewards" in str(refusal.value)
    assert "\n" not in str(refusal.value)
