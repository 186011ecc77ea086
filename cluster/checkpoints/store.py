"""Where checkpoints are kept: a folder, local or shared, or any store that fsspec reaches by URL.

    ROOT/run.json                                  which run this is
    ROOT/attempts.json                             at which step each attempt of the run began
    ROOT/step=000020.attempt=2/rank=0/...          files of a rank
    ROOT/step=000020.attempt=2/rank=0.json         their sizes and digests, once all are there
    ROOT/step=000020.attempt=2/manifest.json       the same of all ranks, written last of all

A checkpoint without manifest.json is one that was never finished. No name is ever written twice, so
a learner that was given up cannot damage what its successor writes.
"""

import hashlib
import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cluster.files import replace_text
from configs.cluster import CheckpointConfig
from configs.errors import ConfigError
from configs.schema import RunConfig

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ATTEMPTS = "attempts.json"
IDENTITY = "run.json"
PLACE = "checkpoints.json"
"""In the run folder: where the run's checkpoints are, if not there."""
CHUNK = 2**22


@dataclass(frozen=True)
class Stored:
    """What is known of a file: enough to tell whether it is whole."""

    size: int
    sha256: str


class Store:
    """Files by name under one root.

    >>> # store = Store("s3://bucket/run"); store.put(path, "a/b"); store.get("a/b", other)
    """

    def __init__(self, root: str | Path) -> None:
        """Raises ValueError where nothing that is installed reaches the URL."""
        try:
            self.fs, self.root = fsspec.core.url_to_fs(str(root))
        except ImportError as error:
            raise ValueError(f"{root}: {' '.join(str(error).split())}") from error
        self.name = str(root)

    @property
    def folder(self) -> Path | None:
        """The root, where files can be opened in place."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def write(self, name: str, data: bytes) -> None:
        """Write a small file that is whole or not there."""
        path = self._at(name)
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if self.folder is None:
            self.fs.pipe_file(path, data)  # object stores show a file when all of it is there
            return
        partial = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(data)
                _to_disk(file)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> bytes:
        """All of a file; raises FileNotFoundError."""
        return cast(bytes, self.fs.cat_file(self._at(name)))

    def put(self, source: Path, name: str) -> Stored:
        """Copy a file into the store."""
        path = self._at(name)
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with source.open("rb") as reader, cast(BinaryIO, self.fs.open(path, "wb")) as writer:
            stored = _copy(reader, writer)
            if self.folder is not None:
                _to_disk(writer)
        return stored

    def get(self, name: str, target: Path) -> Stored:
        """Copy a file out of the store, or link to it where it can be read in place.

        Raises FileNotFoundError.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with cast(BinaryIO, self.fs.open(self._at(name), "rb")) as reader:
            if self.folder is not None:
                target.symlink_to(Path(self._at(name)).absolute())
                return _copy(reader, None)
            with target.open("wb") as writer:
                return _copy(reader, writer)

    def names(self, folder: str = "") -> list[str]:
        """Files and folders directly under a folder, without it; none where there is no such."""
        self.fs.invalidate_cache()  # other processes write here, too
        try:
            found = self.fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self._at(name)))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that it holds; one that is not there is no error."""
        self.fs.invalidate_cache()
        try:
            if self.folder is not None and Path(self._at(name)).is_dir():
                shutil.rmtree(self._at(name), ignore_errors=True)  # another may remove it, too
            else:
                self.fs.rm(self._at(name), recursive=True)
        except FileNotFoundError:
            pass


def run_id(store: Store) -> str:
    """Of the run whose checkpoints these are; made when it is asked for first."""
    try:
        return str(json.loads(store.read(IDENTITY))["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        identity = uuid.uuid4().hex
        store.write(IDENTITY, json.dumps({"id": identity}).encode())
        return identity


def _copy(reader: BinaryIO, writer: BinaryIO | None) -> Stored:
    digest, size = hashlib.sha256(), 0
    while chunk := reader.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if writer is not None:
            writer.write(chunk)
    return Stored(size, digest.hexdigest())


def _to_disk(file: Any) -> None:
    """Nothing is on record that a power cut would take."""
    file.flush()
    os.fsync(file.fileno())


def store_of(config: RunConfig) -> Store:
    """The run's own store; raises ValueError where the run's checkpoints are somewhere else."""
    return Store(_location(Path(config.cluster.run_dir), config.cluster.checkpoint))


def _location(run_dir: Path, settings: CheckpointConfig) -> str:
    """RUN/checkpoints, or a folder of the run's own under `storage`, chosen once and noted.

    Two runs may share a `storage`, and a run folder that was deleted and made again is another run.
    """
    note, own = run_dir / PLACE, run_dir / "checkpoints"
    noted = json.loads(note.read_text()) if note.exists() else None
    before = noted["storage"] if noted else str(own)
    if (noted or own.exists()) and before != (settings.storage or str(own)):
        raise ConfigError(
            f"cluster.checkpoint.storage: the checkpoints of {run_dir} are in {before}; give that "
            "again, since a run cannot move them"
        )
    if settings.storage is None:
        return str(own)
    if noted is None:
        base = settings.storage.rstrip("/")
        folder = f"{base}/{run_dir.resolve().name}-{uuid.uuid4().hex[:8]}"
        noted = {"storage": settings.storage, "folder": folder}
        replace_text(note, json.dumps(noted))
    return noted["folder"]


def check_storage(settings: CheckpointConfig) -> None:
    """Refuse a storage that cannot be reached or written."""
    field = "cluster.checkpoint.storage"
    if settings.storage is None:
        return
    if urlsplit(settings.storage).password is not None:
        raise ConfigError(
            f"{field}: the URL holds a password, which would be kept with the run; leave it out, "
            "and give it the way the store's own tools take it (environment or files)"
        )
    name = f".attune-{uuid.uuid4().hex}"
    try:
        store = Store(settings.storage)
        store.write(name, b"")
        store.remove(name)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error
    except Exception as error:  # each kind of store has errors of its own
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{field}: {settings.storage} cannot be written ({type(error).__name__}: {text}); "
            "give a folder or URL that can"
        ) from error
