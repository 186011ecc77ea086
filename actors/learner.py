"""One ZeRO-3 rank of the learner: forward passes, optimizer steps, weights, checkpoints, export.

All ranks run the same calls in the same order, since every forward pass gathers weights. Where
ranks hold different amounts of data, the shorter ones run along with rows that weigh nothing.

    >>> # learner = Learner(config)                       # inside an initialised process group
    >>> # logprobs = learner.logprobs(tokens, lengths, mask)      # (B, T), no gradient
    >>> # learner.step("policy", micro_batches, loss)             # one optimizer step
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist

from actors import zero
from actors.modules import PolicyModule
from configs.schema import OFFLINE, OptimizerConfig, RunConfig
from rl.batching import micro_batches, pad_tokens
from rl.fingerprints import tensor_groups
from rl.logprobs import NextTokenLayout, next_token_layout
from rl.rewards import RunningMoments
from rl.schedule import learning_rate_factor

logger = logging.getLogger(__name__)

Role = Literal["policy", "critic"]
Loss = Callable[[torch.Tensor, torch.Tensor, NextTokenLayout, Sequence[int]], torch.Tensor]
"""(first output, second output, layout, rows) of a micro-batch -> its share of the step's loss."""


@dataclass(frozen=True, kw_only=True)
class LearnerState:
    """What a checkpoint holds beside weights and optimizer states."""

    version: int = 0
    """Learner steps finished."""
    kl_coef: float = 0.0
    scores: RunningMoments = field(default_factory=RunningMoments)
    multipliers: dict[str, float] | None = None
    """Of constraints, once they are solved (`feedback.one_shot`)."""


