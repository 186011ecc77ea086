"""Judges of tiny real models, against the same numbers worked out with plain transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from actors.judges.inputs import num_labels, read_layout
from actors.judges.pairwise import fill, mean_wins
from actors.reward import build_judge
from actors.specs import FrozenSpec
from configs.schema import RewardConfig
from rl.types import Prompt, Rollout, VersionSpan
from tests.integration import toy

EOS, USER, ASSISTANT = 1, 2, 3


def rollout(text: str, group_id: int = 0, prompt: str = "w5 w6") -> Rollout:
    return Rollout(
        group_id=group_id,
        sample=0,
        prompt=Prompt(row=group_id, text=prompt, tokens=(9,), extra={}),
        tokens=np.array([6, 1], np.int32),
        text=text,
        rollout_logprobs=np.zeros(2, np.float32),
        versions=(VersionSpan(version=0, start=0, end=2),),
        finish_reason="stop",
        seed=0,
        engine="engine-0",
    )


REPLIES = [rollout("w20 w21 w22"), rollout("w30"), rollout("w40 w41 w42 w43 w44")]


def judge(path: Path | str | None, **settings: Any) -> Any:
    spec = FrozenSpec(kind="value", path=str(path), dtype="float32", device="cpu", max_tokens=64)
    path = None if settings["kind"] == "ensemble" else str(path)
    return build_judge("r", RewardConfig(path=path, **settings), spec)


def words(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def conversation(text: str) -> tuple[list[int], list[int]]:
    """Prompt and reply in the toy's template, by hand."""
    return [USER, 5, 6, ASSISTANT], [*words(text), EOS]


def write_classifier(folder: Path, labels: int, seed: int = 2) -> Path:
    torch.manual_seed(seed)
    settings: dict[str, Any] = toy.SHAPE | {"num_labels": labels}
    Qwen3ForSequenceClassification(Qwen3Config(**settings)).save_pretrained(folder)
    toy.tokenizer().save_pretrained(str(folder))
    return folder


