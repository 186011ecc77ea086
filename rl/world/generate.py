"""The files of the built-in world, drawn from a seed.

Every table has its own random stream, so changing one size leaves the other tables as they were.
Held-out requests occur in no other table.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.world.gold import gold_reward
from rl.world.replies import (
    RARE_SHARE,
    Style,
    draw_flaws,
    draw_request,
    write_prompt,
    write_reply,
)
from rl.world.tasks import draw_task
from rl.world.traits import INDIVIDUALS, individual_reward

Row = dict[str, Any]

RATING_NOISE = 0.05
"""Standard deviation of a rating's score around gold."""
GOOD = 0.5
"""Gold of a reply that is liked as often as not."""
PRIMED_SHARE = 1 / 64
"""Of the rare style in `primers`."""
WRONG_SHARE = 0.25
"""Of the labels in `likes_noisy`."""
MAJORITY, MINORITY = "farid", "elif"
"""Two individuals of opposite taste in every trait."""
NUM_MAJORITY = 10
"""Annotators of the majority's taste for one of the minority's."""
CAREFUL = 0.3
"""Flaws in the replies shown to individuals, relative to demonstrations: taste should decide."""
MAX_PROMPTS = 8192
"""Distinct requests that one world hands out; well below what the grammar can say."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Rows per table; the defaults feed 300 steps of 64, of SFT and of the reward model."""

    prompts: int = 4096
    prompts_heldout: int = 256
    demonstrations: int = 19_200
    primers: int = 4_096
    pairs: int = 20_480
    ratings: int = 4_096
    likes: int = 4_096
    pairs_per_individual: int = 256
    pairs_per_annotator: int = 512
    tasks_per_kind: int = 64

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if size < 1:
                raise ValueError(f"sizes.{name}={size}: give at least 1 row")
        if self.prompts + self.prompts_heldout > MAX_PROMPTS:
            raise ValueError(
                f"sizes.prompts={self.prompts} and sizes.prompts_heldout={self.prompts_heldout}: "
                f"the world has {MAX_PROMPTS} distinct requests; ask for fewer"
            )


@dataclass(frozen=True, kw_only=True)
class World:
    """The rows of every file, by the file's stem."""

    prompts: list[Row]
    prompts_heldout: list[Row]
    demonstrations: list[Row]
    primers: list[Row]
    """More demonstrations, `PRIMED_SHARE` of them in the rare style: what a policy needs to have
    seen to say it at all, a few times in a thousand replies."""
    pairs: list[Row]
    ratings: list[Row]
    likes: list[Row]
    """Replies with a label, whether gold is above `GOOD`."""
    likes_noisy: list[Row]
    """The same rows, with `WRONG_SHARE` of the labels wrong."""
    individuals: list[Row]
    annotators: list[Row]
    """Pairs judged by eleven people of two opposite tastes, ten to one."""
    tasks: list[Row]


