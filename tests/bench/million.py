"""`python -m tests.bench.million FOLDER [--samples N] [--steps N]`: the folder of a very long run.

Nothing is sampled or learned: texts come from the built-in world, numbers from formulas. But every
file has the schema of a real run, is written by the run's own writers, and agrees with all others:
prompts with data rows, groups with the ledger, tokens with the text. So whatever reads runs can be
tried on a million samples.
"""

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.groups import prompt_index, sample_seed
from cluster.ledger import USED, Ledger, LedgerRow, write_table
from cluster.run_folder import stored_text
from configs.load import load_config
from configs.schema import RunConfig
from rl.experience import EXPERIENCE_SCHEMA
from rl.world.generate import Sizes, generate
from rl.world.gold import gold_reward
from rl.world.model import EOS, build_tokenizer, write_model

RECIPE = Path(__file__).parents[2] / "configs" / "rloo.yaml"
GROUP = 4
"""Replies to a prompt."""
SENTENCE = re.compile(r"[^ .!?][^.!?]*[.!?]")
MAX_STALENESS = 2
NUM_ENGINES = 4
CUT_SHARE = 0.03
"""Of replies that end at the limit of tokens."""
TWO_VERSIONS_SHARE = 0.1
"""Of replies during which the weights changed."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Texts to choose from, tokenised once: N of them, laid end to end."""

    texts: pa.Array
    """(N,) strings."""
    tokens: np.ndarray
    """int32 of all texts, side by side."""
    offsets: np.ndarray
    """(N + 1,) where each text begins."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each."""
        return np.diff(self.offsets)

    def take(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the chosen texts side by side, and (len(chosen),) how many each has."""
        lengths = self.lengths[chosen]
        starts = np.repeat(self.offsets[chosen], lengths)
        inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.tokens[starts + inside], lengths


def pool_of(texts: list[str], tokenizer: Any) -> Pool:
    """The distinct texts, with their tokens."""
    texts = list(dict.fromkeys(texts))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return Pool(
        texts=pa.array(texts),
        tokens=np.concatenate([np.asarray(row, np.int32) for row in ids]),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in ids])]),
    )


class MadeUpRun:
    """Draws the steps of a run, one table at a time."""

    def __init__(
        self,
        folder: Path,
        num_samples: int,
        num_steps: int,
        *,
        num_prompts: int = 4096,
        seed: int = 0,
    ) -> None:
        per_step = num_samples // num_steps // GROUP
        if per_step < 1 or per_step * GROUP * num_steps != num_samples:
            raise ValueError(
                f"{num_samples} samples are not {num_steps} steps of groups of {GROUP}"
            )
        self.folder, self.num_steps, self.groups_per_step = folder, num_steps, per_step
        self.random = np.random.default_rng(seed)
        tokenizer = build_tokenizer()
        self.eos = tokenizer.convert_tokens_to_ids(EOS)
        world = generate(seed, _sizes(num_prompts))
        self.rows = world.prompts
        # A reply is an answer and one more sentence, 40 tokens as a rule.
        self.answers = pool_of([row["completion"] for row in world.demonstrations], tokenizer)
        sentences = [s for row in world.demonstrations for s in SENTENCE.findall(row["completion"])]
        self.sentences = pool_of(sentences, tokenizer)
        self.gold = self._gold(world.demonstrations)
        self.prompt_texts = pa.array([row["prompt"] for row in self.rows])
        prompts = [_conversation(row["prompt"], tokenizer) for row in self.rows]
        self.prompt_tokens = pa.array(prompts, pa.list_(pa.int32()))
        extra = [json.dumps({k: v for k, v in r.items() if k != "prompt"}) for r in self.rows]
        self.extra = pa.array(extra)
        self.config = self._config()

    def _gold(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """(N,) reward of each distinct answer, by name."""
        first = {row["completion"]: row for row in reversed(rows)}
        ordered = [first[text] for text in self.answers.texts.to_pylist()]
        replies = [row["completion"] for row in ordered]
        scores = gold_reward([row["prompt"] for row in ordered], replies, ordered)
        return {name: np.asarray(values) for name, values in scores.items()}

    def _config(self) -> RunConfig:
        return load_config(
            RECIPE,
            [
                f"model.path={self.folder}/model",
                f"data.train={self.folder}/prompts.jsonl",
                f"data.prompts_per_step={self.groups_per_step}",
                f"data.samples_per_prompt={GROUP}",
                f"algorithm.num_steps={self.num_steps}",
                f"algorithm.optimizer.warmup_steps={min(10, self.num_steps)}",
                f"algorithm.max_staleness={MAX_STALENESS}",
                f"cluster.run_dir={self.folder}",
                f"cluster.rollout.num_engines={NUM_ENGINES}",
                f"feedback.rewards.rm.path={self.folder}/model",
                "feedback.rewards.gold.kind=gold",
                "feedback.rewards.gold.weight=0",
            ],
        )

    def write(self) -> None:
        """The whole folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_model(self.folder / "model")
        rows = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.folder / "prompts.jsonl").write_text(rows)
        (self.folder / "config.yaml").write_text(stored_text(self.config))
        ledger = Ledger(self.folder)
        with (self.folder / "metrics.jsonl").open("w") as metrics:
            for step in range(1, self.num_steps + 1):
                table = self.step(step)
                path = self.folder / "experience" / f"step={step:06d}" / "rank=0.parquet"
                write_table(table, path)
                ledger.commit(step, _ledger_rows(table, step))
                metrics.write(json.dumps(self._metrics(table, step)) + "\n")

    def step(self, step: int) -> pa.Table:
        """What one learner step learns from, rows of EXPERIENCE_SCHEMA."""
        random, count = self.random, self.groups_per_step * GROUP
        groups = np.arange(self.groups_per_step) + (step - 1) * self.groups_per_step
        rows = [prompt_index(int(g), len(self.rows), self.config.data.seed) for g in groups]
        prompt_rows = np.repeat(rows, GROUP)
        answers = self._better(step, count)
        texts, tokens, lengths, is_cut = self._replies(answers)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        gold = {name: values[answers] for name, values in self.gold.items()}
        judged = gold["gold"] + random.normal(0, 0.15, count)
        scores = judged - is_cut  # feedback.missing_eos_penalty
        others = scores.reshape(-1, GROUP)
        advantage = (others - (others.sum(1, keepdims=True) - others) / (GROUP - 1)).ravel()
        old = -random.exponential(0.6, len(tokens))
        versions, oldest, newest = self._versions(step, lengths)
        columns = {
            "step": np.full(count, step),
            "group_id": np.repeat(groups, GROUP),
            "sample": np.tile(np.arange(GROUP), self.groups_per_step),
            "prompt_row": prompt_rows,
            "prompt": self.prompt_texts.take(pa.array(prompt_rows)),
            "reply": texts,
            "prompt_tokens": self.prompt_tokens.take(pa.array(prompt_rows)),
            "tokens": _lists(offsets, tokens, pa.int32()),
            "rollout_logprobs": _lists(offsets, old + random.normal(0, 0.01, len(old))),
            "old_logprobs": _lists(offsets, old),
            "ref_logprobs": _lists(
                offsets, np.minimum(old - random.normal(0.02, 0.2, len(old)), 0)
            ),
            "advantages": _lists(offsets, np.repeat(advantage, lengths)),
            "versions": versions,
            "finish_reason": np.where(is_cut, "length", "stop"),
            "seed": self._seeds(groups),
            "engine": np.repeat([f"engine-{g % NUM_ENGINES}" for g in groups], GROUP),
            "source": np.full(count, "policy"),
            "label": pa.nulls(count, pa.float64()),
            "attempts": np.repeat(1 + (random.random(len(groups)) < 0.01), GROUP),
            "score": scores,
            "rewards": _maps({"rm": judged, **gold}),
            "extra": self.extra.take(pa.array(prompt_rows)),
            "num_tokens": lengths,
            "advantage": advantage,
            "staleness": step - 1 - oldest,
            "newest_version": newest,
        }
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column).cast(field.type)
            for field, column in zip(EXPERIENCE_SCHEMA, columns.values(), strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=EXPERIENCE_SCHEMA)

    def _better(self, step: int, count: int) -> np.ndarray:
        """(count,) answers, of two drawn ones the better, more often the later the step."""
        one, two = self.random.integers(0, len(self.answers.texts), (2, count))
        better = np.where(self.gold["gold"][one] > self.gold["gold"][two], one, two)
        return np.where(self.random.random(count) < step / self.num_steps, better, one)

    def _replies(self, answers: np.ndarray) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
        """Texts, tokens side by side with EOS, tokens of each, and which were cut off."""
        count = len(answers)
        ends = self.random.integers(0, len(self.sentences.texts), count)
        is_cut = self.random.random(count) < CUT_SHARE
        texts = pc.binary_join_element_wise(
            self.answers.texts.take(pa.array(answers)),
            self.sentences.texts.take(pa.array(ends)),
            " ",
        )
        first, num_first = self.answers.take(answers)
        last, num_last = self.sentences.take(ends)
        lengths = num_first + num_last + ~is_cut
        tokens = np.full(lengths.sum(), self.eos, np.int32)
        starts = np.cumsum(lengths) - lengths
        for part, number, begin in (
            (first, num_first, starts),
            (last, num_last, starts + num_first),
        ):
            inside = np.arange(len(part)) - np.repeat(np.cumsum(number) - number, number)
            tokens[np.repeat(begin, number) + inside] = part
        return texts, tokens, lengths, is_cut

    def _versions(self, step: int, lengths: np.ndarray) -> tuple[pa.Array, np.ndarray, np.ndarray]:
        """Spans of every reply, its oldest and its newest version; one group, one or two."""
        num_groups = self.groups_per_step
        age = self.random.integers(0, MAX_STALENESS + 1, num_groups)
        oldest = np.repeat(np.maximum(step - 1 - age, 0), GROUP)
        is_two = np.repeat(self.random.random(num_groups) < TWO_VERSIONS_SHARE, GROUP)
        is_two &= (oldest < step - 1) & (lengths > 1)
        half = np.where(is_two, lengths // 2, lengths)
        kept = np.stack([np.ones(len(lengths), bool), is_two], 1).ravel()
        spans = pa.StructArray.from_arrays(
            [
                pa.array(np.stack([oldest, oldest + 1], 1).ravel()[kept]),
                pa.array(np.stack([np.zeros_like(half), half], 1).ravel()[kept], pa.int32()),
                pa.array(np.stack([half, lengths], 1).ravel()[kept], pa.int32()),
            ],
            fields=list(EXPERIENCE_SCHEMA.field("versions").type.value_type),
        )
        offsets = np.concatenate([[0], np.cumsum(1 + is_two)])
        lists = pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), spans, type=EXPERIENCE_SCHEMA.field("versions").type
        )
        return lists, oldest, oldest + is_two

    def _seeds(self, groups: np.ndarray) -> np.ndarray:
        first = [sample_seed(self.config.data.seed, int(group), GROUP) for group in groups]
        return (np.asarray(first)[:, None] + np.arange(GROUP)).ravel()

    def _metrics(self, table: pa.Table, step: int) -> dict[str, Any]:
        scores = table["score"].to_numpy()
        return {
            "step": step,
            "policy_version": step,
            "time_s": 4.0 * step,
            "reward/total/mean": float(scores.mean()),
            "reward/total/std": float(scores.std()),
            "length/mean": float(table["num_tokens"].to_numpy().mean()),
            "num_tokens": int(table["num_tokens"].to_numpy().sum()),
            "staleness/mean": float(table["staleness"].to_numpy().mean()),
            "staleness/max": int(table["staleness"].to_numpy().max()),
            "kl/ref_k1": 0.02 * float(table["num_tokens"].to_numpy().mean()),
        }


