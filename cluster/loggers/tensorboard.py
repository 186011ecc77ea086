"""Scalars for TensorBoard, in event files of the run folder."""

import socket
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue] - made by protobuf at import
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import text

from cluster.loggers.protocol import RunFacts, figures
from cluster.metrics.telemetry import unix_now
from configs import strict_yaml

FOLDER = "tensorboard"
"""In the run folder."""


class TensorBoardLogger:
    """Scalars by step, under the names of metrics.jsonl, and the configuration as a text.

    Written record by record: the library's `SummaryWriter` queues them for a thread of its own,
    which swallows a full disk, and names files by the second, so that of two that begin within one
    the first is lost.

    >>> # events.out.tfevents.0000000000.host: steps 1-40; the run is killed and goes on after 30
    >>> # events.out.tfevents.0000000001.host: "forget 31 and later", steps 31-100
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.writer: RecordWriter | None = None

    def begin(self, facts: RunFacts, last_step: int | None) -> int:
        """Begin a new file: of two files with a step, TensorBoard shows the later one's."""
        self.folder = facts.run_dir / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        if last_step is not None:
            return self.rewind(last_step)
        self._open()
        # Markdown, in which a line that begins with four spaces is code.
        config = "".join(f"    {line}\n" for line in strict_yaml.dump(facts.config).splitlines())
        self._write(Event(wall_time=unix_now(), summary=text("config", config)))
        return 0

    def log(self, step: int, unix_time: float, metrics: Mapping[str, float]) -> None:
        """Write one record, on disk when this returns."""
        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in figures(metrics).items()
        ]
        self._write(Event(wall_time=unix_time, step=step, summary=Summary(value=values)))

    def rewind(self, step: int) -> int:
        """Begin a file that tells TensorBoard to forget later steps."""
        self.close(finished=False)
        self._open()
        forget = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=unix_now(), step=step + 1, session_log=forget))
        return step

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()

    def _open(self) -> None:
        """TensorBoard reads files in the order of their names."""
        assert self.folder is not None
        numbers = [int(file.name.split(".")[3]) for file in self.folder.glob("events.out.*")]
        name = f"events.out.tfevents.{max(numbers, default=-1) + 1:010d}.{socket.gethostname()}"
        self.writer = RecordWriter(str(self.folder / name))
        self._write(Event(wall_time=unix_now(), file_version="brain.Event:2"))

    def _write(self, event: Event) -> None:
        assert self.writer is not None
        self.writer.write(event.SerializeToString())
        self.writer.flush()
