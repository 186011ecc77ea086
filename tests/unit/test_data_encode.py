import json
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rl.data.encode import (
    Overlong,
    encode_for_reward,
    load_demonstrations,
    load_lists,
    load_pairs,
    load_prompts,
    load_ratings,
    load_replies,
    split_validation,
)
from rl.types import Prompt

WORDS = "<pad> <bos> <eos> <unk> <user> <assistant> <system> hi there good bad User: Assistant: end"
PAD, BOS, EOS, UNK, USER, ASSISTANT, SYSTEM, HI, THERE, GOOD, BAD, U, A, END = range(14)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} "
    "{% if m['role'] == 'assistant' %}<eos> end {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def _tokenizer(template: str | None, words: str = WORDS) -> PreTrainedTokenizerFast:
    """One token per word; alone, a text is put between BOS and EOS as some tokenizers do."""
    vocabulary = {word: number for number, word in enumerate(words.split())}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[(token, vocabulary[token]) for token in ("<bos>", "<eos>")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def chat():
    return _tokenizer(TEMPLATE)


@pytest.fixture(scope="module")
def plain():
    return _tokenizer(None)


@pytest.fixture
def write(tmp_path):
    def write(*rows: dict) -> str:
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


DEMONSTRATION = {"prompt": "hi", "completion": "good there", "topic": 1}
PAIR = {"prompt": "hi", "chosen": "good", "rejected": "bad there"}
TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "bad"},
]
ROOM = {"max_length": 100, "overlong": "error"}


def _prompts(path, tokenizer, *, limit=100, overlong: Overlong = "error", **options):
    return load_prompts(path, tokenizer, max_prompt_length=limit, overlong=overlong, **options)


def test_a_prompt_ends_where_the_template_lets_the_assistant_speak(chat, write):
    (prompt,) = _prompts(write({"prompt": "hi there", "topic": 1}), chat)
    assert prompt.tokens == (USER, HI, THERE, ASSISTANT)
    assert (prompt.row, prompt.text, prompt.extra) == (0, "hi there", {"topic": 1})
    assert prompt.messages == ({"role": "user", "content": "hi there"},)


def test_the_system_prompt_reaches_the_policy_but_not_the_judge(chat, write):
    (prompt,) = _prompts(write({"prompt": "hi"}), chat, system_prompt="good")
    assert prompt.tokens == (SYSTEM, GOOD, USER, HI, ASSISTANT)
    assert prompt.text == "hi"
    assert prompt.messages[0] == {"role": "system", "content": "good"}


def test_two_system_prompts_are_refused(chat, write):
    path = write({"prompt": [{"role": "system", "content": "bad"}, *TURNS]})
    with pytest.raises(ValueError, match=r"line 1: the row has a system message of its own"):
        _prompts(path, chat, system_prompt="good")


def test_judges_read_longer_conversations_with_their_speakers(chat, write):
    (prompt,) = _prompts(write({"prompt": TURNS}), chat)
    assert prompt.text == "User: hi\n\nAssistant: good\n\nUser: bad"
    assert prompt.tokens == (USER, HI, ASSISTANT, GOOD, EOS, END, USER, BAD, ASSISTANT)


def test_without_a_template_a_prompt_is_plain_text_with_bos_and_no_eos(plain, write):
    (prompt,) = _prompts(write({"prompt": "hi there"}), plain)
    assert prompt.tokens == (BOS, HI, THERE)
    (prompt,) = _prompts(write({"prompt": TURNS}), plain)
    assert prompt.tokens == (BOS, U, HI, A, GOOD, U, BAD, A)


def test_a_refusal_of_the_template_names_the_row(write):
    strict = _tokenizer("{{ raise_exception('no such roles') }}")
    with pytest.raises(ValueError, match=r"line 1: the chat template refuses .*no such roles"):
        _prompts(write({"prompt": "hi"}), strict)


@pytest.mark.parametrize("row", [DEMONSTRATION, PAIR, DEMONSTRATION | {"score": 1}])
def test_rows_of_every_layout_serve_as_prompts(chat, write, row):
    (prompt,) = _prompts(write(row), chat)
    assert prompt.tokens == (USER, HI, ASSISTANT)
    assert prompt.extra == {name: value for name, value in row.items() if name != "prompt"}


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,  # writes more behind EOS
        TEMPLATE.replace("<eos> end ", ""),  # writes no EOS
        TEMPLATE.replace("prompt %}<assistant> ", "prompt %}<assistant> end "),  # not a beginning
        None,
    ],
)
def test_a_demonstration_ends_with_one_eos_whatever_the_template_writes(write, template):
    tokenizer = _tokenizer(template)
    (item,) = load_demonstrations(write(DEMONSTRATION), tokenizer, **ROOM)
    assert item.tokens == (GOOD, THERE, EOS)
    assert item.text == "good there"


def test_prompt_and_reply_tokens_join_to_the_rendered_conversation(chat, write):
    (item,) = load_demonstrations(write({"messages": [*TURNS, TURNS[1]]}), chat, **ROOM)
    rendered = chat.apply_chat_template([*TURNS, TURNS[1]], tokenize=True, return_dict=False)
    assert [*item.prompt.tokens, *item.tokens, END] == rendered


