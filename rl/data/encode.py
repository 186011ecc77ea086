"""From a user's file to the records that training reads, and conversations for a reward model.

Each loader reads all rows, refuses the first wrong one by its place in the file, and treats rows
that do not fit as `overlong` says: `error` names the row, `drop` leaves them out and logs how many.
"""

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from rl.data.layouts import Example, detect, read_examples
from rl.data.rows import read_rows
from rl.data.template import conversation_text, prompt_tokens, reply_tokens
from rl.types import Demonstration, PreferencePair, Prompt, Rating, ScoredReplies

if TYPE_CHECKING:  # transformers takes seconds to import and is used for its type alone
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["error", "drop"]
Item = TypeVar("Item", Prompt, Demonstration, PreferencePair, Rating, ScoredReplies)

_log = logging.getLogger(__name__)


def load_prompts(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_prompt_length: int,
    overlong: Overlong,
    system_prompt: str | None = None,
) -> list[Prompt]:
    """The prompts of a file of any layout; those that stand beside replies count too.

    `max_prompt_length` counts tokens, the template's own among them.
    """
    examples = read_examples(path, ("prompts", "demonstrations", "pairs", "ratings", "lists"))

    def encode(example: Example) -> tuple[Prompt, int]:
        prompt = _prompt(example, tokenizer, system_prompt)
        return prompt, len(prompt.tokens)

    return _fitting(path, examples, encode, max_prompt_length, "data.max_prompt_length", overlong)


def load_demonstrations(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    overlong: Overlong,
    system_prompt: str | None = None,
) -> list[Demonstration]:
    """Prompts with the replies to imitate; of preference pairs, the chosen ones.

    `max_length` counts the tokens of prompt and reply, EOS included.
    """
    examples = read_examples(path, ("demonstrations", "pairs"))

    def encode(example: Example) -> tuple[Demonstration, int]:
        prompt = _prompt(example, tokenizer, system_prompt)
        imitated = example.completion if example.chosen is None else example.chosen
        text = _reply(example, imitated, tokenizer)
        tokens = tuple(reply_tokens(prompt.messages, list(prompt.tokens), text, tokenizer))
        item = Demonstration(prompt=prompt, text=text, tokens=tokens)
        return item, len(prompt.tokens) + len(tokens)

    return _fitting(path, examples, encode, max_length, "model.max_length", overlong)


def load_pairs(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    overlong: Overlong,
    system_prompt: str | None = None,
) -> list[PreferencePair]:
    """Preference pairs; `max_length` counts the tokens of prompt and longer reply, EOS included.

    One reply of a pair may be empty, since saying nothing can be better or worse than the other
    reply. Pairs of two equal replies teach nothing: they are left out and counted in the log.
    """
    examples = read_examples(path, ("pairs",))
    told_apart = [example for example in examples if example.chosen != example.rejected]
    if len(told_apart) < len(examples):
        equal = next(example for example in examples if example.chosen == example.rejected)
        _log.warning(
            "%s: left out %d of %d pairs whose replies are equal, first at %s",
            path, len(examples) - len(told_apart), len(examples), equal.where,
        )  # fmt: skip

    def encode(example: Example) -> tuple[PreferencePair, int]:
        prompt = _prompt(example, tokenizer, system_prompt)
        chosen = _reply(example, example.chosen, tokenizer, may_be_empty=True)
        rejected = _reply(example, example.rejected, tokenizer, may_be_empty=True)
        chosen_tokens, rejected_tokens = (
            _prompt_and_reply(prompt, reply, tokenizer) for reply in (chosen, rejected)
        )
        item = PreferencePair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
        )
        return item, max(len(chosen_tokens), len(rejected_tokens))

    return _fitting(path, told_apart, encode, max_length, "model.max_length", overlong)


def load_ratings(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    overlong: Overlong,
    system_prompt: str | None = None,
) -> list[Rating]:
    """Point-wise judgements; a rating's `tokens` are prompt plus reply, as those of a pair are.

    `max_length` counts them, EOS included. Truth values become 1.0 and 0.0.
    """
    examples = read_examples(path, ("ratings",))

    def encode(example: Example) -> tuple[Rating, int]:
        assert example.score is not None
        prompt = _prompt(example, tokenizer, system_prompt)
        reply = _reply(example, example.completion, tokenizer)
        tokens = _prompt_and_reply(prompt, reply, tokenizer)
        item = Rating(prompt=prompt, reply=reply, tokens=tokens, score=example.score)
        return item, len(tokens)

    return _fitting(path, examples, encode, max_length, "model.max_length", overlong)


def load_lists(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    overlong: Overlong,
    system_prompt: str | None = None,
) -> list[ScoredReplies]:
    """Several scored replies to each prompt; `max_length` counts prompt and longest reply.

    All rows hold as many replies as the first: a list-wise loss compares rows of one size.
    """
    examples = read_examples(path, ("lists",))
    size = len(examples[0].replies)

    def encode(example: Example) -> tuple[ScoredReplies, int]:
        if len(example.replies) != size:
            raise ValueError(
                f"{example.where}: {len(example.replies)} replies, but the first row has {size}: "
                "give every prompt as many"
            )
        prompt = _prompt(example, tokenizer, system_prompt)
        replies = tuple(
            _reply(example, reply, tokenizer, may_be_empty=True) for reply in example.replies
        )
        start = len(prompt.tokens)
        tokens = tuple(_prompt_and_reply(prompt, reply, tokenizer)[start:] for reply in replies)
        item = ScoredReplies(prompt=prompt, replies=replies, tokens=tokens, scores=example.scores)
        return item, start + max(map(len, tokens))

    return _fitting(path, examples, encode, max_length, "model.max_length", overlong)


