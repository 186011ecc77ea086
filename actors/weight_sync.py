"""The learner's end of weight sync: what to send, over which transport, and the check after it.

Rank 0 is the sender; every rank iterates the source, because gathering ZeRO-3 shards is a
collective. The receiving ends live in `actors.gloo_transport`, the calls to the engines go through
a client that the cluster room provides.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from actors import zero
from actors.gloo_transport import GlooTrainerInitInfo, register
from actors.learner import Learner
from configs.cluster import SyncConfig
from rl.fingerprints import Fingerprint, fingerprint


class ZeroSource(WeightSource):
    """The full tensors of a ZeRO-3 policy, one layer at a time; a fresh pass per iteration."""

    def __init__(self, learner: Learner) -> None:
        self.model = zero.inner_model(learner.engines["policy"])
        self.layer_groups = learner.groups
        self.dtype = learner.dtype
        self.sent: dict[str, Fingerprint] = {}
        """Of the last pass, on the sender."""
        self._pass: Iterator[tuple[list[str], list[torch.Tensor]]] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Names, wire dtype and full shapes; ZeRO-3 keeps shapes in `ds_shape`. Gathers nothing."""
        return [
            ParamMeta(name, self.dtype, tuple(getattr(p, "ds_shape", p.shape)))
            for name, p in self.model.named_parameters()
        ]

    def groups(self) -> list[list[str]]:
        """One list of names per decoder layer."""
        return self.layer_groups

    def iter_groups(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        """Gather group by group; a group is valid until the next one is asked for."""
        self._pass = self._groups()
        return self._pass

    def _groups(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        for group in zero.gathered_groups(self.model, self.layer_groups):
            yield (
                [name for name, _ in group],
                [tensor.to(self.dtype) for _, tensor in group],
            )

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The same, tensor by tensor, remembering fingerprints of what was handed out."""
        self.sent = {}
        for names, tensors in self.iter_groups():
            for name, tensor in zip(names, tensors, strict=True):
                self.sent[name] = fingerprint(tensor)
                yield name, tensor

    def finish_pass(self) -> None:
        """End the pass that sending gave up, or make a whole one where it did not come to that.

        Gathering is a collective: the other ranks wait in it until this one has been through.
        """
        for _ in self._pass if self._pass is not None else self.iter_groups():
            pass
        self._pass = None

    def forget_pass(self) -> None:
        """The next pass is a new one."""
        self._pass = None


def open_sender(
    learner: Learner,
    source: WeightSource,
    client: VLLMWeightSyncClient,
    *,
    transport: str,
    address: tuple[str, int],
    num_engine_workers: int,
) -> TrainerWeightTransferEngine:
    """Form the transfer group and return the sending end; every learner rank calls this.

    `address` is a host and free port of rank 0; the group is the sender and every engine worker.
    """
    settings = learner.config.cluster.sync
    register()
    info = _init_info(transport, settings, address, num_engine_workers, learner.rank)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def _init_info(
    transport: str,
    settings: SyncConfig,
    address: tuple[str, int],
    num_engine_workers: int,
    rank: int,
) -> TrainerInitInfo:
    bucket_bytes = settings.bucket_mib * 2**20
    world_size = 1 + num_engine_workers
    match transport:
        case "gloo":
            return GlooTrainerInitInfo(
                rank=rank,
                master_address=address[0],
                master_port=address[1],
                world_size=world_size,
                bucket_bytes=bucket_bytes,
                timeout_s=settings.stall_s,
            )
        case "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            return NCCLTrainerInitInfo(
                rank=rank,
                master_address=address[0],
                master_port=address[1],
                world_size=world_size,
                packed=True,
                packed_buffer_size_bytes=bucket_bytes,
            )
        case "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
    raise ValueError(f"cluster.sync.transport is {transport}; use auto, gloo, nccl or ipc")


def probe_gap(
    own: Sequence[torch.Tensor], engine: Sequence[np.ndarray]
) -> tuple[float, tuple[int, int]]:
    """Largest difference in nats between two sets of log-probs, and its (sequence, token)."""
    worst, place = 0.0, (0, 0)
    for index, (left, right) in enumerate(zip(own, engine, strict=True)):
        difference = (left - torch.as_tensor(np.array(right))).abs()
        # A NaN compares false with everything and must not pass for agreement.
        difference = torch.nan_to_num(difference, nan=float("inf"))
        if len(difference) and float(difference.max()) > worst:
            worst, place = float(difference.max()), (index, int(difference.argmax()))
    return worst, place
