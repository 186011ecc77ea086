"""A cross-encoder that reads a prompt and two replies at once (PairRM and its kin)."""

from collections.abc import Sequence

from actors.judges.answers import Scores
from actors.judges.classifiers import TextClassifier
from actors.judges.inputs import check_one_logit, read_layout
from actors.judges.pairwise import LAYOUT, mean_wins
from actors.specs import FrozenSpec
from configs.schema import RewardConfig
from rl.data.encode import without_special_tokens
from rl.types import Rollout


class RankerReward:
    """Mean win probability of a reply in its group, from one logit for "the first is better"."""

    def __init__(self, name: str, reward: RewardConfig, spec: FrozenSpec) -> None:
        self.name = name
        self.layout = read_layout(reward.prompt_file) if reward.prompt_file else LAYOUT
        self.model = TextClassifier(name, spec)
        check_one_logit(f"reward {name}", spec.path, self.model.num_labels)

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Between 0 and 1; the replies of one group average 1/2."""
        return mean_wins(self.name, rollouts, self.layout, self._ask, self._plain)

    def _ask(self, questions: list[str]) -> list[float]:
        sequences = self.model.tokenizer(questions).input_ids
        return self.model.logits(sequences)[:, 0].double().sigmoid().tolist()

    def _plain(self, text: str) -> str:
        return without_special_tokens(text, self.model.tokenizer)
