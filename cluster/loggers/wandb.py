"""Runs of Weights & Biases, online or as files for `wandb sync`."""

import importlib
from collections.abc import Mapping
from typing import Any

from cluster.loggers.protocol import RunFacts, figures
from configs.metrics import WandbConfig

START_S = 30.0
"""How long its server may take to answer at first."""
END_S = 20.0
"""How long the end of a run may wait for what is still to be sent; it stays in `wandb` of the run
folder, for `wandb sync`."""
QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""It is sent figures and settings; nothing of the machine, of the code or of what is printed."""


class WandbLogger:
    """One run, found again by its id.

    Nothing can be taken back: a step that is run again keeps the figures of its first time.
    """

    def __init__(self, settings: WandbConfig) -> None:
        self.settings = settings
        self.run: Any = None
        self.held = 0

    def begin(self, facts: RunFacts, last_step: int | None) -> int:
        """Go on with the run of this id, or begin it."""
        wandb: Any = importlib.import_module("wandb")
        try:
            self.run = wandb.init(
                project=self.settings.project,
                entity=self.settings.entity,
                mode=self.settings.mode,
                id=facts.run_id,
                resume="allow",
                name=facts.name,
                config=dict(facts.config),
                dir=str(facts.run_dir),
                settings=wandb.Settings(init_timeout=START_S, finish_timeout=END_S, **QUIET),
            )
        except BaseException:
            wandb.teardown(exit_code=1)  # or the id would stay taken
            raise
        # Online the server knows best; of files that wait for `wandb sync`, only we do.
        before = self.run.starting_step - 1 if self.run.resumed else last_step or 0
        self.held = max(self.held, before)
        return self.held

    def log(self, step: int, unix_time: float, metrics: Mapping[str, float]) -> None:
        """Hand the row to its own process, which sends it."""
        self.run.log({**figures(metrics), "_timestamp": unix_time}, step=step)
        self.held = step

    def rewind(self, step: int) -> int:
        """Nothing is forgotten."""
        return self.held

    def close(self, *, finished: bool) -> None:
        """Send what is left, and say how the run ended."""
        run, self.run = self.run, None
        if run is not None:
            run.finish(exit_code=0 if finished else 1)