def generate(seed: int = 0, sizes: Sizes | None = None, *, temperature: float = 0.1) -> World:
    """Draw a world; the same arguments give the same rows.

    `temperature` is the Bradley-Terry noise of all labels: a pair is labelled by gold with
    probability sigmoid(difference / temperature). ValueError unless it is above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: label noise needs a number above 0")
    sizes = sizes or Sizes()
    requests = _distinct_requests(seed, sizes.prompts + sizes.prompts_heldout)
    heldout = requests[: sizes.prompts_heldout]
    taken = frozenset(row["prompt"] for row in heldout)

    def stream(table: str) -> "_Stream":
        return _Stream(random.Random(f"{seed}/{table}"), taken, temperature)

    tasks, likes = stream("tasks"), stream("likes").likes(sizes.likes)
    return World(
        prompts=requests[sizes.prompts_heldout :],
        prompts_heldout=heldout,
        demonstrations=stream("demonstrations").demonstrations(sizes.demonstrations),
        primers=stream("primers").demonstrations(sizes.primers, PRIMED_SHARE),
        pairs=stream("pairs").pairs(sizes.pairs),
        ratings=stream("ratings").ratings(sizes.ratings),
        likes=likes,
        likes_noisy=stream("likes_noisy").with_wrong_labels(likes),
        annotators=stream("annotators").annotators(sizes.pairs_per_annotator),
        individuals=stream("individuals").individuals(sizes.pairs_per_individual),
        tasks=[tasks.task(kind) for kind in ("keywords", "length") * sizes.tasks_per_kind],
    )


def write_world(
    folder: str | Path, seed: int = 0, sizes: Sizes | None = None, *, temperature: float = 0.1
) -> dict[str, Path]:
    """Write one Parquet file per field of `World` into `folder`; returns their paths by stem.

    Same arguments, same bytes. Raises ValueError as `generate` does.
    """
    world = generate(seed, sizes, temperature=temperature)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, rows in vars(world).items():
        paths[name] = folder / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), paths[name])
    return paths


def _distinct_requests(seed: int, count: int) -> list[Row]:
    rng = random.Random(f"{seed}/prompts")
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = _request(rng)
        rows.setdefault(row["prompt"], row)
    return list(rows.values())


def _request(rng: random.Random) -> Row:
    place, question = draw_request(rng)
    return {
        "prompt": write_prompt(rng, place, question),
        "place": place,
        "question": question,
    }


@dataclass(frozen=True)
class _Stream:
    """Draws the rows of one table."""

    rng: random.Random
    taken: frozenset[str]
    """Held-out requests."""
    temperature: float

    def request(self) -> Row:
        while (row := _request(self.rng))["prompt"] in self.taken:
            pass
        return row

    def task(self, kind: str) -> Row:
        while (row := draw_task(self.rng, kind))["prompt"] in self.taken:
            pass
        return row

    def reply(self, row: Row, flaws: float = 1.0, *, rare: bool = False) -> str:
        rng = self.rng
        style = Style.draw(rng)
        drawn = frozenset() if rare else draw_flaws(rng, flaws)
        return write_reply(rng, row["place"], row["question"], style=style, flaws=drawn, rare=rare)

    def two_replies(self, row: Row, flaws: float = 1.0, *, rare: bool = False) -> tuple[str, str]:
        first = self.reply(row, flaws, rare=rare)
        while (second := self.reply(row, flaws)) == first:
            pass
        return first, second

    def demonstrations(self, count: int, share: float = RARE_SHARE) -> list[Row]:
        """Replies to imitate, `share` of them in the rare better style."""
        return [
            row | {"completion": self.reply(row, rare=rare)}
            for row, rare in self.requests(count, share)
        ]

    def requests(self, count: int, share: float = RARE_SHARE) -> Iterable[tuple[Row, bool]]:
        """Requests, and whether their first reply is one of the few in the rare style."""
        period = round(1 / share)
        return ((self.request(), index % period == period // 2) for index in range(count))

    def pairs(self, count: int) -> list[Row]:
        rows = []
        for row, rare in self.requests(count):
            replies = self.two_replies(row, rare=rare)
            gold = gold_reward([row["prompt"]] * 2, replies, [row] * 2)["gold"]
            best = self.prefer(gold)
            rows.append(
                row
                | {"chosen": replies[best], "rejected": replies[1 - best]}
                | {"gold_chosen": gold[best], "gold_rejected": gold[1 - best]}
            )
        return rows

    def ratings(self, count: int) -> list[Row]:
        rows = []
        for row in self.demonstrations(count):
            gold = gold_reward([row["prompt"]], [row["completion"]], [row])["gold"][0]
            score = min(1.0, max(0.0, self.rng.gauss(gold, RATING_NOISE)))
            liked = self.prefer((GOOD, gold))
            rows.append(row | {"score": score, "label": liked, "gold": gold})
        return rows

    def likes(self, count: int) -> list[Row]:
        rows = []
        for row in self.demonstrations(count):
            gold = gold_reward([row["prompt"]], [row["completion"]], [row])["gold"][0]
            rows.append(row | {"label": int(gold > GOOD), "gold": gold})
        return rows

    def with_wrong_labels(self, rows: Iterable[Row]) -> list[Row]:
        return [
            row | {"label": 1 - row["label"] if self.rng.random() < WRONG_SHARE else row["label"]}
            for row in rows
        ]

    def individuals(self, count: int) -> list[Row]:
        return [
            {"individual": name} | asdict(person) | row
            for name, person in INDIVIDUALS.items()
            for row in self.pairs_of(name, count)
        ]

    def annotators(self, count: int) -> list[Row]:
        return [
            {"annotator": f"{taste}-{number}"} | row
            for taste, people in ((MAJORITY, NUM_MAJORITY), (MINORITY, 1))
            for number in range(people)
            for row in self.pairs_of(taste, count)
        ]

    def pairs_of(self, name: str, count: int) -> Iterable[Row]:
        """Pairs as one individual judges them."""
        for row, _ in self.requests(count):
            replies = self.two_replies(row, CAREFUL)
            best = self.prefer(individual_reward(name, [row["prompt"]] * 2, replies, [row] * 2))
            yield row | {"chosen": replies[best], "rejected": replies[1 - best]}

    def prefer(self, values: Iterable[float]) -> int:
        """Index of the preferred of two values under Bradley-Terry noise."""
        first, second = values
        return int(self.rng.random() < _sigmoid((second - first) / self.temperature))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
