"""Weight transfer over gloo between real processes: what arrives, and what happens if nobody comes.

The sender runs in the test process, the receiver in another one.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rl.fingerprints import differing, fingerprint
from tests.integration import receiving
from tests.integration.processes import Ranks, free_port

pytestmark = pytest.mark.slow

TIMEOUT_S = 5.0
BUCKET_BYTES = 4096


@pytest.fixture(scope="module")
def engine() -> Iterator[Ranks]:
    """The process of the receiver."""
    with Ranks(1, is_joined=False) as ranks:
        ranks.run(receiving.ready)
        yield ranks


@dataclass
class Client:
    """The control calls to an engine, by tasks of its process."""

    engine: Ranks
    dies_at_load: int | None = None
    fails_to: str = ""
    answers: list[dict] = field(default_factory=list)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the group."""
        self._fail_at("join")
        self.engine.run(receiving.join, init_info, self.dies_at_load, deadline_s=60)

    def start_weight_update(self) -> None:
        """A plain module needs no preparation."""

    def update_weights(self, update_info: Any) -> None:
        """Receive one update."""
        self._fail_at("receive")
        self.answers += self.engine.run(receiving.receive, update_info, deadline_s=60)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing is left to do."""

    def _fail_at(self, phase: str) -> None:
        if self.fails_to == phase:
            raise RuntimeError(f"engine-0 has no room to {phase}")


def open_sender(client: Client, weights: receiving.Weights, timeout_s: float = TIMEOUT_S) -> Any:
    """The real sending end around a real module."""
    from vllm.distributed.weight_transfer.base import ModuleSource

    from actors.gloo_transport import GlooTrainerInitInfo, GlooTrainerWeightTransferEngine

    info = GlooTrainerInitInfo(
        rank=0,
        master_address="127.0.0.1",
        master_port=free_port(),
        world_size=2,
        bucket_bytes=BUCKET_BYTES,
        timeout_s=timeout_s,
    )
    return GlooTrainerWeightTransferEngine.trainer_init(
        info, client=client, source=ModuleSource(weights)
    )


def test_every_dtype_and_shape_arrives_bit_by_bit_also_the_second_time(engine):
    weights, client = receiving.Weights(seed=0), Client(engine)
    sender = open_sender(client, weights)
    for version in range(2):
        with torch.no_grad():
            for parameter in weights.parameters():
                parameter.add_(version)
        sender.send_weights()
        answer = client.answers[-1]
        sent = receiving.as_arrays(weights)
        assert answer["weights"].keys() == sent.keys()
        assert all((answer["weights"][name] == sent[name]).all() for name in sent)
        prints = {name: fingerprint(p) for name, p in weights.named_parameters()}
        assert differing(prints, answer["received"]) == []
    assert client.answers[-1]["loads"] > 2 * 10  # it did travel in several buckets
    sender.shutdown()


def test_both_ends_cut_the_stream_alike_and_within_the_limit():
    from vllm.distributed.weight_transfer.base import ModuleSource

    from actors.gloo_transport import ALIGNMENT, GlooUpdateInfo, buckets, num_bytes

    metadata = ModuleSource(receiving.Weights(seed=0)).metadata()
    info = GlooUpdateInfo(
        names=[meta.name for meta in metadata],
        dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metadata],
        shapes=[list(meta.shape) for meta in metadata],
    )
    assert info.metadata() == metadata
    cut = list(buckets(metadata, BUCKET_BYTES))
    assert [meta for bucket in cut for meta in bucket] == metadata
    assert all(num_bytes(meta) % ALIGNMENT == 0 for meta in metadata)
    sizes = [(len(bucket), sum(map(num_bytes, bucket))) for bucket in cut]
    assert all(size <= BUCKET_BYTES for count, size in sizes if count > 1)
    assert any(size > BUCKET_BYTES for count, size in sizes if count == 1)
    assert list(buckets([], BUCKET_BYTES)) == []


def test_a_missing_member_is_an_error_within_the_time_out():
    from torch.distributed import DistStoreError

    from actors.gloo_transport import join

    started = time.monotonic()
    with pytest.raises(DistStoreError):
        join("127.0.0.1", free_port(), 0, 2, 2.0)
    print(f"MEASURED missing member: {time.monotonic() - started:.1f} s of 2")
    assert time.monotonic() - started < 2.0 + 3


def test_an_engine_that_cannot_join_is_quoted(engine):
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="engine-0 has no room to join"):
        open_sender(Client(engine, fails_to="join"), receiving.Weights(seed=0), 2.0)
    assert time.monotonic() - started < 2.0 + 3


def test_an_engine_that_cannot_take_the_weights_is_quoted(engine):
    client = Client(engine, fails_to="receive")
    sender = open_sender(client, receiving.Weights(seed=0))
    assert failure_s(sender, "engine-0 has no room to receive") < TIMEOUT_S + 3


def test_an_engine_that_left_is_an_error_within_the_time_out(engine):
    client = Client(engine, fails_to="receive")
    sender = open_sender(client, receiving.Weights(seed=0))
    engine.run(receiving.leave)
    assert failure_s(sender, "engine-0 has no room to receive") < TIMEOUT_S + 3


def test_a_receiver_gives_up_on_a_silent_sender(engine):
    sender = open_sender(Client(engine), receiving.Weights(seed=0), 3.0)
    started = time.monotonic()
    message = engine.run(receiving.wait_for_a_silent_sender)[0]
    print(f"MEASURED silent sender: {time.monotonic() - started:.1f} s of 3")
    assert "imed out" in message
    assert 2 < time.monotonic() - started < 3.0 + 3
    sender.shutdown()


def test_an_engine_that_dies_half_way_is_an_error_within_the_time_out(engine):
    """The last test of this file: it takes the engine's process along."""
    client = Client(engine, dies_at_load=3)
    sender = open_sender(client, receiving.Weights(seed=0))
    assert failure_s(sender, "rank 0 died") < TIMEOUT_S + 3


def failure_s(sender: Any, message: str) -> float:
    """Seconds until the sender gives up with `message`, and refuses to go on after that."""
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        sender.send_weights()
    elapsed = time.monotonic() - started
    print(f"MEASURED {message}: {elapsed:.1f} s of {TIMEOUT_S}")
    with pytest.raises(AssertionError, match="the transfer group was lost"):
        sender.send_weights()
    return elapsed
