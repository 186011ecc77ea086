"""The frozen reference policy: log-probs of replies under it."""

from collections.abc import Sequence

import numpy as np

from actors.frozen import FrozenModel
from actors.specs import FrozenSpec
from rl.types import Rollout


class Reference:
    """One worker of the reference policy."""

    def __init__(self, spec: FrozenSpec, temperature: float, address: str = "") -> None:
        self.model = FrozenModel(spec, address)
        self.temperature = temperature

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """One (n,) float32 array per rollout: its response tokens' log-probs."""
        sequences = [[*rollout.prompt.tokens, *rollout.tokens.tolist()] for rollout in rollouts]
        starts = [len(rollout.prompt.tokens) for rollout in rollouts]
        outputs = self.model.outputs(sequences, starts, self.temperature)
        return [output.numpy() for output in outputs]
