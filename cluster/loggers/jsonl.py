"""A second copy of metrics.jsonl, row by row."""

import json
from collections.abc import Mapping
from pathlib import Path

from cluster.files import replace_text
from cluster.loggers.protocol import RunFacts
from configs.metrics import JsonlConfig


class JsonlLogger:
    """Appends the rows to a file of the user's choice."""

    def __init__(self, settings: JsonlConfig) -> None:
        self.path = Path(settings.path)

    def begin(self, facts: RunFacts, last_step: int | None) -> int:
        """Go on after `last_step`; raises FileExistsError where the file is not this run's."""
        if last_step is not None:
            return self.rewind(last_step)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            raise FileExistsError(f"{self.path} holds other rows; give another path")
        return 0

    def log(self, step: int, unix_time: float, metrics: Mapping[str, float]) -> None:
        """Append the line that metrics.jsonl has."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def rewind(self, step: int) -> int:
        """Take out later rows, and torn ones."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
        if kept != lines:
            replace_text(self.path, "".join(kept))
        return step

    def close(self, *, finished: bool) -> None:
        """Nothing is open between two rows."""
