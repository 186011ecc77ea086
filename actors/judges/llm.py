"""A language model on our own vLLM engine that is asked which of two replies is better."""

import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actors.judges.answers import Scores
from actors.judges.inputs import read_layout
from actors.judges.pairwise import mean_wins
from actors.rollout import EngineSpec, RolloutEngine
from configs.schema import RewardConfig
from rl.data.encode import without_special_tokens
from rl.data.template import prompt_tokens
from rl.feedback.ranking import parse_verdict
from rl.folders import context_length
from rl.types import Rollout

READABLE = 0.01
"""Least probability of the two letters together; below it, the judge says something else."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How an answer begins."""

    text: str
    """The likeliest first token."""
    first: float
    """Probability that it begins with A."""
    second: float
    """Probability that it begins with B."""

    def win(self) -> float:
        """How likely the first reply is the better one; `ValueError` where it answers neither."""
        said = self.first + self.second
        if said < READABLE:
            raise ValueError(
                f"the judge's answer begins with {self.text!r}, and with A or B in {said:.2%} of "
                "cases; ask for one of these letters and nothing else, or set verdict=text"
            )
        return self.first / said


class JudgeEngine(RolloutEngine):
    """The rollout engine, greedy, and asked for words or for the odds of two letters."""

    async def openings(
        self, prompts: Sequence[list[int]], letters: Sequence[list[int]]
    ) -> list[Opening]:
        """How the answer to each prompt begins; `letters` are the tokens of A and those of B."""

        async def one(tokens: list[int], number: int) -> Opening:
            from vllm import SamplingParams

            parameters = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprob_token_ids=sorted({token for ids in letters for token in ids}),
            )
            output = (await self._run(tokens, parameters, request_id(number))).outputs[0]
            assert output.logprobs is not None
            found = output.logprobs[0]
            assert found is not None
            first, second = (
                sum(math.exp(found[token].logprob) for token in ids) for ids in letters
            )
            return Opening(text=output.text, first=first, second=second)

        return list(await asyncio.gather(*(one(p, n) for n, p in enumerate(prompts))))

    async def answers(self, prompts: Sequence[list[int]], max_tokens: int) -> list[str]:
        """The likeliest answer to each prompt, word for word."""

        async def one(tokens: list[int], number: int) -> str:
            from vllm import SamplingParams

            parameters = SamplingParams(
                max_tokens=max_tokens, temperature=0.0, stop_token_ids=self.stop_token_ids
            )
            return (await self._run(tokens, parameters, request_id(number))).outputs[0].text

        return list(await asyncio.gather(*(one(p, n) for n, p in enumerate(prompts))))


class LLMJudge:
    """Mean win probability of a reply in its group, as a language model sees it.

    Not finding a verdict in an answer is an error; it is never taken for a tie or a 0.
    """

    def __init__(self, name: str, reward: RewardConfig, spec: EngineSpec) -> None:
        assert reward.prompt_file is not None
        self.name, self.reward = name, reward
        self.layout = read_layout(reward.prompt_file)
        model_config = json.loads((Path(spec.model_path) / "config.json").read_text())
        self.tokenizer = AutoTokenizer.from_pretrained(spec.model_path, local_files_only=True)
        is_token = reward.verdict == "token"
        self.letters = [letter_tokens(self.tokenizer, letter) for letter in "AB" if is_token]
        longest = min(spec.max_length, context_length(model_config))
        self.engine = JudgeEngine(replace(spec, max_length=longest))
        # The engine lives in one event loop; this one runs while a call to the judge lasts.
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.engine.start())

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Between 0 and 1; the replies of one group average 1/2."""
        return mean_wins(self.name, rollouts, self.layout, self._ask, self._plain)

    def _ask(self, questions: list[str]) -> list[float]:
        prompts = [
            prompt_tokens([{"role": "user", "content": question}], self.tokenizer)
            for question in questions
        ]
        num_answered = self.reward.verdict_tokens if self.reward.verdict == "text" else 1
        longest, room = max(map(len, prompts)), self.engine.spec.max_length
        if longest + num_answered > room:
            raise ValueError(
                f"reward {self.name}: a question of {longest} tokens and an answer of "
                f"{num_answered} are more than the judge's {room}: lower data.max_prompt_length, "
                "data.sampling.max_new_tokens or verdict_tokens"
            )
        try:
            if self.reward.verdict == "text":
                answers = self.engine.answers(prompts, num_answered)
                return [parse_verdict(text) for text in self.loop.run_until_complete(answers)]
            openings = self.loop.run_until_complete(self.engine.openings(prompts, self.letters))
            return [opening.win() for opening in openings]
        except ValueError as error:
            raise ValueError(f"reward {self.name}: {error}") from error

    def _plain(self, text: str) -> str:
        return without_special_tokens(text, self.tokenizer)


def request_id(number: int) -> str:
    """Unique also where a question is asked again after a failure."""
    return f"question-{number}-{time.monotonic_ns()}"


def letter_tokens(tokenizer: PreTrainedTokenizerBase, letter: str) -> list[int]:
    """The tokens that are this letter, with or without a space before it."""
    found = set()
    for text in (letter, f" {letter}"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            found.add(ids[0])
    if not found:
        raise ValueError(f"the judge's tokenizer has no token for {letter}; set verdict=text")
    return sorted(found)
