"""trl's own trainers around tiny models, and our log-probs of the tokens that they train on.

Import it inside a test that has made sure of trl: this module needs it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_trainer import DPOConfig, DPOTrainer
from trl.trainer.grpo_trainer import GRPOConfig, GRPOTrainer
from trl.trainer.kto_trainer import KTOConfig, KTOTrainer
from trl.trainer.rloo_trainer import RLOOConfig, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from rl.logprobs import head_logprobs, next_token_layout
from rl.losses.replies import Replies
from rl.masking import masked_sum
from tests.integration.toy import EOS, PAD, SHAPE, VOCABULARY, tokenizer

TOLERANCE = 1e-5
NUM_PROMPTS = 16
GROUP = 4
MAX_NEW_TOKENS = 16
TEMPERATURE = 0.8
"""Of sampling; neither 1 nor a power of 2."""
NEAR = 0.01
"""Distance of a reference of which no token's k3 reaches 10, where ours is bounded."""


# ---- models ------------------------------------------------------------------------------------


def policy() -> Qwen3ForCausalLM:
    """Two layers of width 32 whose log-probs differ by nats; trl's head answers in float32."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**_SHAPE)).double()


def moved(model: Qwen3ForCausalLM, distance: float = 0.04) -> Qwen3ForCausalLM:
    """A copy with noise on every weight: a reference that log-ratios of a few nats belong to."""
    other = Qwen3ForCausalLM(Qwen3Config(**_SHAPE)).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
            ours.copy_(theirs + distance * torch.randn(theirs.shape, generator=g))
    return other


_SHAPE: dict[str, Any] = SHAPE | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "head_dim": 16,
    "initializer_range": 0.2,
}


def logprobs_of(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """(B, T) of right-padded tokens by our head, 0 outside `mask`."""
    hidden = model.base_model(input_ids=tokens, attention_mask=tokens != PAD).last_hidden_state
    layout = next_token_layout(tokens, mask)
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    rows, _ = head_logprobs(layout.select(hidden), head.weight, None, layout.targets, temperature)
    return layout.scatter(rows)


def pairs_of(
    tokens: Tensor, mask: Tensor, model: PreTrainedModel, reference: PreTrainedModel | None
) -> Replies:
    """(P, 2) from rows [all chosen, all rejected], as trl stacks them."""
    own = masked_sum(logprobs_of(model, tokens, mask), mask, dim=-1)
    ref = torch.zeros_like(own)
    if reference is not None:
        with torch.no_grad():
            ref = masked_sum(logprobs_of(reference, tokens, mask), mask, dim=-1)
    labels = torch.zeros_like(own)
    labels[: len(own) // 2] = 1

    def side_by_side(column: Tensor) -> Tensor:
        return column.view(2, -1).T

    return Replies(
        logprobs=side_by_side(own),
        ref_logprobs=side_by_side(ref),
        lengths=side_by_side(mask.sum(-1).float()),
        scores=side_by_side(labels),
        is_demo=side_by_side(torch.zeros_like(labels).bool()),
    )


# ---- the comparison ----------------------------------------------------------------------------


def differences(theirs: Tensor, ours: Tensor, model: PreTrainedModel) -> tuple[float, float]:
    """Of the values, relative where they exceed 1; of the gradients, over the largest entry."""
    value = float((theirs - ours).abs() / theirs.abs().clamp(min=1))
    return value, gradient_difference(theirs, ours, model)


def gradient_difference(theirs: Tensor, ours: Tensor, model: PreTrainedModel) -> float:
    """Largest difference of any weight's gradient, over the largest entry of trl's."""
    weights = list(model.parameters())
    slopes = [
        torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, weights)])
        for loss in (theirs, ours)
    ]
    largest = slopes[0].abs().max()
    assert largest > 1e-6, "a loss without a gradient would agree with anything"
    return float((slopes[0] - slopes[1]).abs().max() / largest)


def assert_same(name: str, theirs: Tensor, ours: Tensor, model: PreTrainedModel) -> None:
    """Values and gradients of all weights agree; `pytest -s` shows how far."""
    value, slope = differences(theirs, ours, model)
    print(f"\n{name}: value {value:.1e}, gradient {slope:.1e}")
    assert value <= TOLERANCE
    assert slope <= TOLERANCE


# ---- stored replies ----------------------------------------------------------------------------


def words(g: torch.Generator, low: int, high: int) -> str:
    """`low` to `high` words, one token each."""
    count = int(torch.randint(low, high + 1, (1,), generator=g))
    return " ".join(f"w{int(i)}" for i in torch.randint(4, VOCABULARY, (count,), generator=g))


def pair_rows(prompt: tuple[int, int] = (2, 9), reply: tuple[int, int] = (1, 12)) -> list[dict]:
    """Pairs in random words; the replies get an EOS each."""
    g = torch.Generator().manual_seed(7)
    return [
        {
            "prompt": words(g, *prompt),
            "chosen": " " + words(g, *reply),
            "rejected": " " + words(g, *reply),
        }
        for _ in range(NUM_PROMPTS)
    ]


def _common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
    }


def collated(trainer: Any, rows: Iterable[int] = range(NUM_PROMPTS)) -> dict[str, Any]:
    """The trainer's own batch of its own data set."""
    return trainer.data_collator([trainer.train_dataset[row] for row in rows])