def plain_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    """(labels,) of one unpadded sequence."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].double()


# Implicit


def test_an_implicit_reward_is_the_log_ratio_of_two_policies(model_folder):
    folders = model_folder("qwen3"), model_folder("llama")
    expected, lengths = [], []
    for reply in REPLIES:
        prompt, tokens = conversation(reply.text)
        with torch.no_grad():
            sums = [
                float(
                    toy.token_logprobs(toy.load_policy(f), [*prompt, *tokens])[len(prompt) :].sum()
                )
                for f in folders
            ]
        expected.append(0.3 * (sums[0] - sums[1]))
        lengths.append(len(tokens))
    settings = {"kind": "implicit", "reference": str(folders[1]), "beta": 0.3}
    found = judge(folders[0], **settings).score(REPLIES)
    assert found == {"r": pytest.approx(expected, abs=1e-4)}
    assert np.ptp(expected) > 0.1
    per_token = judge(folders[0], **settings, length_normalised=True).score(REPLIES)["r"]
    assert lengths == [4, 2, 6]
    assert per_token == pytest.approx(np.divide(expected, lengths), abs=1e-4)


def test_a_policy_against_itself_has_no_implicit_reward(model_folder):
    folder = model_folder("qwen3")
    settings = {"kind": "implicit", "reference": str(folder), "beta": 1.0}
    assert judge(folder, **settings).score(REPLIES) == {"r": (0.0, 0.0, 0.0)}


# Classifiers


def test_a_classifier_says_how_sure_it_is_of_the_wanted_label(tmp_path):
    folder = write_classifier(tmp_path / "c", 3)
    rows = [
        plain_logits(folder, [*conversation(r.text)[0], *conversation(r.text)[1]]) for r in REPLIES
    ]
    log_odds = [float(z[2] - torch.logaddexp(z[0], z[1])) for z in rows]
    found = judge(folder, kind="classifier", positive=2).score(REPLIES)
    assert found == {"r": pytest.approx(log_odds, abs=1e-4)}
    assert np.ptp(log_odds) > 0.1
    settings = {"kind": "classifier", "positive": 2, "output": "probability"}
    found = judge(folder, **settings).score(REPLIES)["r"]
    assert found == pytest.approx([float(z.softmax(-1)[2]) for z in rows], abs=1e-5)
    assert found == pytest.approx(1 / (1 + np.exp(-np.array(log_odds))), abs=1e-5)


def test_an_encoder_without_eos_reads_prompt_and_reply_as_two_texts(tmp_path):
    vocabulary = {"<pad>": 0, "<sep>": 1} | {f"w{i}": i for i in range(2, 64)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=12, num_labels=2, initializer_range=0.2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(str(tmp_path))
    found = judge(tmp_path, kind="classifier", positive=1).score(REPLIES)["r"]
    rows = [plain_logits(tmp_path, [5, 6, *words(reply.text)]) for reply in REPLIES]
    assert found == pytest.approx([float(z[1] - z[0]) for z in rows], abs=1e-4)
    assert np.ptp(found) > 0.1
    with pytest.raises(
        ValueError, match=r"^reward r: a text of 13 tokens is more than the 12 that"
    ):
        judge(tmp_path, kind="classifier", positive=1).score([rollout(" ".join(["w9"] * 11))])


def test_a_folder_without_the_wanted_label_is_refused(tmp_path, judge_folder):
    with pytest.raises(ValueError, match=r"^reward r: .* has one label: .* use kind model"):
        judge(judge_folder, kind="classifier", positive=0)
    folder = write_classifier(tmp_path / "c", 3)
    with pytest.raises(ValueError, match=r"positive=3, but .* has 3 labels, counted from 0"):
        judge(folder, kind="classifier", positive=3)
    with pytest.raises(ValueError, match=r"^reward r: .* has 3 labels; a ranker has one logit"):
        judge(folder, kind="ranker")
    toy.write_policy(tmp_path / "p", "qwen3", tied=False)
    with pytest.raises(ValueError, match=r"^reward r: the weights in .* lack score\.weight"):
        judge(tmp_path / "p", kind="classifier", positive=0)


def test_labels_are_counted_as_transformers_writes_them(tmp_path):
    for labels in (1, 2, 3):
        config = Qwen3Config(num_labels=labels)
        config.save_pretrained(tmp_path)
        assert num_labels(json.loads((tmp_path / "config.json").read_text())) == labels


# Ensembles


def test_an_ensemble_joins_its_models_and_records_their_disagreement(tmp_path, judge_folder):
    folders = [
        judge_folder,
        write_classifier(tmp_path / "b", 1),
        write_classifier(tmp_path / "c", 1, 7),
    ]
    alone = np.array([judge(f, kind="model").score(REPLIES)["r"] for f in folders])  # (M, B)
    assert alone.std(0).min() > 0.01

    def joint(**settings: Any) -> dict[str, tuple[float, ...]]:
        paths = tuple(map(str, folders))
        return judge(folders[0], kind="ensemble", paths=paths, **settings).score(REPLIES)

    assert joint() == {
        "r": pytest.approx(alone.mean(0), abs=1e-6),
        "r/disagreement": pytest.approx(alone.std(0), abs=1e-6),
    }
    assert joint(reduce="minimum")["r"] == pytest.approx(alone.min(0), abs=1e-6)
    penalised = joint(reduce="penalised", penalty=0.5)["r"]
    assert penalised == pytest.approx(alone.mean(0) - 0.5 * alone.std(0), abs=1e-6)


# Rankers


def layout(folder: Path, text: str = "w10 {prompt} w11 {first} w12 {second} w13") -> str:
    (folder / "layout.txt").write_text(text)
    return str(folder / "layout.txt")


def test_a_ranker_scores_by_its_mean_chance_to_win_in_both_orders(tmp_path, judge_folder):
    found = judge(judge_folder, kind="ranker", prompt_file=layout(tmp_path)).score(REPLIES)["r"]
    first: dict[tuple[int, int], float] = {}
    for i, one in enumerate(REPLIES):
        for j, other in enumerate(REPLIES):
            tokens = [10, 5, 6, 11, *words(one.text), 12, *words(other.text), 13]
            first[i, j] = float(plain_logits(judge_folder, tokens).sigmoid())
    wins = {(i, j): (first[i, j] + 1 - first[j, i]) / 2 for i, j in first}
    expected = [sum(wins[i, j] for j in range(3) if j != i) / 2 for i in range(3)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert sum(found) == pytest.approx(1.5)
    assert np.ptp(found) > 1e-3


def test_a_rankers_scores_do_not_depend_on_order_or_on_other_groups(tmp_path, judge_folder):
    ranker = judge(judge_folder, kind="ranker", prompt_file=layout(tmp_path))
    found = ranker.score(REPLIES)["r"]
    assert ranker.score(REPLIES[::-1])["r"] == pytest.approx(found[::-1], abs=1e-6)
    others = [rollout("w50 w51", 7, "w8"), rollout("w52", 7, "w8")]
    beside = [REPLIES[0], others[0], REPLIES[1], others[1], REPLIES[2]]
    mixed = ranker.score(beside)["r"]
    assert mixed[0::2] == pytest.approx(found, abs=1e-6)
    assert mixed[1::2] == pytest.approx(ranker.score(others)["r"], abs=1e-6)
    assert mixed[1] + mixed[3] == pytest.approx(1)


def test_equal_replies_score_exactly_a_half(tmp_path, judge_folder):
    ranker = judge(judge_folder, kind="ranker", prompt_file=layout(tmp_path))
    assert ranker.score([rollout("w20 w21")] * 3)["r"] == (0.5, 0.5, 0.5)


def test_a_reply_alone_is_refused_and_never_scored():
    with pytest.raises(ValueError, match=r"^reward r: the prompt of row 4 has one reply and"):
        mean_wins("r", [rollout("a", 4)], "{prompt}{first}{second}", lambda _: [], str)


def test_a_favourite_of_the_first_place_favours_nobody_and_questions_are_asked_once():
    asked: list[str] = []

    def ask(questions: list[str]) -> list[float]:
        asked.extend(questions)
        return [0.9] * len(questions)

    rollouts = [rollout("a"), rollout("b"), rollout("a")]
    scores = mean_wins("r", rollouts, "{first}>{second}", ask, str)
    assert scores == {"r": (0.5, 0.5, 0.5)}
    assert sorted(asked) == ["a>a", "a>b", "b>a"]


# Layouts


def test_a_reply_that_spells_out_a_place_is_not_filled():
    assert fill("{first}, {second}, {other}", "p", "{second}", "x") == "{second}, x, {other}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{prompt} {first}", r"has no \{second\}; write where it should be put"),
        (b"\xff\xfe{prompt}\xff", "cannot be read"),
    ],
)
def test_a_layout_without_its_places_is_refused_by_name(content, message, tmp_path):
    file = tmp_path / "judge.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_layout(str(file))
    assert str(caught.value).startswith(f"{file}: ")