def load_replies(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    overlong: Overlong,
    system_prompt: str | None = None,
) -> list[PreferencePair] | list[Rating] | list[Demonstration] | list[ScoredReplies]:
    """Rows with replies, of whatever kind the file holds."""
    loaders = {
        "pairs": load_pairs,
        "ratings": load_ratings,
        "demonstrations": load_demonstrations,
        "lists": load_lists,
    }
    kind = detect(read_rows(path)[0]).kind
    if kind not in loaders:
        raise ValueError(f"{path} holds {kind}, but replies are needed: {', '.join(loaders)}")
    return loaders[kind](
        path, tokenizer, max_length=max_length, overlong=overlong, system_prompt=system_prompt
    )


def split_validation(
    items: Sequence[Item], fraction: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """Training and validation items in their old order, at least one each; same seed, same split.

    Items with the same prompt stay on one side, so validation never shows a prompt that was
    trained on; the validation side has about `fraction` of the items, never more by choice.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"data.validation_fraction is {fraction}: give one between 0 and 1")
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(items):
        prompt = item if isinstance(item, Prompt) else item.prompt
        groups.setdefault(prompt.tokens, []).append(index)
    if len(groups) < 2:
        raise ValueError(
            f"{len(items)} rows with {len(groups)} different prompts cannot be split: add rows or "
            "set data.validation"
        )
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    wanted = round(fraction * len(items))
    held_out: set[int] = set()
    for group in shuffled:
        if len(held_out) + len(group) <= wanted and len(held_out) + len(group) < len(items):
            held_out.update(group)
    held_out = held_out or set(min(shuffled, key=len))
    return (
        [item for index, item in enumerate(items) if index not in held_out],
        [item for index, item in enumerate(items) if index in held_out],
    )


def encode_for_reward(
    prompts: Sequence[Prompt], replies: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Conversations with their replies in the tokens of a reward model, each ended by one EOS.

    The reward model has its own tokenizer and template, so this starts from text. Special tokens
    that a reply spells out are broken up: else a policy could end its reply, or open another
    turn, in the eyes of the reward model alone.
    """
    return [[*start, *reply] for start, reply in encode_turns(prompts, replies, tokenizer)]


def encode_turns(
    prompts: Sequence[Prompt], replies: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[list[int], list[int]]]:
    """What `encode_for_reward` joins: the tokens of each prompt, and of its reply with EOS."""
    turns = []
    for prompt, reply in zip(prompts, replies, strict=True):
        messages = prompt.messages or ({"role": "user", "content": prompt.text},)
        start = prompt_tokens(messages, tokenizer)
        plain = without_special_tokens(reply, tokenizer)
        turns.append((start, reply_tokens(messages, start, plain, tokenizer)))
    return turns


def without_special_tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text with a space for each special token that it spells out."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, " ")
    return text


def _prompt(
    example: Example, tokenizer: "PreTrainedTokenizerBase", system_prompt: str | None
) -> Prompt:
    """The example's conversation behind the run's system prompt, which judges do not read."""
    messages: tuple[Mapping[str, str], ...] = example.messages
    if system_prompt is not None:
        if messages[0]["role"] == "system":
            raise ValueError(
                f"{example.where}: the row has a system message of its own: remove it, or leave "
                "data.system_prompt empty"
            )
        messages = ({"role": "system", "content": system_prompt}, *messages)
    try:
        tokens = prompt_tokens(messages, tokenizer)
    except ValueError as error:
        raise ValueError(f"{example.where}: {error}") from error
    return Prompt(
        row=example.row,
        text=conversation_text(example.messages),
        tokens=tuple(tokens),
        extra=example.extra,
        messages=messages,
    )


def _reply(
    example: Example,
    reply: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    may_be_empty: bool = False,
) -> str:
    """A checked reply without the EOS that some files spell out at its end."""
    assert reply is not None
    eos = str(tokenizer.eos_token)
    reply = reply.removesuffix(eos)
    if eos in reply:
        raise ValueError(f"{example.where}: the reply goes on behind {eos}: remove what follows it")
    if not reply.strip() and not may_be_empty:
        raise ValueError(f"{example.where}: the reply is empty: write one or remove the row")
    return reply


def _prompt_and_reply(
    prompt: Prompt, reply: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[int, ...]:
    tokens = list(prompt.tokens)
    return (*tokens, *reply_tokens(prompt.messages, tokens, reply, tokenizer))


def _fitting(
    path: str | Path,
    examples: Iterable[Example],
    encode: Callable[[Example], tuple[Item, int]],
    limit: int,
    field: str,
    overlong: Overlong,
) -> list[Item]:
    """Encoded examples of at most `limit` tokens; `encode` gives an item and its length."""
    kept, num_dropped = [], 0
    for example in examples:
        item, length = encode(example)
        if length <= limit:
            kept.append(item)
        elif overlong == "drop":
            num_dropped += 1
        else:
            raise ValueError(
                f"{example.where}: {length} tokens, but {field} allows {limit}: raise it, shorten "
                "the row, or set data.overlong=drop"
            )
    if num_dropped:
        _log.warning(
            "%s: dropped %d of %d rows longer than %d tokens (%s)",
            path, num_dropped, num_dropped + len(kept), limit, field,
        )  # fmt: skip
    if not kept:
        raise ValueError(f"{path}: no row is left to learn from: raise {field} or check the rows")
    return kept
