"""Conversations as token ids and as text.

A tokenizer with a chat template renders conversations itself. Without one a single user message is
plain text, which the reply continues, and a longer conversation is written as labelled turns.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

if TYPE_CHECKING:  # transformers takes seconds to import and is used for its type alone
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]


def conversation_text(messages: Messages) -> str:
    """What people and judges read: a lone message as it is, else turns with their speakers.

    >>> conversation_text([{"role": "user", "content": "Hi"}])
    'Hi'
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages)


def prompt_tokens(messages: Messages, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The conversation up to the place where the assistant's reply begins.

    Raises `ValueError` where the chat template refuses the conversation.
    """
    if tokenizer.chat_template:
        return _apply_template(messages, tokenizer, reply_follows=True)
    text = conversation_text(messages)
    tokens = _ids(text if len(messages) == 1 else f"{text}\n\nAssistant:", tokenizer, special=True)
    # Some tokenizers close every text with EOS, which would end the reply before it begins.
    return tokens[:-1] if tokens[-1:] == [tokenizer.eos_token_id] else tokens


def reply_tokens(
    messages: Messages,
    prompt: list[int],
    reply: str,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[int]:
    """Tokens that follow `prompt`, the tokens of `messages`: the reply and one EOS at its end.

    Taken from the template's rendering of the whole conversation where that continues the prompt's
    tokens, since templates add or trim around a reply; else the reply is tokenized by itself. An
    EOS that the text of `reply` spells out is the caller's to refuse.
    """
    eos = cast(int, tokenizer.eos_token_id)
    tokens = _ids(reply, tokenizer, special=False)
    if tokenizer.chat_template:
        turn = {"role": "assistant", "content": reply}
        whole = _apply_template([*messages, turn], tokenizer, reply_follows=False)
        if whole[: len(prompt)] == prompt:
            tokens = whole[len(prompt) :]
    # Templates may write more behind EOS, such as a line break; sampling stops at EOS.
    end = tokens.index(eos) if eos in tokens else len(tokens)
    return [*tokens[:end], eos]


def _apply_template(
    messages: Messages, tokenizer: "PreTrainedTokenizerBase", *, reply_follows: bool
) -> list[int]:
    try:
        tokens = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=reply_follows,
            tokenize=True,
            return_dict=False,
        )
    except TemplateError as error:
        raise ValueError(
            f"the chat template refuses this conversation ({error}): check its roles"
        ) from error
    return cast(list[int], tokens)


def _ids(text: str, tokenizer: "PreTrainedTokenizerBase", *, special: bool) -> list[int]:
    return cast(list[int], tokenizer(text, add_special_tokens=special).input_ids)