class Learner:
    """The policy (or reward model) in training, and the critic where the method has one."""

    def __init__(self, config: RunConfig, pad_token_id: int) -> None:
        self.config = config
        self.pad_token_id = pad_token_id
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.dtype = getattr(torch, config.model.dtype)
        self.device = torch.device(config.cluster.device)
        self.state = LearnerState(kl_coef=config.algorithm.kl.coef)
        self.engines: dict[Role, deepspeed.DeepSpeedEngine] = {"policy": self._build_policy()}
        if config.algorithm.advantage == "gae":
            self.engines["critic"] = self._build_critic()
        names = [name for name, _ in zero.inner_model(self.engines["policy"]).named_parameters()]
        self.groups = tensor_groups(names)

    def _build_policy(self) -> deepspeed.DeepSpeedEngine:
        config = self.config
        is_reward_model = config.algorithm.name == "reward_model"
        return zero.build_engine(
            "value" if is_reward_model else "policy",
            config.model.path,
            dtype=self.dtype,
            optimizer=config.algorithm.optimizer,
            placement=config.cluster.learner,
            gradient_checkpointing=config.model.gradient_checkpointing,
            head_std=self._head_std() if is_reward_model else None,
        )

    def _build_critic(self) -> deepspeed.DeepSpeedEngine:
        """From a reward model, whose head already judges, or from a policy with a zero head."""
        config = self.config
        models = [r.path for r in config.feedback.rewards.values() if r.kind == "model"]
        path = config.model.critic or next(iter(models), None) or config.model.path
        return zero.build_engine(
            "value",
            path,
            dtype=self.dtype,
            optimizer=config.algorithm.critic_optimizer or config.algorithm.optimizer,
            placement=config.cluster.learner,
            gradient_checkpointing=config.model.gradient_checkpointing,
            head_std=0.0,
        )

    def _head_std(self) -> float:
        """1 / sqrt(d + 1), so that first scores are of size one (arXiv 2403.17031)."""
        text = (Path(self.config.model.path) / "config.json").read_text()
        return (json.loads(text)["hidden_size"] + 1) ** -0.5

    # ---- collectives -----------------------------------------------------------------------

    def reduce(
        self, tensor: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
    ) -> torch.Tensor:
        """The same shape, reduced over all ranks."""
        moved = tensor.to(self.device, copy=True)
        dist.all_reduce(moved, op=op)
        return moved.to(tensor.device)

    def maximum(self, value: int) -> int:
        """The largest of all ranks' values."""
        return int(self.reduce(torch.tensor(value), dist.ReduceOp.MAX))

    # ---- forward ---------------------------------------------------------------------------

    def logprobs(
        self,
        tokens: torch.Tensor,
        lengths: Sequence[int],
        mask: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies (B, T) of the tokens that `mask` (B, T) marks; no gradient."""
        return self._forward_all("policy", tokens, lengths, mask, temperature)

    def values(
        self, tokens: torch.Tensor, lengths: Sequence[int], mask: torch.Tensor
    ) -> torch.Tensor:
        """The critic's values (B, T) of the states *before* the marked tokens; no gradient."""
        return self._forward_all("critic", tokens, lengths, mask, 1.0)[0]

    @torch.no_grad()
    def _forward_all(
        self,
        role: Role,
        tokens: torch.Tensor,
        lengths: Sequence[int],
        mask: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.zeros(tokens.shape)
        second = torch.zeros(tokens.shape)
        engine = self.engines[role]
        engine.eval()
        for rows, width, _ in self._passes(lengths, range(len(lengths))):
            live = mask[rows, :width]
            layout = next_token_layout(tokens[rows, :width], live)
            one, two = self._forward(role, tokens[rows, :width], layout, temperature)
            first[rows, :width] = layout.scatter(one.cpu())
            second[rows, :width] = layout.scatter(two.cpu())
        engine.train()
        return first, second

    def _forward(
        self, role: Role, tokens: torch.Tensor, layout: NextTokenLayout, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat outputs (N,) twice: log-probs and entropies, or values and zeros."""
        engine, device = self.engines[role], self.device
        sources = layout.sources.to(device)
        if isinstance(engine.module, PolicyModule):
            return engine(tokens.to(device), sources, layout.targets.to(device), temperature)
        values = engine(tokens.to(device), sources)
        return values, torch.zeros_like(values)

    def _passes(
        self, lengths: Sequence[int], units: Sequence[int], unit_size: int = 1
    ) -> Iterator[tuple[list[int], int, bool]]:
        """Micro-batches (rows, width, is_own), as many on every rank.

        A unit is `unit_size` rows that must share a micro-batch, such as the two of a pair. A rank
        that has run out repeats its shortest unit with is_own False: it must weigh nothing.
        """
        longest = [
            max(lengths[start : start + unit_size]) for start in range(0, len(lengths), unit_size)
        ]
        budget = self.config.algorithm.tokens_per_micro_batch // unit_size
        batches = micro_batches(longest, units, budget)
        shortest = min(range(len(longest)), key=lambda unit: longest[unit])
        for index in range(self.maximum(len(batches))):
            is_own = index < len(batches)
            members = batches[index] if is_own else [shortest]
            rows = [unit * unit_size + k for unit in members for k in range(unit_size)]
            yield rows, max(lengths[row] for row in rows), is_own

    # ---- training --------------------------------------------------------------------------

    def step(
        self,
        role: Role,
        tokens: torch.Tensor,
        lengths: Sequence[int],
        mask: torch.Tensor,
        units: Sequence[int],
        loss: Loss,
        *,
        temperature: float = 1.0,
        unit_size: int = 1,
    ) -> float:
        """One optimizer step on `units` of this rank; returns the gradient norm before clipping.

        Units are rows, or runs of `unit_size` rows that the loss needs side by side. `loss` returns
        sums over global counts, so adding micro-batches and ranks gives the loss of the whole
        step, however it was split.
        """
        engine = self.engines[role]
        self._set_learning_rate(role)
        passes = list(self._passes(lengths, units, unit_size))
        for index, (rows, width, is_own) in enumerate(passes):
            engine.set_gradient_accumulation_boundary(index == len(passes) - 1)
            layout = next_token_layout(tokens[rows, :width], mask[rows, :width])
            one, two = self._forward(role, tokens[rows, :width], layout, temperature)
            share = loss(one, two, layout, rows) if is_own else one.sum() * 0.0
            # DeepSpeed averages gradients over ranks; our shares already carry global counts.
            engine.backward(share * self.world_size)
        engine.step()
        norm = engine.get_global_grad_norm()
        self._check_finite(role, norm)
        return float(norm) if norm is not None else 0.0

    def _check_finite(self, role: Role, norm: Any) -> None:
        """Stop where a gradient is NaN or infinite; DeepSpeed says so by a norm of -1."""
        if norm is not None and not 0 <= float(norm) < math.inf:
            raise FloatingPointError(
                f"the gradient of the {role} is NaN or infinite at step {self.state.version + 1}: "
                "the weights are spoilt; lower algorithm.optimizer.learning_rate, then go on with "
                "--resume"
            )

    def _set_learning_rate(self, role: Role) -> None:
        settings = self._optimizer_config(role)
        rate = settings.learning_rate * self.learning_rate_factor(settings)
        optimizer = self.engines[role].optimizer
        assert optimizer is not None
        for group in optimizer.param_groups:  # pyright: ignore[reportAttributeAccessIssue]
            group["lr"] = rate

    def _optimizer_config(self, role: Role) -> OptimizerConfig:
        algorithm = self.config.algorithm
        if role == "critic" and algorithm.critic_optimizer is not None:
            return algorithm.critic_optimizer
        return algorithm.optimizer

    def learning_rate_factor(self, settings: OptimizerConfig) -> float:
        """Of the learner step about to be taken; schedules count the steps of an iteration."""
        algorithm = self.config.algorithm
        num_steps = algorithm.iteration_steps or algorithm.num_steps
        return learning_rate_factor(
            self.state.version % num_steps,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            num_steps=num_steps,
            min_ratio=settings.min_ratio,
        )

    def forget_moments(self) -> None:
        """Go on as a new optimizer would: AdamW's moments and step counts are 0 again."""
        for engine in self.engines.values():
            zero.forget_moments(engine)

    def remember_scores(self, moments: RunningMoments) -> None:
        """Take over the running moments of the scores."""
        self.state = replace(self.state, scores=moments)

    def remember_multipliers(self, multipliers: dict[str, float]) -> None:
        """Keep solved multipliers for all steps to come."""
        self.state = replace(self.state, multipliers=multipliers)

    def finish_step(self, **changes: object) -> None:
        """Count a learner step and take over other changes of state."""
        self.state = replace(self.state, version=self.state.version + 1, **changes)  # pyright: ignore

    # ---- weights ---------------------------------------------------------------------------

    def probe(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Log-probs (n,) of whole sequences at temperature 1, what engines are compared with."""
        lengths = [len(sequence) for sequence in sequences]
        tokens = pad_tokens(sequences, self.pad_token_id)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, length in enumerate(lengths):
            mask[row, 1:length] = True
        logprobs, _ = self.logprobs(tokens, lengths, mask, 1.0)
        return [logprobs[row, :length] for row, length in enumerate(lengths)]

    def set_reward_bias(self, bias: float) -> None:
        """Keep a constant with a reward model that its readers subtract from every score."""
        zero.inner_model(self.engines["policy"]).config.reward_bias = bias

    def export(self, folder: Path) -> None:
        """Write the trained model as a Hugging Face folder; a collective."""
        model = zero.inner_model(self.engines["policy"])
        zero.export(model, self.groups, folder, self.dtype)

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint; a collective."""
        for role, engine in self.engines.items():
            zero.save_checkpoint(engine, folder / role)
        if self.rank == 0:
            (folder / "state.json").write_text(json.dumps(asdict(self.state)))

    def load(self, folder: Path, work: Path) -> None:
        """Take up a checkpoint written at any world size; a collective."""
        for role, engine in self.engines.items():
            zero.load_checkpoint(engine, folder / role, work / role)
        fields = json.loads((folder / "state.json").read_text())
        self.state = LearnerState(**fields | {"scores": RunningMoments(**fields["scores"])})

    @property
    def is_offline(self) -> bool:
        """Whether this run learns from stored rows."""
        return self.config.algorithm.name in OFFLINE
