"""Runs of MLflow, on a server or in a database."""

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.loggers.protocol import RunFacts, figures
from configs.metrics import MlflowConfig

TAG = "attune.run_id"
"""By which a run is found again."""
EVERY_ROW = "time_s"
"""A metric that each row has: it tells which steps are there."""
NUM_PARAMS = 100
"""That a request may carry."""
LONGEST_PARAM = 500
"""Letters; a longer value is refused."""


class MlflowLogger:
    """One run of an experiment.

    Nothing can be taken back: a step that is run again keeps the figures of its first time.
    """

    def __init__(self, settings: MlflowConfig) -> None:
        self.settings = settings
        self.client: Any = None
        self.run_id = ""
        self.held = 0

    def begin(self, facts: RunFacts, last_step: int | None) -> int:
        """Go on with the run that has our tag, or begin one."""
        self.client = importlib.import_module("mlflow").MlflowClient(self.settings.uri)
        experiment = self._experiment()
        found = self.client.search_runs([experiment], f"tags.`{TAG}` = '{facts.run_id}'")
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            history = self.client.get_metric_history(self.run_id, EVERY_ROW)
            self.held = max((metric.step for metric in history), default=0)
        else:
            self.run_id = self._create(experiment, facts)
            self.held = 0
        return self.held

    def log(self, step: int, unix_time: float, metrics: Mapping[str, float]) -> None:
        """Send the row in one request."""
        entities = importlib.import_module("mlflow.entities")
        row = [
            entities.Metric(_allowed(name), float(value), int(unix_time * 1000), step)
            for name, value in figures(metrics).items()
        ]
        self.client.log_batch(self.run_id, metrics=row, synchronous=True)
        self.held = step

    def rewind(self, step: int) -> int:
        """Nothing is forgotten."""
        return self.held

    def close(self, *, finished: bool) -> None:
        """Say how the run ended."""
        client, self.client = self.client, None
        if client is not None and self.run_id:
            client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

    def _experiment(self) -> str:
        known = self.client.get_experiment_by_name(self.settings.experiment)
        if known is not None:
            return str(known.experiment_id)
        return str(self.client.create_experiment(self.settings.experiment))

    def _create(self, experiment: str, facts: RunFacts) -> str:
        run = self.client.create_run(experiment, tags={TAG: facts.run_id}, run_name=facts.name)
        entities = importlib.import_module("mlflow.entities")
        params = [
            entities.Param(_allowed(name), value[:LONGEST_PARAM])
            for name, value in _flat(facts.config)
        ]
        for start in range(0, len(params), NUM_PARAMS):
            part = params[start : start + NUM_PARAMS]
            self.client.log_batch(run.info.run_id, params=part, synchronous=True)
        return str(run.info.run_id)


def _allowed(name: str) -> str:
    """Names of rewards are the user's, and a server refuses a row for one letter."""
    return re.sub(r"[^\w./ \-]", "_", name)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of all settings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, "null" if value is None else str(value)
