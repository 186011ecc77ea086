"""Weight transfer over gloo, for engines on CPU: both ends, and what every receiving end records.

A stateless gloo group joins the learner's rank 0 (the sender, rank 0 of the group) and every worker
of every engine. Tensors travel packed in byte buffers that both sides cut alike from the metadata.

    learner rank 0                               engine worker
    start_weight_update()            ─ RPC ▶    initialize_layerwise_reload
    update_weights(names, shapes)    ─ RPC ▶    for each bucket: broadcast, load_weights
      for each bucket: pack, broadcast ─ gloo ▶
    finish_weight_update()           ─ RPC ▶    finalize, refresh the tied head

Every receiver here, also the NCCL and IPC ones, records a fingerprint of each tensor it was handed,
so a failed log-prob probe can name the tensors that differ (`rl.fingerprints`).
"""

import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from torch.distributed import BroadcastOptions, ProcessGroup
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from rl.fingerprints import Fingerprint, fingerprint

ALIGNMENT = 16
"""Bytes; every tensor starts at a multiple inside a bucket, so views of any dtype are legal."""


GRACE_S = 2.0
"""How long the engines' own account of a failure is waited for: it says more than a time-out."""


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """How an engine worker joins the group; `rank_offset` differs from engine to engine."""

    master_address: str
    master_port: int
    world_size: int
    rank_offset: int
    bucket_bytes: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What one update sends, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    def metadata(self) -> list[ParamMeta]:
        """The same, one record per tensor."""
        return [
            ParamMeta(name, getattr(torch, dtype), tuple(shape))
            for name, dtype, shape in zip(self.names, self.dtype_names, self.shapes, strict=True)
        ]


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """How the learner opens the group."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    master_port: int
    world_size: int
    bucket_bytes: int
    timeout_s: float


def num_bytes(meta: ParamMeta) -> int:
    """Bytes of a tensor on the wire, rounded up to the alignment."""
    size = meta.dtype.itemsize
    for length in meta.shape:
        size *= length
    return -(-size // ALIGNMENT) * ALIGNMENT


def buckets(metadata: list[ParamMeta], bucket_bytes: int) -> Iterator[list[ParamMeta]]:
    """Cut the stream into runs of at most `bucket_bytes`; a larger tensor is a run of its own."""
    bucket: list[ParamMeta] = []
    filled = 0
    for meta in metadata:
        if bucket and filled + num_bytes(meta) > bucket_bytes:
            yield bucket
            bucket, filled = [], 0
        bucket.append(meta)
        filled += num_bytes(meta)
    if bucket:
        yield bucket


def join(address: str, port: int, rank: int, world_size: int, timeout_s: float) -> ProcessGroup:
    """Join the gloo group; raises `torch.distributed.DistStoreError` when a member is missing."""
    group = stateless_init_torch_distributed_process_group(
        address, port, rank, world_size, "gloo", timeout=timedelta(seconds=timeout_s)
    )
    assert isinstance(group, ProcessGroup)
    return group


def broadcast(group: ProcessGroup, buffer: torch.Tensor, timeout_s: float) -> None:
    """Broadcast from rank 0; raises `RuntimeError` once `timeout_s` has passed."""
    options = BroadcastOptions()
    options.rootRank = 0
    options.timeout = timedelta(seconds=timeout_s)
    group.broadcast([buffer], options).wait()


def engine_error(call: Future[None], error: RuntimeError) -> BaseException:
    """What the engines say about a failed transfer, where they say anything; else `error`."""
    wait([call], GRACE_S)
    said = call.exception() if call.done() else None
    if said is None:
        return error
    said.__cause__ = error
    return said


def let_go(error: BaseException) -> None:
    """Free what the calls behind an error hold, the group above all.

    Peers that still wait in a group get an error, not a time-out, once its last member here is
    gone, and whoever waits answers nobody and would pass for stuck.
    """
    traceback.clear_frames(error.__traceback__)


@contextmanager
def recording(model: torch.nn.Module) -> Iterator[dict[str, Fingerprint]]:
    """Fingerprint every tensor that passes through `model.load_weights` inside the block."""
    seen: dict[str, Fingerprint] = {}
    load: Callable[..., Any] = model.load_weights  # pyright: ignore[reportAssignmentType]

    def tapped(weights: Iterable[tuple[str, torch.Tensor]], **kwargs: Any) -> Any:
        def tap() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                seen[name] = fingerprint(tensor)
                yield name, tensor

        return load(tap(), **kwargs)

    # Shadow the method on this one instance for the length of the block.
    object.__setattr__(model, "load_weights", tapped)
    try:
        yield seen
    finally:
        object.__delattr__(model, "load_weights")


def refresh_tied_head(model: torch.nn.Module) -> None:
    """Let a tied CPU lm_head take over the new embedding.

    The CPU kernels keep a prepacked copy of the head's weight. With tied embeddings no checkpoint
    tensor is named after the head, so the layerwise reload of vLLM 0.32 leaves the copy as it was
    and samples come from a mixture of old and new weights. Goes when vLLM repacks tied heads.
    """
    head = getattr(model, "lm_head", None)
    method = getattr(head, "quant_method", None)
    if head is not None and method is not None and head.weight.device.type == "cpu":
        method.process_weights_after_loading(head)


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """The receiving end, one in every worker of an engine."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    group: ProcessGroup | None = None
    received: dict[str, Fingerprint]
    bucket_bytes: int
    timeout_s: float

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the learner's group."""
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.bucket_bytes = init_info.bucket_bytes
        self.timeout_s = init_info.timeout_s
        self.group = join(
            init_info.master_address,
            init_info.master_port,
            init_info.rank_offset + rank,
            init_info.world_size,
            init_info.timeout_s,
        )

    def start_weight_update(self) -> None:
        """Prepare the layerwise reload."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Finish the layerwise reload and mend what it leaves stale."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        refresh_tied_head(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive bucket by bucket and load each as it arrives."""
        assert self.group is not None, "init_transfer_engine() comes first"
        with recording(self.model) as self.received:
            for bucket in buckets(update_info.metadata(), self.bucket_bytes):
                buffer = torch.empty(sum(map(num_bytes, bucket)), dtype=torch.uint8)
                broadcast(self.group, buffer, self.timeout_s)
                self.model.load_weights(self._unpack(bucket, buffer))  # pyright: ignore[reportCallIssue]

    def _unpack(
        self, bucket: list[ParamMeta], buffer: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        start = 0
        for meta in bucket:
            end = start + num_bytes(meta)
            flat = buffer[start:end].view(meta.dtype)
            yield meta.name, flat[: torch.Size(meta.shape).numel()].view(meta.shape)
            start = end

    def shutdown(self) -> None:
        """Leave the group; peers that wait in it get an error at once."""
        self.group = None


class RecordingNCCLEngine(NCCLWeightTransferEngine):
    """vLLM's NCCL receiver, recording fingerprints."""

    received: dict[str, Fingerprint]

    def receive_weights(self, update_info: Any) -> None:
        """Receive as the base class does."""
        with recording(self.model) as self.received:
            super().receive_weights(update_info)


class RecordingIPCEngine(IPCWeightTransferEngine):
    """vLLM's CUDA IPC receiver, recording fingerprints.

    A packed update arrives in several calls, so the record grows until the next update starts.
    """

    received: dict[str, Fingerprint]

    def start_weight_update(self) -> None:
        """Start as the base class does, with an empty record."""
        self.received = {}
        super().start_weight_update()

    def receive_weights(self, update_info: Any) -> None:
        """Receive as the base class does."""
        with recording(self.model) as part:
            super().receive_weights(update_info)
        self.received |= part


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The sending end, on every learner rank; only rank 0 is in the gloo group."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource,
        init_info: GlooTrainerInitInfo,
        group: ProcessGroup | None,
    ) -> None:
        super().__init__(client=client, source=source, is_sender=init_info.is_sender)
        self.init_info = init_info
        self.group = group

    @classmethod
    def trainer_init(
        cls,
        init_info: GlooTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        """Open the group while the engines join it."""
        assert source is not None
        if not init_info.is_sender:
            return cls(client=client, source=source, init_info=init_info, group=None)
        worker_info = GlooInitInfo(
            master_address=init_info.master_address,
            master_port=init_info.master_port,
            world_size=init_info.world_size,
            rank_offset=1,
            bucket_bytes=init_info.bucket_bytes,
            timeout_s=init_info.timeout_s,
        )
        # Both sides block until all have joined, so the engines are asked from a second thread.
        pool = ThreadPoolExecutor(max_workers=1)
        joined = pool.submit(client.init_weight_transfer_engine, asdict(worker_info))
        try:
            group = join(
                init_info.master_address,
                init_info.master_port,
                0,
                init_info.world_size,
                init_info.timeout_s,
            )
            joined.result(timeout=init_info.timeout_s + GRACE_S)
        except RuntimeError as error:
            group = None
            let_go(error)
            raise engine_error(joined, error)  # noqa: B904 - it carries its cause, if it has one
        finally:
            pool.shutdown(wait=False)  # joining a thread whose peer is stuck would hang here
        return cls(client=client, source=source, init_info=init_info, group=group)

    def send_weights(self) -> None:
        """Gather, pack and broadcast; every rank calls this, since the gather is a collective."""
        assert self.source is not None
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        metadata = self.source.metadata()
        update_info = GlooUpdateInfo(
            names=[meta.name for meta in metadata],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metadata],
            shapes=[list(meta.shape) for meta in metadata],
        )
        self.client.start_weight_update()
        pool = ThreadPoolExecutor(max_workers=1)
        received = pool.submit(self.client.update_weights, asdict(update_info))
        try:
            self._broadcast(metadata)
            received.result(timeout=self.init_info.timeout_s + GRACE_S)
        except RuntimeError as error:
            self.group = None
            let_go(error)
            raise engine_error(received, error)  # noqa: B904 - it carries its cause, if it has one
        except BaseException as error:
            self.group = None
            let_go(error)
            raise
        finally:
            pool.shutdown(wait=False)
        self.client.finish_weight_update()

    def _broadcast(self, metadata: list[ParamMeta]) -> None:
        assert self.source is not None
        assert self.group is not None, "the transfer group was lost; open a new one"
        stream = iter(self.source)
        for bucket in buckets(metadata, self.init_info.bucket_bytes):
            buffer = torch.empty(sum(map(num_bytes, bucket)), dtype=torch.uint8)
            start = 0
            for meta in bucket:
                name, tensor = next(stream)
                assert name == meta.name, f"source yielded {name}, metadata says {meta.name}"
                flat = tensor.detach().reshape(-1)
                target = buffer[start : start + flat.nbytes].view(meta.dtype)
                target.copy_(flat)
                start += num_bytes(meta)
            broadcast(self.group, buffer, self.init_info.timeout_s)
        # Ends the generator too, so the last gathered group is released on every rank.
        assert next(stream, None) is None, "the source yielded more than its metadata declares"

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


RECEIVERS = {
    "attune_gloo": GlooWeightTransferEngine,
    "attune_nccl": RecordingNCCLEngine,
    "attune_ipc": RecordingIPCEngine,
}
"""Names for vLLM's `WeightTransferConfig(backend=...)`."""


def register() -> None:
    """Make both ends known to vLLM's factories in this process; may run more than once."""
    for name, engine in RECEIVERS.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, engine)
    if "gloo" not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerWeightTransferEngine)