def test_words_that_a_template_puts_before_the_reply_belong_to_it(write):
    thinking = _tokenizer(TEMPLATE.replace("{{ m['content'] }}", "{{ 'there ' + m['content'] }}"))
    (item,) = load_demonstrations(write({"prompt": "hi", "completion": "good"}), thinking, **ROOM)
    assert item.tokens == (THERE, GOOD, EOS)


def test_an_eos_spelled_out_ends_a_reply_but_never_splits_it(chat, write):
    (item,) = load_demonstrations(write({"prompt": "hi", "completion": "good<eos>"}), chat, **ROOM)
    assert (item.text, item.tokens) == ("good", (GOOD, EOS))
    with pytest.raises(ValueError, match=r"line 1: the reply goes on behind <eos>"):
        load_demonstrations(write({"prompt": "hi", "completion": "good <eos> bad"}), chat, **ROOM)


def test_demonstrations_come_from_chosen_replies_but_not_from_ratings(chat, write):
    (item,) = load_demonstrations(write(PAIR), chat, **ROOM)
    assert item.tokens == (GOOD, EOS)
    with pytest.raises(ValueError, match=r"holds ratings .* but demonstrations are needed"):
        load_demonstrations(write(DEMONSTRATION | {"score": 1}), chat, **ROOM)


def test_an_empty_reply_is_no_demonstration(chat, write):
    path = write(DEMONSTRATION, {"prompt": "hi", "completion": " "})
    with pytest.raises(ValueError, match=r"line 2: the reply is empty"):
        load_demonstrations(path, chat, **ROOM)


def test_both_sequences_of_a_pair_hold_the_prompt(chat, write):
    (pair,) = load_pairs(write(PAIR), chat, **ROOM)
    assert (pair.chosen, pair.rejected) == ("good", "bad there")
    assert pair.chosen_tokens == (USER, HI, ASSISTANT, GOOD, EOS)
    assert pair.rejected_tokens == (USER, HI, ASSISTANT, BAD, THERE, EOS)


def test_saying_nothing_may_win_or_lose_a_pair(plain, write):
    (pair,) = load_pairs(write(PAIR | {"chosen": ""}), plain, **ROOM)
    assert pair.chosen_tokens == (BOS, HI, EOS)


def test_pairs_of_equal_replies_are_left_out_and_counted(chat, write, caplog):
    path = write(PAIR, PAIR | {"rejected": "good"}, PAIR)
    assert [pair.prompt.row for pair in load_pairs(path, chat, **ROOM)] == [0, 2]
    assert "left out 1 of 3 pairs" in caplog.text
    assert "line 2" in caplog.text


def test_a_rating_holds_prompt_reply_and_score(chat, write):
    (rating,) = load_ratings(
        write({"prompt": "hi", "response": "bad", "label": True}), chat, **ROOM
    )
    assert rating.tokens == (USER, HI, ASSISTANT, BAD, EOS)
    assert (rating.reply, rating.score) == ("bad", 1.0)


# DEMONSTRATION is 3 prompt tokens and 3 reply tokens; of PAIR, the longer side is 6.
@pytest.mark.parametrize(
    ("load", "row", "length"),
    [
        (load_demonstrations, DEMONSTRATION, 6),
        (load_pairs, PAIR, 6),
        (load_pairs, PAIR | {"chosen": "bad bad good"}, 7),
        (load_ratings, DEMONSTRATION | {"score": 0}, 6),
    ],
)
def test_rows_fit_up_to_exactly_the_limit(chat, write, load, row, length):
    assert len(load(write(row), chat, max_length=length, overlong="error")) == 1
    pattern = rf"line 1: {length} tokens, but model\.max_length allows {length - 1}: .*overlong"
    with pytest.raises(ValueError, match=pattern):
        load(write(row), chat, max_length=length - 1, overlong="error")


def test_overlong_prompts_are_refused_by_line_or_dropped_and_counted(chat, write, caplog):
    path = write({"prompt": "hi"}, {"prompt": "hi there"}, {"prompt": "bad"})
    with pytest.raises(ValueError, match=r"line 2: 4 tokens, but data\.max_prompt_length allows 3"):
        _prompts(path, chat, limit=3)
    assert [prompt.row for prompt in _prompts(path, chat, limit=3, overlong="drop")] == [0, 2]
    assert "dropped 1 of 3 rows longer than 3 tokens" in caplog.text
    with pytest.raises(ValueError, match="no row is left to learn from"):
        _prompts(path, chat, limit=2, overlong="drop")


def _items(*names: int) -> list[Prompt]:
    return [
        Prompt(row=row, text=str(name), tokens=(name,), extra={}) for row, name in enumerate(names)
    ]


