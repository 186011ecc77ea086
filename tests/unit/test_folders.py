from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rl.folders import check_model_folder, context_length, load_tokenizer

CONFIG = LlamaConfig(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    vocab_size=5,
    max_position_embeddings=77,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path) -> Path:
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path / "model", max_shard_size="1KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model"


def _refuse(folder: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.path: .*{pattern}") as caught:
        check_model_folder(folder, field="model.path")
    assert "\n" not in str(caught.value)


def test_a_saved_model_passes_and_gives_its_config(folder):
    config = check_model_folder(folder, field="model.path")
    assert config["model_type"] == "llama"
    assert context_length(config) == 77


def test_a_sharded_model_passes(sharded):
    assert check_model_folder(sharded, field="model.path")["hidden_size"] == 8


def test_names_that_are_no_folders_are_refused(tmp_path):
    _refuse(tmp_path / "org/model", "is not a folder: download")
    _refuse(tmp_path, "has no config.json")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [("{", "not valid JSON"), ("[]", "does not hold an object"), ("{}", "names no model_type")],
)
def test_a_damaged_config_is_refused(folder, content, pattern):
    (folder / "config.json").write_text(content)
    _refuse(folder, rf"config\.json {pattern}" if content == "{}" else pattern)


@pytest.mark.parametrize("cut", [1, 500, -1])
def test_half_written_weights_are_refused_with_both_sizes(folder, cut):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-cut] if cut > 0 else content + b"\0")
    _refuse(folder, rf"has {len(content) - cut} bytes where its header says {len(content)}")


@pytest.mark.parametrize("content", [b"", b"\x02\0\0", b"\xff" * 40])
def test_files_cut_inside_the_header_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    _refuse(folder, "bytes where its header says")


def test_files_that_are_no_safetensors_are_refused(folder):
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"oops")
    _refuse(folder, "is no safetensors file")


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    _refuse(folder, r"has no model\.safetensors")


def test_pickle_weights_are_refused_and_never_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    _refuse(folder, r"only pickle weights \(pytorch_model\.bin\).*convert them to safetensors")


def test_a_shard_that_is_missing_or_cut_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-4])
    _refuse(sharded, f"{shard.name} has {len(content) - 4} bytes")
    shard.unlink()
    _refuse(sharded, f"{shard.name} is missing though model.safetensors.index.json names it")


def test_a_shard_of_another_model_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    save_file({"other": torch.zeros(2)}, shard)
    _refuse(sharded, f"{shard.name} lacks .* that model.safetensors.index.json names")


def test_context_length_is_never_guessed():
    assert context_length({"n_positions": 12}) == 12
    with pytest.raises(ValueError, match="no max_position_embeddings"):
        context_length({})


def _save_tokenizer(folder: Path, **tokens: str) -> Path:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "hi": 3, "there": 4}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **tokens)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_saved_tokenizer_loads(folder):
    tokenizer = load_tokenizer(_save_tokenizer(folder, eos_token="<eos>", pad_token="<pad>"))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)
    assert tokenizer("hi there").input_ids == [3, 4]


@pytest.mark.parametrize(
    ("tokens", "pattern"),
    [
        ({"pad_token": "<pad>"}, "has no EOS token: set `eos_token` in .*tokenizer_config.json"),
        ({"eos_token": "<eos>"}, "has no padding token: set `pad_token` in .*tokenizer_config"),
        ({"eos_token": "<eos>", "pad_token": "<eos>"}, "uses EOS as its padding token: set"),
        ({"eos_token": "<eos>", "pad_token": "<new>"}, "token 5 of .* outside the model's vocab"),
    ],
)
def test_tokenizers_that_cannot_end_or_pad_are_refused(folder, tokens, pattern):
    with pytest.raises(ValueError, match=rf"^critic: .*{pattern}") as caught:
        load_tokenizer(_save_tokenizer(folder, **tokens), field="critic")
    assert "\n" not in str(caught.value)


def test_missing_and_half_written_tokenizers_are_refused(folder):
    with pytest.raises(ValueError, match=r"^model\.path: .* has no tokenizer\.json"):
        load_tokenizer(folder)
    _save_tokenizer(folder, eos_token="<eos>", pad_token="<pad>")
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(folder)
    file.unlink()
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
