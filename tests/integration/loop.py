"""A learner, engines and their sync without collector or Ray Train: what runs are compared with."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.engines import EngineHandle, start_engines
from cluster.runtime import free_port, role_env
from configs.load import load_config
from configs.schema import RunConfig
from rl.types import Experience, Metrics


def tiny_run(model: Path, prompts: Path, run_dir: Path, *overrides: str) -> RunConfig:
    """A small online run on the built-in world's model, judged by reply length."""
    judge = run_dir.parent / "judge.py"
    judge.write_text(
        "def reward(prompts, replies, rows):\n"
        "    return [reply.count(' ') / 24 - 0.1 * reply.count('.') for reply in replies]\n"
    )
    return load_config(
        None,
        [
            f"model.path={model}",
            "model.max_length=64",
            f"data.train={prompts}",
            "data.prompts_per_step=8",
            "data.samples_per_prompt=4",
            "data.sampling.max_new_tokens=16",
            "data.validation_prompts=8",
            "feedback.rewards.judge.kind=function",
            f"feedback.rewards.judge.path={judge}",
            "algorithm.name=rloo",
            "algorithm.num_steps=4",
            "algorithm.optimizer.learning_rate=1e-3",
            f"cluster.run_dir={run_dir}",
            "cluster.dashboard=false",
            "cluster.rollout.max_num_seqs=64",
            "cluster.rollout.kv_cache_gib=0.05",
            "cluster.learner.persistence_threshold=0",
            *overrides,
        ],
    )


class PlainLearner:
    """One learner rank in a process of its own, called step by step."""

    def __init__(self, config: RunConfig) -> None:
        import torch
        import torch.distributed as dist

        from actors.learner import Learner

        host = socket.gethostbyname(socket.gethostname())
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1",
            MASTER_ADDR=host, MASTER_PORT=str(free_port()),
        )  # fmt: skip
        torch.manual_seed(config.data.seed)
        dist.init_process_group("nccl" if config.cluster.device == "cuda" else "gloo")
        self.learner = Learner(config, pad_token_id=0)

    def connect(self, engines: list[EngineHandle], probes: list[list[int]]) -> None:
        """Wait for the engines and get ready to send them weights."""
        from cluster.publisher import FixedRoster, Publisher

        roster = FixedRoster(engines)
        roster.members(joining=False)
        self.publisher = Publisher(self.learner, roster, probes)

    def publish(self, version: int) -> Metrics:
        """Send the weights and probe."""
        return self.publisher.publish(version)

    def update(self, experiences: list[Experience]) -> Metrics:
        """One learner step."""
        from actors.policy_update import update_policy

        return update_policy(self.learner, experiences)[0]

    def time_apart(self) -> dict[str, float]:
        """Seconds of one pass over the weights: gathering alone, and fingerprinting alone."""
        from actors.zero import gathered_groups
        from rl.fingerprints import fingerprint

        source, spent = self.publisher.source, {"gather": 0.0, "fingerprint": 0.0}
        marked = time.perf_counter()
        for group in gathered_groups(source.model, source.layer_groups):
            gathered = time.perf_counter()
            spent["gather"] += gathered - marked
            for _, tensor in group:
                fingerprint(tensor)
            marked = time.perf_counter()
            spent["fingerprint"] += marked - gathered
        return spent

    def jitter(self, scale: float, seed: int) -> None:
        """Move every weight a little, as an optimizer step would."""
        import deepspeed
        import torch

        from actors.zero import inner_model

        generator = torch.Generator().manual_seed(seed)
        for parameter in inner_model(self.learner.engines["policy"]).parameters():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(scale * noise)

    def corrupt(self, tensor: str) -> None:
        """From now on, damage one tensor between the learner and the wire."""
        from rl.fingerprints import fingerprint

        source = self.publisher.source
        plain = type(source).__iter__

        class Damaged(type(source)):
            def __iter__(self) -> Any:
                for name, values in plain(self):
                    damaged = values + 0.05 if name == tensor else values
                    yield name, damaged
                    self.sent[name] = fingerprint(values)

        source.__class__ = Damaged

    def logprobs(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """Of whole sequences, at temperature 1."""
        return [row.numpy() for row in self.learner.probe(sequences)]


def start_plain_learner(config: RunConfig) -> Any:
    """The actor, as Ray Train would place it."""
    cls: Any = ray.remote(PlainLearner)
    placement, device = config.cluster.learner, config.cluster.device
    return cls.options(
        num_cpus=1, num_gpus=placement.gpus_per_worker, runtime_env=role_env(1, device)
    ).remote(config)


def start_loop(config: RunConfig, probes: list[list[int]]) -> tuple[Any, list[EngineHandle]]:
    """A learner connected to the run's engines."""
    learner = start_plain_learner(config)
    engines = start_engines(config)
    ray.get(learner.connect.remote(engines, probes), timeout=240)
    return learner, engines


def stop(learner: Any, engines: list[EngineHandle]) -> None:
    """End the processes of a loop."""
    for actor in [learner, *(engine.actor for engine in engines)]:
        ray.kill(actor)