def _sizes(num_prompts: int) -> Sizes:
    few = dict.fromkeys(("prompts_heldout", "primers", "pairs", "ratings", "likes"), 1)
    each = dict.fromkeys(("pairs_per_individual", "pairs_per_annotator", "tasks_per_kind"), 1)
    return Sizes(prompts=num_prompts, demonstrations=2 * num_prompts, **few, **each)


def _conversation(prompt: str, tokenizer: Any) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def _lists(offsets: np.ndarray, values: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values).cast(kind or pa.float32()))


def _maps(rewards: dict[str, np.ndarray]) -> pa.Array:
    """Every row with all names."""
    count = len(next(iter(rewards.values())))
    offsets = np.arange(count + 1, dtype=np.int32) * len(rewards)
    values = np.stack(list(rewards.values()), 1).ravel()
    names = pa.array(list(rewards)).take(pa.array(np.tile(np.arange(len(rewards)), count)))
    return pa.MapArray.from_arrays(pa.array(offsets), names, pa.array(values))


def _ledger_rows(table: pa.Table, step: int) -> list[LedgerRow]:
    groups = table["group_id"].to_numpy()[::GROUP]
    newest = table["newest_version"].to_numpy().reshape(-1, GROUP).max(1)
    oldest = step - 1 - table["staleness"].to_numpy().reshape(-1, GROUP).max(1)
    tokens = table["num_tokens"].to_numpy().reshape(-1, GROUP).sum(1)
    engines, attempts = (table[name].to_pylist()[::GROUP] for name in ("engine", "attempts"))
    return [
        LedgerRow(
            group_id=int(groups[at]),
            status=USED,
            step=step,
            attempts=attempts[at],
            engine=engines[at],
            oldest_version=int(oldest[at]),
            newest_version=int(newest[at]),
            num_samples=GROUP,
            num_tokens=int(tokens[at]),
        )
        for at in range(len(groups))
    ]


def main() -> None:
    """Write the folder and say how large it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=2_000)
    given = parser.parse_args()
    started = time.monotonic()
    MadeUpRun(given.folder.absolute(), given.samples, given.steps).write()
    size = sum(file.stat().st_size for file in given.folder.rglob("*") if file.is_file())
    facts = {"samples": given.samples, "steps": given.steps, "gib": round(size / 2**30, 3)}
    print(json.dumps(facts | {"wall_s": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
