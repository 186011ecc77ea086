import json

import pytest

from rl.data.layouts import Example, detect, normalise, read_examples
from rl.data.rows import Row

HI = [{"role": "user", "content": "Hi"}]
ANSWER = [{"role": "assistant", "content": "Hello"}]


def _read(**columns) -> Example:
    row = Row(columns, "f line 1")
    return normalise(row, 0, detect(row))


@pytest.mark.parametrize("prompt", ["Hi", HI])
def test_a_prompt_is_text_or_messages(prompt):
    example = _read(prompt=prompt, topic="greeting")
    assert list(example.messages) == HI
    assert example.extra == {"topic": "greeting"}
    assert example.completion is None


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {"instruction": "Hi", "output": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": HI, "completion": ANSWER},
        {"messages": HI + ANSWER},
        {"messages": HI + ANSWER, "prompt": "Hi"},
    ],
)
def test_demonstrations_have_a_prompt_and_a_completion(columns):
    row = Row(columns, "f line 1")
    assert detect(row).kind == "demonstrations"
    example = _read(**columns)
    assert (list(example.messages), example.completion) == (HI, "Hello")


def test_other_columns_stay_with_the_prompt():
    assert _read(question="2+2?", answer="4").extra == {"answer": "4"}


def test_the_input_of_an_instruction_belongs_to_the_prompt():
    example = _read(instruction="Sum up.", input="Long text", output="Short")
    assert example.messages[0]["content"] == "Sum up.\n\nLong text"
    assert _read(instruction="Sum up.", input="", output="").messages[0]["content"] == "Sum up."


def test_messages_that_end_with_the_user_are_prompts():
    turns = [{"role": "system", "content": "Be kind"}, *HI, *ANSWER, *HI]
    assert list(_read(messages=turns).messages) == turns
    assert detect(Row({"messages": turns}, "f")).kind == "prompts"


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
        {"prompt": HI, "chosen": ANSWER, "rejected": [{"role": "assistant", "content": "Go"}]},
        {
            "prompt": "Hi",
            "chosen": HI + ANSWER,
            "rejected": [*HI, {"role": "assistant", "content": "Go"}],
        },
        {"chosen": HI + ANSWER, "rejected": [*HI, {"role": "assistant", "content": "Go"}]},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Go",
        },
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello", "rejected": "Go"},
    ],
)
def test_pairs_in_every_layout_are_read_alike(columns):
    example = _read(**columns)
    assert list(example.messages) == HI
    assert (example.chosen, example.rejected) == ("Hello", "Go")


def test_a_dialogue_pair_is_cut_at_the_last_common_assistant_turn():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    example = _read(chosen=f"{start} Same start, d", rejected=f"{start} Same start, e")
    assert [turn["content"] for turn in example.messages] == ["a", "b", "c"]
    assert (example.chosen, example.rejected) == ("Same start, d", "Same start, e")


def test_dialogues_that_part_before_their_last_turn_keep_later_turns_in_the_reply():
    start = "\n\nHuman: a\n\nAssistant:"
    example = _read(chosen=f"{start} x\n\nHuman: y\n\nAssistant: z", rejected=f"{start} w")
    assert list(example.messages) == [{"role": "user", "content": "a"}]
    assert example.chosen == "x\n\nHuman: y\n\nAssistant: z"


def test_two_assistant_turns_in_a_row_never_end_the_prompt():
    start = "\n\nHuman: a\n\nAssistant: b\n\nAssistant:"
    example = _read(chosen=f"{start} c", rejected=f"{start} d")
    assert [turn["role"] for turn in example.messages] == ["user"]
    assert example.chosen == "b\n\nAssistant: c"


def test_turns_of_one_speaker_in_a_row_become_one():
    example = _read(prompt="\n\nHuman: a\n\nHuman: b\n\nAssistant:")
    assert list(example.messages) == [{"role": "user", "content": "a\n\nb"}]


@pytest.mark.parametrize("name", ["score", "rating", "label", "reward"])
@pytest.mark.parametrize(("value", "score"), [(True, 1.0), (False, 0.0), (4, 4.0), (-0.5, -0.5)])
def test_ratings_are_numbers_or_truth_values(name, value, score):
    example = _read(prompt="Hi", completion="Hello", **{name: value})
    assert (example.completion, example.score) == ("Hello", score)
    assert _read(messages=HI + ANSWER, **{name: value}).score == score


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        ({"text": "Hi"}, "columns text are no known layout"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": HI + ANSWER}, "must end with the user's message"),
        ({"prompt": []}, "`prompt` must be text or a list of messages"),
        ({"prompt": [{"role": "tool", "content": "x"}]}, "each message of `prompt` needs a `role`"),
        ({"messages": [{"role": "user", "content": None}]}, "text as `content`"),
        ({"messages": ["Hi"]}, "each message of `messages` needs"),
        ({"messages": ANSWER}, "must end with the user's message"),
        ({"prompt": "Hi", "completion": HI + HI}, "must add one assistant message"),
        ({"prompt": "Bye", "completion": HI + ANSWER}, "must add one assistant message"),
        ({"prompt": "Hi", "completion": "x", "score": "good"}, "`score` must be a finite number"),
        ({"prompt": "Hi", "completion": "x", "score": float("nan")}, "`score` must be a finite"),
        ({"chosen": "Hello", "rejected": "Go"}, "share no .*Assistant:' turn"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": HI}, "`chosen` must be text or"),
        ({"chosen": HI + ANSWER, "rejected": ANSWER}, "must share all messages but the last"),
    ],
)
def test_rows_that_make_no_sense_are_refused_by_place_and_field(columns, pattern):
    with pytest.raises(ValueError, match=f"f line 1: .*{pattern}"):
        _read(**columns)


def _file(tmp_path, *rows):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_row_unlike_the_first_is_refused_by_line_and_field(tmp_path):
    file = _file(tmp_path, {"prompt": "a", "completion": "b"}, {"prompt": "a"})
    with pytest.raises(ValueError, match=r"line 2: `completion` is missing"):
        read_examples(file, ("demonstrations",))
    turns = {"messages": HI + ANSWER}
    with pytest.raises(ValueError, match=r"line 2: `messages` must end with the assistant's"):
        read_examples(_file(tmp_path, turns, {"messages": HI}), ("demonstrations",))


def test_a_file_of_another_kind_is_refused_with_the_columns_it_needs(tmp_path):
    file = _file(tmp_path, {"prompt": "a"})
    with pytest.raises(ValueError, match=r"holds prompts \(columns prompt\), but pairs are needed"):
        read_examples(file, ("pairs",))
