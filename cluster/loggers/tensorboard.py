"""Scalars for TensorBoard, in event files of the run folder."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from cluster.loggers import event_file
from cluster.loggers.protocol import RunFacts, figures
from configs import strict_yaml

FOLDER = "tensorboard"
"""In the run folder."""


class TensorBoardLogger:
    """Scalars by step, under the names of metrics.jsonl, and the configuration as a text.

    >>> # events.out.tfevents.0000000000.host: steps 1-40; the run is killed and goes on after 30
    >>> # events.out.tfevents.0000000001.host: "forget 31 and later", steps 31-100
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.file: BinaryIO | None = None

    def begin(self, facts: RunFacts, last_step: int | None) -> int:
        """Begin a new file: of two files with a step, TensorBoard shows the later one's."""
        self.folder = facts.run_dir / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        if last_step is not None:
            return self.rewind(last_step)
        self._open()
        # Markdown, in which a line that begins with four spaces is code.
        config = "".join(f"    {line}\n" for line in strict_yaml.dump(facts.config).splitlines())
        self._write(event_file.text(time.time(), "config", config))
        return 0

    def log(self, step: int, unix_time: float, metrics: Mapping[str, float]) -> None:
        """Write one record, on disk when this returns."""
        self._write(event_file.scalars(unix_time, step, figures(metrics)))

    def rewind(self, step: int) -> int:
        """Begin a file that tells TensorBoard to forget later steps."""
        self.close(finished=False)
        self._open()
        self._write(event_file.start(time.time(), step + 1))
        return step

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        file, self.file = self.file, None
        if file is not None:
            file.close()

    def _open(self) -> None:
        """TensorBoard reads files in the order of their names."""
        assert self.folder is not None
        numbers = [int(file.name.split(".")[3]) for file in self.folder.glob("events.out.*")]
        name = f"events.out.tfevents.{max(numbers, default=-1) + 1:010d}.{socket.gethostname()}"
        self.file = (self.folder / name).open("xb")
        self._write(event_file.version(time.time()))

    def _write(self, event: bytes) -> None:
        assert self.file is not None
        self.file.write(event_file.record(event))
        self.file.flush()
        os.fsync(self.file.fileno())
