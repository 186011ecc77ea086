"""A model that only answers: in one process, or as a ZeRO-3 group where one device is too small.

The reference policy and reward models share it. With several workers the parameters are
partitioned over them; every worker is called with its own share of the sequences, and all run the
same number of forward passes, since each pass gathers weights.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from actors.modules import load_network
from actors.rendezvous import bind_stores
from actors.specs import FrozenSpec
from rl.batching import micro_batches, pad_tokens
from rl.logprobs import next_token_layout


class FrozenModel:
    """Log-probs of a policy or values of a judge, without gradients."""

    def __init__(self, spec: FrozenSpec, address: str = "") -> None:
        """Load; a group meets at `address`, a host and free port of its rank 0."""
        self.spec = spec
        self.device = torch.device(spec.device)
        self.network = self._load_group(address) if spec.world_size > 1 else self._load_alone()

    def _load_alone(self) -> Callable[..., torch.Tensor]:
        spec = self.spec
        network, head_is_new = load_network(spec.kind, spec.path, dtype=getattr(torch, spec.dtype))
        if head_is_new:
            raise ValueError(f"{spec.path}: no value head in the weights: not a reward model")
        return network.requires_grad_(False).eval().to(self.device)

    def _load_group(self, address: str) -> Callable[..., torch.Tensor]:
        from actors.zero import build_engine

        spec = self.spec
        host, _, port = address.rpartition(":")
        rank = {"RANK": spec.rank, "LOCAL_RANK": 0, "WORLD_SIZE": spec.world_size}
        os.environ.update({name: str(value) for name, value in rank.items()})
        os.environ.update({"MASTER_ADDR": host, "MASTER_PORT": port, "LOCAL_SIZE": "1"})
        if not dist.is_initialized():  # a judge of several models loads them one after another
            bind_stores()
            dist.init_process_group("nccl" if spec.device == "cuda" else "gloo")
        return build_engine(spec.kind, spec.path, dtype=getattr(torch, spec.dtype))

    @torch.inference_mode()
    def outputs(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        temperature: float = 1.0,
    ) -> list[torch.Tensor]:
        """Per sequence, the outputs from index `starts[i]` on.

        A policy answers with log-probs (n,) of the tokens at and after `starts[i]`; a judge with
        the values of the states before those tokens. At least one sequence: a member of a group
        without work of its own is called with any one.
        """
        tokens = pad_tokens(sequences, 0)
        lengths = [len(sequence) for sequence in sequences]
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            mask[row, start:length] = True
        results = torch.zeros(tokens.shape)
        for rows in self._passes(lengths):
            width = max(lengths[row] for row in rows)
            layout = next_token_layout(tokens[rows, :width], mask[rows, :width])
            inputs = [tokens[rows, :width].to(self.device), layout.sources.to(self.device)]
            if self.spec.kind == "policy":
                flat, _ = self.network(*inputs, layout.targets.to(self.device), temperature)
            else:
                flat = self.network(*inputs)
            results[rows, :width] = layout.scatter(flat.float().cpu())
        return [results[row, start : lengths[row]] for row, start in enumerate(starts)]

    def _passes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Micro-batches, filled up to the group's largest count by repeating the shortest row."""
        batches = micro_batches(lengths, range(len(lengths)), self.spec.max_tokens)
        count = torch.tensor(len(batches), device=self.device)
        if self.spec.world_size > 1:
            dist.all_reduce(count, op=dist.ReduceOp.MAX)
        shortest = min(range(len(lengths)), key=lambda row: lengths[row])
        return batches + [[shortest]] * (int(count) - len(batches))

    @property
    def config_path(self) -> Path:
        """config.json of the loaded folder."""
        return Path(self.spec.path) / "config.json"