def dpo_trainer(folder: Path, rows: list[dict] | None = None, **config: Any) -> DPOTrainer:
    model = policy()
    return DPOTrainer(
        model,
        moved(model),
        args=DPOConfig(**_common(folder), **config),
        train_dataset=Dataset.from_list(rows or pair_rows()),
        processing_class=tokenizer(),
    )


def dpo_replies(trainer: DPOTrainer, batch: dict[str, Any]) -> Replies:
    """(P, 2) of a collated batch."""
    mask = batch["completion_mask"].bool()
    assert trainer.model is not None
    return pairs_of(batch["input_ids"], mask, trainer.model, trainer.ref_model)


def reference_free_trainer(
    kind: type[CPOTrainer] | type[ORPOTrainer],
    folder: Path,
    rows: list[dict] | None = None,
    **config: Any,
) -> Any:
    """A CPOTrainer or an ORPOTrainer."""
    settings = CPOConfig if kind is CPOTrainer else ORPOConfig
    return kind(
        policy(),
        args=settings(**_common(folder), **config),
        train_dataset=Dataset.from_list(rows or pair_rows()),
        processing_class=tokenizer(),
    )


def reference_free_rows(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens and reply mask (2P, T), all chosen before all rejected."""
    columns = [*batch["chosen_input_ids"], *batch["rejected_input_ids"]]
    labels = [*batch["chosen_labels"], *batch["rejected_labels"]]
    tokens = pad_sequence(columns, batch_first=True, padding_value=PAD)
    return tokens, pad_sequence(labels, batch_first=True, padding_value=-100) != -100


def kto_trainer(folder: Path, *, swapped: bool = False, **config: Any) -> KTOTrainer:
    """Liked and disliked replies in turn; `swapped` lets policy and reference change places."""
    model = policy()
    models = (moved(model), model) if swapped else (model, moved(model))
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": index % 3 != 1}
        for index, row in enumerate(pair_rows())
    ]
    return KTOTrainer(
        *models,
        args=KTOConfig(**_common(folder), per_device_train_batch_size=NUM_PROMPTS, **config),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )


# ---- the policy's own replies ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """What trl made of a generation batch, and the same rows as we lay them out."""

    trainer: Any
    prepared: dict[str, Any]
    """trl's `_generate_and_score_completions`: left-padded prompts, right-padded replies."""
    tokens: Tensor
    """(B, T) right-padded."""
    mask: Tensor
    """(B, T) bool: the replies."""
    scores: Tensor
    """(P, G)."""

    def logprobs(self, model: PreTrainedModel | None = None) -> Tensor:
        """(B, T) of the policy, or of another model."""
        model_or_policy: PreTrainedModel = self.trainer.model if model is None else model
        return logprobs_of(model_or_policy, self.tokens, self.mask, temperature=TEMPERATURE)

    def laid_out(self, completions: Tensor) -> Tensor:
        """trl's (B, C) per reply token as our (B, T)."""
        kept = completions[self.prepared["completion_mask"].bool()]
        return kept.new_zeros(self.mask.shape).masked_scatter(self.mask, kept)

    def loss(self, **changed: Any) -> Tensor:
        """trl's loss of this batch, some of its inputs exchanged."""
        return self.trainer.compute_loss(self.trainer.model, self.prepared | changed)

    def perturbed_old(self, noise: float) -> tuple[Tensor, Tensor]:
        """The policy's log-probs plus noise, as trl lays them out (B, C) and as we do (B, T)."""
        own, kept = self.logprobs().detach(), self.prepared["completion_mask"].bool()
        g = torch.Generator().manual_seed(3)
        drawn = noise * torch.randn(kept.shape, generator=g, dtype=own.dtype)
        old = drawn.masked_scatter(kept, own[self.mask] + drawn[kept])
        return old, self.laid_out(old)


def sampled(
    kind: type[RLOOTrainer] | type[GRPOTrainer],
    folder: Path,
    *,
    kl: float = 0.0,
    distance: float = 0.06,
    sampler_noise: float | None = None,
    **config: Any,
) -> Sampled:
    """A batch of 16 groups of 4 replies of 1 to 16 tokens, scored and prepared by trl.

    Only the sampling is ours. The reference is put in afterwards, because trl would load it from a
    hub. With `sampler_noise` the replies seem to come from vLLM, that far from the policy.
    """
    g = torch.Generator().manual_seed(11)
    prompts = [{"prompt": words(g, 2, 9)} for _ in range(NUM_PROMPTS)]
    size = NUM_PROMPTS * GROUP
    lengths = torch.randint(0, MAX_NEW_TOKENS, (size,), generator=g).tolist()
    replies = [[*torch.randint(4, VOCABULARY, (n,), generator=g).tolist(), EOS] for n in lengths]
    scores = torch.randn(NUM_PROMPTS, GROUP, generator=g)
    scores[3] = 0.5  # a group that teaches nothing

    def reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        assert [list(ids) for ids in completion_ids] == replies
        return scores.flatten().tolist()

    settings = RLOOConfig if kind is RLOOTrainer else GRPOConfig
    trainer: Any = kind(
        policy(),
        reward,
        args=settings(
            **_common(folder),
            beta=0.0,
            per_device_train_batch_size=size,
            steps_per_generation=1,
            num_generations=GROUP,
            max_completion_length=MAX_NEW_TOKENS,
            temperature=TEMPERATURE,
            **config,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = kl
    trainer.ref_model = moved(trainer.model, distance)
    add_fused_lm_head(trainer.ref_model, temperature=TEMPERATURE)
    starts = [tokenizer()(row["prompt"])["input_ids"] for row in prompts for _ in range(GROUP)]
    rows = [torch.tensor([*start, *reply]) for start, reply in zip(starts, replies, strict=True)]
    masks = [torch.arange(len(row)) >= len(s) for row, s in zip(rows, starts, strict=True)]
    tokens = pad_sequence(rows, batch_first=True, padding_value=PAD)
    mask = pad_sequence(masks, batch_first=True)
    reported = None
    if sampler_noise is not None:
        trainer.use_vllm = True
        with torch.no_grad():
            own = logprobs_of(trainer.model, tokens, mask, temperature=TEMPERATURE)
        noisy = own + sampler_noise * torch.randn(own.shape, generator=g)
        reported = [row[m].tolist() for row, m in zip(noisy, mask, strict=True)]
    answer = replies if kind is RLOOTrainer else (replies, reported)
    trainer._generate_single_turn = lambda *_: answer
    inputs = [dict(row) for row in prompts for _ in range(GROUP)]
    return Sampled(
        trainer=trainer,
        prepared=trainer._generate_and_score_completions(inputs),
        tokens=tokens,
        mask=mask,
        scores=scores,
    )
