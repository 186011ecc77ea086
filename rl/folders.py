"""Model folders as users give them: checked before anything is loaded, each fault in one line.

Only safetensors weights are read. A safetensors file tells its own length, so a copy that stopped
half-way is found without reading the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # transformers takes seconds to import; only `load_tokenizer` needs it
    from transformers import PreTrainedTokenizerBase

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")


def check_model_folder(path: str | Path, *, field: str) -> dict[str, Any]:
    """The parsed config.json of a complete Hugging Face model folder.

    Raises `ValueError` that begins with `field`, the setting the folder came from, where the
    folder, its config.json or any of its weights is missing, half-written or kept as pickle.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{field}: {path} is not a folder: download the model and give its folder")
    if not (folder / "config.json").exists():
        raise ValueError(f"{field}: {path} has no config.json: give a Hugging Face model folder")
    config = _read_object(folder / "config.json", field)
    if not config.get("model_type"):
        raise ValueError(f"{field}: {folder / 'config.json'} names no model_type: save it again")
    if (folder / _INDEX).exists():
        _check_shards(folder, field)
    elif (folder / _WEIGHTS).exists():
        _tensor_names(folder / _WEIGHTS, field)
    else:
        raise ValueError(f"{field}: {_missing_weights(folder)}")
    return config


def load_tokenizer(path: str | Path, *, field: str = "model.path") -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, with an EOS token and a padding token apart from it.

    A padding token that equals EOS is refused: every EOS would be masked as padding, so the model
    would never learn to end a reply. Raises `ValueError`, also for token ids that the model's
    embeddings do not hold.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ValueError(f"{field}: {path} has no tokenizer.json: copy the model's tokenizer there")
    if (folder / "tokenizer.json").exists():
        _read_object(folder / "tokenizer.json", field)  # the tokenizers library raises no type
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{field}: the tokenizer in {path} cannot be loaded ({reason}): save it again"
        ) from error
    _check_tokens(tokenizer, folder, field)
    return tokenizer


def context_length(config: Mapping[str, Any]) -> int:
    """Tokens of prompt plus reply that the model of a parsed config.json was made for."""
    for key in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(key), int):
            return config[key]
    raise ValueError("config.json has no max_position_embeddings: add the model's context length")


def _check_shards(folder: Path, field: str) -> None:
    """Every shard that the index names exists, is complete and holds its tensors."""
    shard_of = _read_object(folder / _INDEX, field).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{field}: {folder / _INDEX} has no weight_map: save the model again")
    for shard in sorted(set(shard_of.values())):
        file = folder / shard
        if not file.exists():
            raise ValueError(f"{field}: {file} is missing though {_INDEX} names it: copy it there")
        expected = {name for name, place in shard_of.items() if place == shard}
        if lacking := sorted(expected - _tensor_names(file, field)):
            raise ValueError(
                f"{field}: {file} lacks {lacking[0]} and {len(lacking) - 1} more tensors that "
                f"{_INDEX} names: copy the model again"
            )


def _tensor_names(file: Path, field: str) -> set[str]:
    """Names in the header of a safetensors file whose length is what the header says.

    Layout: 8 bytes with the header's length (little-endian), the header as JSON, the tensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        complete = size >= 8 + header_size
        header = stream.read(header_size) if complete else b""
    if not complete:
        raise ValueError(f"{field}: {_half_written(file, size, 8 + header_size)}")
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{field}: {file} is no safetensors file: copy it again") from error
    if size != 8 + header_size + end:
        raise ValueError(f"{field}: {_half_written(file, size, 8 + header_size + end)}")
    return set(tensors)


def _half_written(file: Path, size: int, expected: int) -> str:
    return f"{file} has {size} bytes where its header says {expected}: copy or save it again"


def _missing_weights(folder: Path) -> str:
    for pattern in _PICKLES:
        if pickle := next(folder.glob(pattern), None):
            return (
                f"{folder} has only pickle weights ({pickle.name}), which are never read: convert "
                "them to safetensors, as transformers' save_pretrained does"
            )
    return f"{folder} has no {_WEIGHTS}: give the folder that holds the weights"


def _check_tokens(tokenizer: "PreTrainedTokenizerBase", folder: Path, field: str) -> None:
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    settings = folder / "tokenizer_config.json"
    if eos is None:
        raise ValueError(f"{field}: {folder} has no EOS token: set `eos_token` in {settings}")
    if pad is None or pad == eos:
        fault = "has no padding token" if pad is None else "uses EOS as its padding token"
        raise ValueError(
            f"{field}: {folder} {fault}: set `pad_token` in {settings} to a token of the "
            "vocabulary that texts never hold, such as a reserved one"
        )
    config = folder / "config.json"
    vocabulary = _read_object(config, field).get("vocab_size") if config.exists() else None
    if vocabulary is not None and max(eos, pad) >= vocabulary:
        raise ValueError(
            f"{field}: token {max(eos, pad)} of {folder} is outside the model's vocab_size "
            f"{vocabulary}: choose tokens inside it, or resize the embeddings"
        )


def _read_object(file: Path, field: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{field}: {file} is not valid JSON ({error}): save it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{field}: {file} does not hold an object: save it again")
    return value
