"""The networks a run trains or asks: a policy that returns log-probs, a judge that returns values.

Both take right-padded tokens (b, t) and the flat positions that matter, so no logits are made for
prompts or padding. Causal attention never looks right, so right padding needs no attention mask.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from rl.logprobs import head_logprobs

logger = logging.getLogger(__name__)

LOGIT_CHUNK = 1024
"""Rows of logits that exist at a time, in float32."""


class TokenHead(nn.Module):
    """Log-probs and entropies of the language-model head, without ever holding all its logits.

    It owns no parameter: it reads the output embedding of the model, which may be tied. Under
    ZeRO-3 that parameter is registered with this module, and DeepSpeed gathers it around both
    passes.
    """

    def __init__(self, output_embedding: nn.Linear) -> None:
        super().__init__()
        # A tuple hides the layer from nn.Module, which would list its parameters a second time.
        self._output = (output_embedding,)

    def parameters_read(self) -> list[torch.Tensor]:
        """The parameters to gather around this module."""
        layer = self._output[0]
        return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H), (N,) -> log-probs (N,), entropies (N,), float32."""
        layer = self._output[0]
        return head_logprobs(
            hidden,
            layer.weight,
            layer.bias,
            targets,
            temperature,
            LOGIT_CHUNK,
        )


class PolicyModule(nn.Module):
    """A causal language model that answers with log-probs of given tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        output = model.get_output_embeddings()
        assert isinstance(output, nn.Linear)
        self.head = TokenHead(output)

    def forward(
        self, tokens: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, t), (N,), (N,) of a `NextTokenLayout` -> log-probs (N,), entropies (N,)."""
        hidden = _hidden_states(self.model, tokens)
        return self.head(hidden.flatten(0, 1)[sources], targets, temperature)


class ValueModule(nn.Module):
    """A sequence classifier with one label: a reward model, or a critic."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(b, t), (N,) indices into the flattened (b * t) -> values (N,), float32."""
        hidden = _hidden_states(self.model, tokens)
        return self.model.score(hidden.flatten(0, 1)[positions]).squeeze(-1).float()  # pyright: ignore[reportCallIssue]


def _hidden_states(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """(b, t) -> (b, t, H), from the body of the model without its head."""
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def load_config(path: str | Path, num_labels: int | None = None) -> PreTrainedConfig:
    """Read config.json with all dropout off: in RL, old and new log-probs must agree."""
    extra: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    config = AutoConfig.from_pretrained(path, **extra)
    for name, value in vars(config).items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1.0):
            raise ValueError(
                f"{path}: models with {name} are not supported; the head must be a plain projection"
            )
    return config


def load_network(
    kind: Literal["policy", "value"],
    path: str | Path,
    *,
    dtype: torch.dtype,
    gradient_checkpointing: bool = False,
) -> tuple[PolicyModule | ValueModule, bool]:
    """Load a Hugging Face folder; True beside it when its value head is new, to be initialised."""
    config = load_config(path, num_labels=1 if kind == "value" else None)
    loader = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    loaded: Any = loader.from_pretrained(
        path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    model, info = loaded
    if gradient_checkpointing:
        # The re-entrant kind recomputes after ZeRO-3 has released the weights again.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    missing = [name for name in info["missing_keys"] if not name.startswith("score")]
    if missing:
        raise ValueError(f"{path}: the weights lack {', '.join(missing[:3])} of {len(missing)}")
    if kind == "policy":
        return PolicyModule(model), False
    return ValueModule(model), any(name.startswith("score") for name in info["missing_keys"])
