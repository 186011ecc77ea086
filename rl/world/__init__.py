"""The built-in world: a concierge whose true reward is known.

`gazetteer` holds the facts, `grammar` the sentences, `replies` the writers, `gold` the true reward,
`traits` the individuals, `tasks` the constrained-decoding tasks, `generate` the Parquet files and
`model` the tokenizer and the untrained policy.
"""

from rl.world.generate import Sizes, World, generate, write_world
from rl.world.gold import describe, gold_reward
from rl.world.model import build_tokenizer, write_model
from rl.world.replies import is_rare_style
from rl.world.tasks import task_score
from rl.world.traits import INDIVIDUALS, Individual, individual_reward, measure_traits

__all__ = [
    "INDIVIDUALS",
    "Individual",
    "Sizes",
    "World",
    "build_tokenizer",
    "describe",
    "generate",
    "gold_reward",
    "individual_reward",
    "is_rare_style",
    "measure_traits",
    "task_score",
    "write_model",
    "write_world",
]
