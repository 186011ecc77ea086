"""The text of single tokens, by the tokenizer that a run left or began with."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from cluster.rollouts.lineage import section

logger = logging.getLogger(__name__)


def token_texts(run_dir: Path, tokens: Sequence[int]) -> list[str] | None:
    """What each token adds to the text, special tokens included; None without a tokenizer.

    A character that several tokens make up stands at the last of them.
    """
    tokenizer = _tokenizer_of(run_dir)
    if tokenizer is None:
        return None
    stream = DecodeStream(skip_special_tokens=False)
    try:
        return [stream.step(tokenizer, token) or "" for token in tokens]
    except Exception as error:  # noqa: BLE001 - the library raises no narrower one; ids remain
        logger.warning("tokens without text: %s", error)
        return None


def _tokenizer_of(run_dir: Path) -> Tokenizer | None:
    path = section(run_dir, "model").get("path")
    for folder in (run_dir / "policy", *([Path(str(path))] if path else [])):
        file = folder / "tokenizer.json"
        try:
            return _load(str(file), file.stat().st_mtime_ns)
        except OSError:
            continue
        except Exception as error:  # noqa: BLE001 - as above: a half-copied file
            logger.warning("%s cannot be read: %s", file, error)
    return None


@lru_cache(maxsize=4)
def _load(path: str, mtime_ns: int) -> Tokenizer:
    """Not through transformers, which takes seconds to import; `mtime_ns` tells a new file."""
    return Tokenizer.from_file(path)
