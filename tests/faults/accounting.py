"""What has to hold of a run's books, whatever was killed on the way."""

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from cluster.ledger import read_ledger
from configs.schema import RunConfig
from tests.integration.processes import read_steps


@dataclass(frozen=True, kw_only=True)
class Books:
    """Counted from ledger, experience and metrics of a finished run."""

    groups: int
    """Prompt groups that were used."""
    expected: int
    """As many as the steps should have used."""
    doubled: int
    """Groups that were used more than once."""
    steps: int
    """Steps in order without a gap, from 1; 0 where there is a gap."""
    too_old: int
    """Groups older than `algorithm.max_staleness` when they were used."""
    discarded: int
    """Steps that were run again."""
    differing: int
    """Groups that only one of ledger and experience knows."""

    @property
    def are_right(self) -> bool:
        """Each group once, nothing lost, nothing stale, the last step reached."""
        return self.groups == self.expected and not (
            self.doubled or self.too_old or self.differing or not self.steps
        )


def stopped(config: RunConfig, process: subprocess.Popen[str]) -> Books:
    """End a run by Ctrl-C, and count up to the step that it has reached."""
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert "--resume" in output, output
    done = read_steps(Path(config.cluster.run_dir))[-1]
    algorithm = config.algorithm.model_copy(update={"num_steps": done})
    return books(config.model_copy(update={"algorithm": algorithm}))


def books(config: RunConfig) -> Books:
    """Of a run that has finished."""
    folder = Path(config.cluster.run_dir)
    rows = read_ledger(folder).to_pylist()
    ids = [row["group_id"] for row in rows]
    written = [
        row["group_id"]
        for file in sorted((folder / "experience").rglob("*.parquet"))
        for row in pq.ParquetFile(file).read(["group_id", "sample"]).to_pylist()
        if row["sample"] == 0
    ]
    num_steps, stale = config.algorithm.num_steps, config.algorithm.max_staleness
    steps = read_steps(folder)
    differing = len(set(ids) ^ set(written)) + len(written) - len(set(written))
    return Books(
        groups=len(ids),
        expected=num_steps * config.data.prompts_per_step,
        doubled=len(ids) - len(set(ids)),
        steps=num_steps if steps == list(range(1, num_steps + 1)) else 0,
        too_old=sum(row["step"] - 1 - row["oldest_version"] > stale for row in rows),
        discarded=len(list((folder / "discarded" / "ledger").glob("*"))),
        differing=differing,
    )
