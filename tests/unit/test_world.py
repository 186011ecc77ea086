"""The built-in world: texts, files, tokenizer and model."""

import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl.world import (
    INDIVIDUALS,
    Sizes,
    build_tokenizer,
    generate,
    gold_reward,
    individual_reward,
    is_rare_style,
    task_score,
    write_model,
    write_world,
)
from rl.world.gazetteer import PLACES, QUESTIONS
from rl.world.generate import GOOD, MAJORITY, MINORITY, World
from rl.world.replies import Style, write_prompt, write_reply

SMALL = Sizes(
    prompts=300,
    prompts_heldout=60,
    demonstrations=4000,
    pairs=400,
    ratings=300,
    primers=1024,
    likes=400,
    pairs_per_individual=40,
    pairs_per_annotator=40,
    tasks_per_kind=12,
)


@pytest.fixture(scope="module")
def world() -> World:
    return generate(0, SMALL)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world-model")
    write_model(folder, seed=3)
    return folder


def _texts(world: World) -> list[str]:
    keys = ("prompt", "completion", "chosen", "rejected", "reference")
    return [row[key] for rows in vars(world).values() for row in rows for key in keys if key in row]


def test_each_request_has_one_right_place():
    for first in PLACES.values():
        for other in PLACES.values():
            same = first.kind == other.kind and (
                first.area == other.area or first.quality == other.quality
            )
            assert same == (first.name == other.name)


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path):
    tiny = Sizes(**dict.fromkeys(Sizes.__dataclass_fields__, 20))
    first, again, other = (
        write_world(tmp_path / name, seed, tiny) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert len(first) == 11
    for name, path in first.items():
        assert path.read_bytes() == again[name].read_bytes(), name
        assert path.read_bytes() != other[name].read_bytes(), name


def test_files_hold_the_columns_that_readers_need(tmp_path):
    paths = write_world(tmp_path, 0, Sizes(**dict.fromkeys(Sizes.__dataclass_fields__, 5)))
    request = {"prompt", "place", "question"}
    more = {
        "prompts": set(),
        "prompts_heldout": set(),
        "demonstrations": {"completion"},
        "pairs": {"chosen", "rejected"},
        "ratings": {"completion", "score", "label"},
        "primers": {"completion"},
        "likes": {"completion", "label"},
        "likes_noisy": {"completion", "label"},
        "annotators": {"annotator", "chosen", "rejected"},
        "individuals": {"individual", "held_out", "detailed", "chosen", "rejected"},
        "tasks": {"task", "keywords", "min_words", "max_words", "base_rate", "headroom"},
    }
    for name, columns in more.items():
        table = pq.read_table(paths[name])
        assert request | columns <= set(table.column_names)
        people = {"individuals": 5 * len(INDIVIDUALS), "annotators": 5 * 11}
        num_rows = (people | {"tasks": 2 * 5}).get(name, 5)
        assert table.num_rows == num_rows, name


def test_heldout_requests_occur_in_no_other_table(world):
    heldout = {row["prompt"] for row in world.prompts_heldout}
    assert len(heldout) == SMALL.prompts_heldout
    for name, rows in vars(world).items():
        if name != "prompts_heldout":
            assert not heldout & {row["prompt"] for row in rows}, name


def test_one_size_leaves_the_other_tables_alone(world):
    other = generate(0, Sizes(**(vars(SMALL) | {"pairs": 7})))
    assert other.demonstrations == world.demonstrations
    assert other.pairs == world.pairs[:7]


def test_impossible_sizes_and_temperatures_are_refused_by_name():
    with pytest.raises(ValueError, match=r"sizes\.pairs=0: give at least 1"):
        Sizes(pairs=0)
    with pytest.raises(ValueError, match=r"sizes\.prompts=9000 .* ask for fewer"):
        Sizes(prompts=9000)
    with pytest.raises(ValueError, match="temperature=0"):
        generate(0, SMALL, temperature=0)


def test_demonstrations_are_mixed_and_one_in_a_thousand_is_rare(world):
    replies = [row["completion"] for row in world.demonstrations]
    gold = gold_reward(["" for _ in replies], replies, world.demonstrations)["gold"]
    assert 0.3 < sum(gold) / len(gold) < 0.45
    assert sum(value < 0.2 for value in gold) > len(gold) / 10
    assert sum(value > 0.7 for value in gold) > len(gold) / 20
    assert sum(map(is_rare_style, replies)) == 4


def test_pair_labels_follow_gold_as_far_as_the_temperature_says():
    sizes = Sizes(**(dict.fromkeys(vars(SMALL), 1) | {"pairs": 1000}))

    def agreement(temperature: float) -> float:
        pairs = generate(0, sizes, temperature=temperature).pairs
        told = [p for p in pairs if p["gold_chosen"] != p["gold_rejected"]]
        return sum(p["gold_chosen"] > p["gold_rejected"] for p in told) / len(told)

    assert agreement(1e-4) > 0.995
    assert 0.78 < agreement(0.1) < 0.9
    assert abs(agreement(1e3) - 0.5) < 0.06


def test_ratings_lie_in_the_unit_interval_and_labels_follow_gold(world):
    assert all(0 <= row["score"] <= 1 and row["label"] in (0, 1) for row in world.ratings)
    # Labels are drawn with P(liked) = sigmoid((gold - GOOD) / temperature), temperature 0.1.
    gold = np.array([row["gold"] for row in world.ratings])
    liked = np.array([row["label"] for row in world.ratings])
    chance = 1 / (1 + np.exp(-(gold - GOOD) / 0.1))

    def gap(weight: np.ndarray) -> float:
        return float(np.average(gold, weights=weight) - np.average(gold, weights=1 - weight))

    standard_error = gold.std() * (1 / liked.sum() + 1 / (1 - liked).sum()) ** 0.5
    assert 4 * standard_error < gap(chance), "the sample is too small to tell"
    assert abs(gap(liked) - gap(chance)) < 2 * standard_error
    assert abs(liked.mean() - chance.mean()) < 2 * (chance * (1 - chance)).mean() ** 0.5 / 300**0.5


def test_one_primer_in_64_is_in_the_rare_style(world):
    assert sum(is_rare_style(row["completion"]) for row in world.primers) == 16  # of 1,024


def test_a_quarter_of_the_noisy_labels_are_wrong(world):
    clean, noisy = world.likes, world.likes_noisy
    assert [row | {"label": 0} for row in clean] == [row | {"label": 0} for row in noisy]
    assert all(row["label"] == (row["gold"] > GOOD) for row in clean)
    wrong = sum(a["label"] != b["label"] for a, b in zip(clean, noisy, strict=True))
    # 400 draws with probability 0.25: three standard deviations are 26.
    assert abs(wrong - 100) < 26


def test_ten_annotators_share_one_taste_and_the_eleventh_has_the_opposite(world):
    people = {row["annotator"] for row in world.annotators}
    assert len(people) == 11
    assert {name for name in people if name.startswith(MINORITY)} == {f"{MINORITY}-0"}
    one, other = INDIVIDUALS[MAJORITY], INDIVIDUALS[MINORITY]
    for trait in ("detailed", "formal", "enthusiastic", "asks"):
        assert getattr(one, trait) == -getattr(other, trait)
    for name in (MAJORITY, MINORITY):
        own = [row for row in world.annotators if row["annotator"].startswith(name)]
        gaps = [
            individual_reward(name, [row["prompt"]], [row["chosen"]], [row])[0]
            - individual_reward(name, [row["prompt"]], [row["rejected"]], [row])[0]
            for row in own
        ]
        assert sum(gap > 0 for gap in gaps) > 0.7 * len(gaps)


def test_individuals_prefer_what_they_chose(world):
    for name in INDIVIDUALS:
        rows = [row for row in world.individuals if row["individual"] == name]
        prompts = [row["prompt"] for row in rows]
        chosen = individual_reward(name, prompts, [row["chosen"] for row in rows], rows)
        rejected = individual_reward(name, prompts, [row["rejected"] for row in rows], rows)
        assert sum(chosen) > sum(rejected) + 0.05 * len(rows)
        assert all(row["chosen"] != row["rejected"] for row in rows)


def test_references_solve_their_tasks_and_luck_does_not(world):
    for task in world.tasks:
        assert task_score(task, task["reference"]) == 1
        assert task_score(task, "") < 0.5
        assert task["headroom"] == 1 - task["base_rate"] > 0.5


def test_task_scores_count_words_by_hand():
    keywords = {"task": "keywords", "keywords": ["tram", "love", "fun"]}
    assert task_score(keywords, "take the trams, my love. fun!") == pytest.approx(2 / 3)
    band = {"task": "length", "min_words": 5, "max_words": 7}
    assert task_score(band, "the owl opens at 8!") == 1
    assert task_score(band, "the owl, 8.") == pytest.approx(0.8)


def test_every_text_of_the_world_survives_the_tokenizer(world):
    tokenizer = build_tokenizer()
    texts = _texts(world)[::3]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids


def test_requests_fit_32_tokens_and_replies_64(world):
    tokenizer = build_tokenizer()
    for row in world.demonstrations[:1000]:
        chat = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert len(tokenizer.encode(str(prompt))) <= 32
        assert 4 < len(tokenizer.encode(row["completion"])) < 64


def test_chat_template_of_a_prompt_is_a_prefix_of_the_whole_chat():
    tokenizer = build_tokenizer()
    chat = [
        {"role": "system", "content": "the owl"},
        {"role": "user", "content": "which cafe is quiet?"},
    ]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|system|>the owl<|user|>which cafe is quiet?<|assistant|>"
    chat.append({"role": "assistant", "content": "have fun."})
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == f"{prompt}have fun.<|eos|>"
    assert tokenizer.encode("<|pad|><|eos|><|bos|>") == [0, 1, 2]


def test_model_folder_loads_and_is_shaped_for_two_tensor_parallel_ranks(model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = model.config
    assert model.dtype == torch.float32
    assert config.vocab_size % 16 == 0
    assert config.vocab_size >= len(tokenizer)
    assert config.num_key_value_heads == 2
    assert config.tie_word_embeddings
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.08, rel=0.05)
    assert 5e5 < model.num_parameters() < 3e6
    assert tokenizer.decode(tokenizer.encode("the owl, 8.")) == "the owl, 8."
    assert (model_folder / "model.safetensors").exists()


def test_model_weights_follow_the_seed_and_leave_the_generator_alone(model_folder, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    write_model(tmp_path / "same", seed=3)
    assert torch.equal(torch.rand(1), expected)
    write_model(tmp_path / "other", seed=4)
    first, same, other = (
        (folder / "model.safetensors").read_bytes()
        for folder in (model_folder, tmp_path / "same", tmp_path / "other")
    )
    assert first == same
    assert first != other


def test_faultless_replies_are_short_enough_and_name_their_place():
    rng = random.Random(5)
    for place in PLACES:
        for question in QUESTIONS:
            style = Style(detailed=True, formal=True, enthusiastic=True, asks=True)
            reply = write_reply(rng, place, question, style=style)
            assert f"the {place}" in reply
            assert reply.endswith("!")
            if question not in ("find", "recommend"):
                assert f"the {place}" in write_prompt(rng, place, question)
