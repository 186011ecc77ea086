"""Text classifiers as users find them, encoders or decoders, in one process.

Frozen reward models read values of states and can be partitioned; a classifier may have a pooling
layer, token types and any number of labels, so here its own forward pass is called.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.judges.answers import Scores, checked
from actors.judges.inputs import check_labels
from actors.specs import FrozenSpec
from configs.schema import RewardConfig
from rl.batching import micro_batches, pad_tokens
from rl.data.encode import encode_for_reward
from rl.types import Rollout


class TextClassifier:
    """Token sequences -> logits of a sequence-classification folder."""

    def __init__(self, name: str, spec: FrozenSpec) -> None:
        self.name, self.spec = name, spec
        self.tokenizer = AutoTokenizer.from_pretrained(spec.path, local_files_only=True)
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"reward {name}: {spec.path} has no padding token: set `pad_token` in its "
                "tokenizer_config.json"
            )
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            spec.path,
            dtype=getattr(torch, spec.dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(
                f"reward {name}: the weights in {spec.path} lack {min(info['missing_keys'])}: "
                "not a classifier"
            )
        # Decoders read the state of the last token that is no padding.
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.model = model.eval().to(spec.device)
        self.num_labels = int(model.config.num_labels)
        context = getattr(model.config, "max_position_embeddings", None)
        self.longest = min(self.tokenizer.model_max_length, context or 1 << 30)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """(N, labels) float32; raises `ValueError` for a sequence that the model cannot read."""
        lengths = [len(sequence) for sequence in sequences]
        if max(lengths) > self.longest:
            raise ValueError(
                f"reward {self.name}: a text of {max(lengths)} tokens is more than the "
                f"{self.longest} that {self.spec.path} reads: lower data.sampling.max_new_tokens "
                "or data.max_prompt_length"
            )
        results = torch.zeros(len(sequences), self.num_labels)
        for rows in micro_batches(lengths, range(len(lengths)), self.spec.max_tokens):
            tokens = pad_tokens([sequences[row] for row in rows], self.tokenizer.pad_token_id)
            width = max(lengths[row] for row in rows)  # padding may pass the last position
            ends = torch.tensor([lengths[row] for row in rows])
            mask = torch.arange(width)[None, :] < ends[:, None]
            answer = self.model(
                input_ids=tokens[:, :width].to(self.spec.device),
                attention_mask=mask.long().to(self.spec.device),
            )
            results[rows] = answer.logits.float().cpu()
        return results


class ClassifierReward:
    """How sure a classifier is of one of its labels."""

    def __init__(self, name: str, reward: RewardConfig, spec: FrozenSpec) -> None:
        assert reward.positive is not None
        self.name, self.positive, self.output = name, reward.positive, reward.output
        self.classifier = TextClassifier(name, spec)
        check_labels(f"reward {name}", spec.path, self.classifier.num_labels, reward.positive)

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Log-odds of the wanted label against all others together, or its probability."""
        logprobs = self.classifier.logits(self._encode(rollouts)).double().log_softmax(-1)
        wanted = logprobs[:, self.positive]
        if self.output == "probability":
            return {self.name: checked(self.name, wanted.exp().tolist(), rollouts)}
        is_other = torch.arange(logprobs.shape[1]) != self.positive
        log_odds = wanted - logprobs[:, is_other].logsumexp(-1)
        return {self.name: checked(self.name, log_odds.tolist(), rollouts)}

    def _encode(self, rollouts: Sequence[Rollout]) -> list[list[int]]:
        prompts, replies = [r.prompt for r in rollouts], [r.text for r in rollouts]
        tokenizer = self.classifier.tokenizer
        if tokenizer.eos_token_id is not None:
            return encode_for_reward(prompts, replies, tokenizer)
        # Encoders of BERT's kind know no turns: they read two texts with a separator between.
        texts = [prompt.text for prompt in prompts]
        return tokenizer(texts, replies).input_ids
