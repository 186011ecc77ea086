"""The one door to a run's samples: pages, single samples, groups, and where they came from.

    web server's threads ─▶ query, sample, group ─▶ snapshot ◀── refresh ◀── a thread of its own,
                                                                             while somebody asks

All methods may be called from any thread at any time; none writes into the run folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cluster.rollouts.detail import Sample, read_sample
from cluster.rollouts.files import Changed
from cluster.rollouts.groups import Group, GroupRow, group_rows, read_group
from cluster.rollouts.ids import SampleId
from cluster.rollouts.index import Index, Snapshot
from cluster.rollouts.keeping import Keeper
from cluster.rollouts.query import Page, Query, run_query
from cluster.rollouts.rows import read_rows
from cluster.rollouts.scan import Scans
from configs.errors import ConfigError

Answer = TypeVar("Answer")
FIRST_S = 0.15
"""Seconds that a request spends on indexing where nobody else does: newest steps, for a start."""
TRIES = 3
"""A run that goes back to a checkpoint moves its files once, not again and again."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What there is to choose from."""

    num_samples: int
    first_step: int | None
    last_step: int | None
    files_indexed: int
    files: int
    finish_reasons: list[str]
    engines: list[str]
    sources: list[str]
    rewards: list[str]
    """Names of the newest step's rewards, to sort by as `rewards/NAME`."""
    notes: tuple[str, ...]


class RolloutBrowser:
    """All samples of one run.

    >>> # with RolloutBrowser("runs/first") as browser:         # indexes in the background
    >>> #     page = browser.query(Query(sort="score", limit=20))
    >>> #     browser.sample(page.rows[0].id).lineage.ledger
    """

    def __init__(self, run_dir: str | Path, step: int | None = None) -> None:
        """`step`: of this step alone, which is ready at once."""
        self.run_dir = Path(run_dir)
        self._index = Index(run_dir, step)
        self._scans = Scans()
        self._keeper = Keeper(self._index)
        self._is_kept_up = False

    def __enter__(self) -> "RolloutBrowser":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Index in the background, and keep up with the run, until `close`.

        The thread ends where nobody asks for a minute, and comes back with the next request.
        """
        self._is_kept_up = True
        self._keeper.begin()

    def close(self) -> None:
        """End the thread of `start`; what is indexed can still be asked."""
        self._is_kept_up = False
        self._keeper.close()

    def refresh(self, budget_s: float | None = None) -> int:
        """Index what is new, newest steps first, for about `budget_s` seconds; files still to go.

        Without a budget, everything.
        """
        return self._index.refresh(budget_s).num_pending

    def _snapshot(self) -> Snapshot:
        """As new as a request can wait for."""
        is_at_work = self._keeper.asked()
        if not is_at_work or not self._index.was_listed:
            self._index.refresh(FIRST_S)
        while not self._index.was_listed:  # another thread is about to
            self._index.refresh(FIRST_S)
        if self._is_kept_up and not is_at_work:
            self._keeper.begin()
        return self._index.snapshot

    def _unless_changed(self, ask: Callable[[Snapshot], Answer]) -> Answer:
        """Ask again where a run has replaced files under way; in the end, without those files."""
        snapshot, tries = self._snapshot(), 0
        while True:
            try:
                return ask(snapshot)
            except Changed as error:
                snapshot, tries = snapshot.without(error.files), tries + 1
                if tries <= TRIES:
                    self._index.recheck(error.files)
                    snapshot = self._index.refresh(FIRST_S)

    # ---- samples ---------------------------------------------------------------------------

    def query(self, query: Query) -> Page:
        """A page of rows, out of what is indexed and scanned so far: see `Page`."""
        return self._unless_changed(lambda snapshot: run_query(snapshot, self._scans, query))

    def sample(self, name: str | SampleId) -> Sample:
        """Everything of one sample; raises ConfigError where the run has none of that name."""
        wanted = SampleId.parse(name) if isinstance(name, str) else name
        return read_sample(self.run_dir, wanted)

    def group(self, group_id: int, step: int | None = None) -> Group:
        """All replies of a group, best first; raises ConfigError where the run used no such group.

        Without its step, the group is looked for in the index, which is completed for that.
        """
        if step is None:
            step = self._step_of(group_id)
        return read_group(self.run_dir, step, group_id)

    def _step_of(self, group_id: int) -> int:
        for snapshot in (self._snapshot, self._index.refresh):
            columns = snapshot().columns
            found = np.flatnonzero(columns.group_id == group_id)
            if len(found):
                return int(columns.step[found[0]])
        raise ConfigError(f"{self.run_dir} stored no samples of a group {group_id}")

    # ---- what belongs together -------------------------------------------------------------

    def overview(self) -> Overview:
        """What the indexed samples range over: for lists to choose from."""
        snapshot = self._snapshot()
        columns, words = snapshot.columns, snapshot.names.word
        newest = self.query(Query(limit=1)).rows
        kinds = (columns.finish_reason, columns.engine, columns.source)
        reasons, engines, sources = (
            sorted(words(code) for code in np.flatnonzero(np.bincount(codes))) for codes in kinds
        )
        return Overview(
            num_samples=len(snapshot),
            first_step=int(columns.step[-1]) if len(snapshot) else None,
            last_step=int(columns.step[0]) if len(snapshot) else None,
            files_indexed=len(snapshot.files),
            files=snapshot.num_files,
            finish_reasons=reasons,
            engines=engines,
            sources=sources,
            rewards=list(newest[0].rewards) if newest else [],
            notes=snapshot.notes,
        )

    def groups_of_step(self, step: int) -> list[GroupRow]:
        """The groups that a step used, as they stand in its files.

        Raises ConfigError where they are replaced each time that they are read.
        """
        index = Index(self.run_dir, step)
        for _ in range(TRIES):
            snapshot = index.refresh()
            try:
                if not snapshot.num_pending:
                    return group_rows(read_rows(snapshot, np.arange(len(snapshot))))
            except Changed as error:
                index.recheck(error.files)
        raise ConfigError(f"step {step} is being written anew; ask again")

    def groups_of_prompt(self, prompt_row: int, limit: int = 50) -> list[GroupRow]:
        """The newest groups about one row of the data, of what is indexed, newest step first."""

        def groups(snapshot: Snapshot) -> list[GroupRow]:
            columns = snapshot.columns
            rows = np.flatnonzero(columns.prompt_row == prompt_row)
            _, first = np.unique(columns.group_id[rows], return_index=True)
            shown = columns.group_id[rows[np.sort(first)[:limit]]]
            return group_rows(read_rows(snapshot, rows[np.isin(columns.group_id[rows], shown)]))

        return self._unless_changed(groups)
