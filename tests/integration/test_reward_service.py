"""The reward service on real Ray Serve: scores over HTTP, a full queue, a killed replica."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from actors.reward import build_judge
from cluster.runtime import free_port
from cluster.scoring import merge_scores, reward_groups
from cluster.serve.client import check_service
from cluster.serve.token import VARIABLE
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import RunConfig
from rl.types import Prompt, Rollout
from rl.world.replies import draw_request, write_prompt
from tests.integration.test_failing_judges import rollout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOKEN = "word"
CODE = """
import os, time
def reward(prompts, replies, rows):
    for reply in replies:
        if reply == "mark" and not os.path.exists(MARK):
            open(MARK + ".new", "w").write(str(os.getpid()))
            os.rename(MARK + ".new", MARK)
            time.sleep(60)
    time.sleep(0.1)
    return [float(len(reply)) for reply in replies]
"""


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, world_model: Path, ray_cluster: None
) -> Iterator[RunConfig]:
    """A run whose rewards a small service judges: one replica, two requests in it, four waiting."""
    from ray import serve

    from cluster.serve.service import start_service

    folder = tmp_path_factory.mktemp("service")
    (folder / "judge.py").write_text(f"MARK = {str(folder / 'mark')!r}\n{CODE}")
    (folder / "token").write_text(TOKEN)
    port = free_port()
    config = load_config(
        None,
        [
            f"model.path={world_model}",
            "data.train=none",
            "data.samples_per_prompt=2",
            "feedback.rewards.gold.kind=gold",
            "feedback.rewards.judge.kind=function",
            f"feedback.rewards.judge.path={folder / 'judge.py'}",
            f"feedback.service=http://127.0.0.1:{port}",
            "algorithm.name=rloo",
            "algorithm.num_steps=1",
            f"cluster.run_dir={folder}",
            f"cluster.reward_service.port={port}",
            f"cluster.reward_service.token_file={folder / 'token'}",
            "cluster.reward_service.batch_requests=1",
            "cluster.reward_service.max_queued=4",
            "cluster.reward_service.max_replies=2",
            "cluster.reward_service.health_period_s=1",
        ],
    )
    start_service(config, TOKEN)
    yield config
    serve.shutdown()


def replies(texts: list[str], row: dict, group: int = 0) -> list[Rollout]:
    prompt = Prompt(row=0, text=row["prompt"], tokens=(5,), extra=row)
    return [replace(rollout(text), prompt=prompt, group_id=group) for text in texts]


def test_a_service_judges_as_the_judges_do_and_asks_for_its_token(
    served: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_service(served)
    rng = random.Random(0)
    place, question = draw_request(rng)
    prompt = write_prompt(rng, place, question)
    row = {"prompt": prompt, "place": place, "question": question}
    texts = ["the hotel is near the station .", "no", "please ask again"]
    both = reward_groups(served)
    for name, group in both.items():
        own = build_judge(name, served.feedback.rewards[name]).score(replies(texts, row))
        assert merge_scores(asyncio.run(group.score(replies(texts, row)))) == own
        assert len(own) > 1 or name == "judge", "parts of the gold reward are lost"
        assert group.retries == 0

    service = served.cluster.reward_service.model_copy(update={"token_file": None})
    cluster = served.cluster.model_copy(update={"reward_service": service})
    without = served.model_copy(update={"cluster": cluster})
    for token in ("", "wrong"):
        monkeypatch.setenv(VARIABLE, token)
        with pytest.raises(ConfigError, match=f"HTTP 401: wrong or missing token.*{VARIABLE}"):
            check_service(without)


def test_another_program_asks_in_json_and_is_told_what_is_wrong(served: RunConfig) -> None:
    async def post(body: dict) -> tuple[int, dict]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
            session.post(f"{served.feedback.service}/v1/score", json=body) as response,
        ):
            return response.status, await response.json()

    rows = [{"prompt": "where?", "reply": reply} for reply in ("", "four")]
    right = {"rewards": ["judge"], "replies": rows}
    assert asyncio.run(post(right)) == (200, {"scores": {"judge": [0.0, 4.0]}})
    status, told = asyncio.run(post(right | {"rewards": ["style"]}))
    assert (status, told["error"]) == (404, "no reward style: there are gold, judge")
    status, told = asyncio.run(post(right | {"rewards": ["gold"]}))  # its rows are not the world's
    assert status == 422
    assert told["error"]


def test_a_full_queue_refuses_and_a_run_waits_until_all_are_scored(served: RunConfig) -> None:
    """24 requests at once, of which one is judged, one is next, and four may wait."""
    body = {"rewards": ["judge"], "replies": [{"prompt": "where?", "reply": "four"}]}
    sent = [r for group in range(24) for r in replies(["a", "bcd"], {"prompt": "?"}, group)]
    judge = reward_groups(served)["judge"]

    async def crowd() -> tuple[list[int], list]:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:

            async def one() -> int:
                url = f"{served.feedback.service}/v1/score"
                async with session.post(url, json=body) as response:
                    return response.status

            asking = asyncio.create_task(judge.score(sent))
            return await asyncio.gather(*(one() for _ in range(12))), await asking

    statuses, scores = asyncio.run(crowd())
    assert set(statuses) == {200, 503}, statuses
    assert merge_scores(scores)["judge"] == (1.0, 3.0) * 24
    assert judge.retries == 0, "a full queue is no failed try"


def test_a_replica_killed_in_mid_request_costs_no_score(served: RunConfig) -> None:
    mark = Path(served.cluster.run_dir) / "mark"
    judge = reward_groups(served)["judge"]

    async def killed() -> list:
        asking = asyncio.create_task(judge.score(replies(["mark", "x"], {"prompt": "?"})))
        end = time.monotonic() + 60
        while not mark.exists():
            assert time.monotonic() < end, "the request did not reach the judge"
            await asyncio.sleep(0.05)
        os.kill(int(mark.read_text()), signal.SIGKILL)
        return await asking

    assert merge_scores(asyncio.run(killed()))["judge"] == (4.0, 1.0)
    assert judge.retries > 0