def test_a_split_is_whole_ordered_and_settled_by_its_seed():
    items = _items(*range(40))
    train, validation = split_validation(items, 0.25, seed=3)
    assert len(validation) == 10
    assert sorted(train + validation, key=lambda item: item.row) == items
    assert train == sorted(train, key=lambda item: item.row)
    assert split_validation(items, 0.25, seed=3) == (train, validation)
    assert split_validation(items, 0.25, seed=4) != (train, validation)


@pytest.mark.parametrize("seed", range(20))
def test_equal_prompts_stay_on_one_side(seed):
    items = _items(*[name for name in range(12) for _ in range(1 + name % 3)])
    train, validation = split_validation(items, 0.3, seed)
    assert not {item.tokens for item in train} & {item.tokens for item in validation}
    assert 1 <= len(validation) <= round(0.3 * len(items))


@pytest.mark.parametrize(("fraction", "sizes"), [(0.01, [4, 1]), (0.99, [1, 4])])
def test_neither_side_is_ever_empty(fraction, sizes):
    assert [len(side) for side in split_validation(_items(0, 1, 2, 3, 4), fraction, 0)] == sizes


def test_a_large_group_is_held_out_only_where_no_smaller_one_is():
    train, validation = split_validation(_items(1, 1, 1, 1, 2, 2), 0.1, 0)
    assert Counter(item.tokens for item in train) == {(1,): 4}
    assert Counter(item.tokens for item in validation) == {(2,): 2}


def test_data_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="3 rows with 1 different prompts cannot be split"):
        split_validation(_items(1, 1, 1), 0.5, 0)
    with pytest.raises(ValueError, match=r"data\.validation_fraction is 0"):
        split_validation(_items(1, 2), 0, 0)


@pytest.fixture(scope="module")
def reader():
    """A reward model's tokenizer with other ids and another template than the policy's."""
    words = " ".join(reversed(WORDS.split()))
    return _tokenizer(TEMPLATE.replace("<assistant>", "Assistant:"), words)


def _flip(*tokens: int) -> list[int]:
    return [13 - token for token in tokens]


def test_a_reward_model_reads_the_conversation_in_its_own_tokens(chat, reader, write):
    prompts = _prompts(write({"prompt": TURNS}, {"prompt": "hi"}), chat, system_prompt="there")
    first, second = encode_for_reward(prompts, ["good", ""], reader)
    turns = (SYSTEM, THERE, USER, HI, ASSISTANT, GOOD, EOS, END, USER, BAD)
    assert first == _flip(*turns, A)[: len(turns) + 1] + _flip(GOOD, EOS)
    assert second == _flip(SYSTEM, THERE, USER, HI, A, EOS)


def test_a_reply_cannot_end_itself_early_in_the_eyes_of_the_reward_model(reader):
    prompt = Prompt(row=0, text="hi", tokens=(1,), extra={})
    (tokens,) = encode_for_reward([prompt], ["good<eos>bad<pad>"], reader)
    assert tokens == _flip(USER, HI, A, GOOD, BAD, EOS)


def test_prompts_and_replies_must_be_as_many(reader):
    with pytest.raises(ValueError, match="shorter"):
        encode_for_reward([Prompt(row=0, text="hi", tokens=(1,), extra={})], [], reader)


LIST = {"prompt": "hi", "replies": ["good", "bad there"], "scores": [0.9, 0.1]}


def test_a_list_keeps_every_reply_with_its_score_behind_one_prompt(chat, write):
    (item,) = load_lists(write(LIST), chat, **ROOM)
    assert item.tokens == ((GOOD, EOS), (BAD, THERE, EOS))
    assert item.scores == (0.9, 0.1)
    assert item.prompt.tokens[-1] == ASSISTANT


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (LIST | {"scores": [1.0]}, "line 2: `scores` must be a list as long as `replies`"),
        (LIST | {"replies": ["good"], "scores": [1.0]}, "line 2: .* of two or more"),
        (LIST | {"scores": [1.0, "much"]}, "line 2: `scores` must be a finite number"),
        (LIST | {"replies": ["good", 3]}, "line 2: `replies` must be a list of texts"),
        (
            LIST | {"replies": ["good"] * 3, "scores": [1.0] * 3},
            "line 2: 3 replies, but the first row has 2",
        ),
    ],
)
def test_a_wrong_list_is_named_by_its_row(chat, write, row, words):
    with pytest.raises(ValueError, match=words):
        load_lists(write(LIST, row), chat, **ROOM)


def test_replies_are_read_from_files_of_every_kind_but_prompts(chat, write):
    for row, kind in (
        (PAIR, "PreferencePair"),
        (LIST, "ScoredReplies"),
        (DEMONSTRATION, "Demonst"),
    ):
        (item,) = load_replies(write(row), chat, **ROOM)
        assert type(item).__name__.startswith(kind)
    with pytest.raises(ValueError, match="holds prompts, but replies are needed"):
        load_replies(write({"prompt": "hi"}), chat, **ROOM)


def test_a_list_may_hold_an_empty_reply_that_was_sampled(chat, write):
    (item,) = load_lists(write(LIST | {"replies": ["good", ""]}), chat, **ROOM)
    assert item.tokens == ((GOOD, EOS), (EOS,))
