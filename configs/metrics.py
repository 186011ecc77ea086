"""The `cluster.metrics` section: who is shown a run's figures while it goes on."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import PositiveFloat, Section

Port = Annotated[int, Field(gt=0, le=65535)]


class TensorBoardConfig(Section):
    """Event files for TensorBoard, in `tensorboard` of the run folder."""


class JsonlConfig(Section):
    """A second copy of `metrics.jsonl`, such as in a folder that others read."""

    path: str
    """File that gets the rows of this run, and of no other."""


class WandbConfig(Section):
    """A run of Weights & Biases. Its key is never a setting: WANDB_API_KEY, or `wandb login`."""

    project: str = "attune"
    entity: str | None = None
    """Team or user; where empty, the account's own."""
    mode: Literal["online", "offline"] = "online"
    """offline: into `wandb` of the run folder alone, for `wandb sync` later."""


class MlflowConfig(Section):
    """A run of MLflow. Names and passwords are never settings: see its MLFLOW_TRACKING_... ."""

    uri: str | None = None
    """Server or database, such as sqlite:////shared/mlflow.db; where empty, the environment
    variable MLFLOW_TRACKING_URI."""
    experiment: str = "attune"


class LoggersConfig(Section):
    """Programs that are given every row of `metrics.jsonl`. One that is named is used, as with
    `tensorboard: {}`; null stands for none."""

    tensorboard: TensorBoardConfig | None = None
    jsonl: JsonlConfig | None = None
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None


class MetricsConfig(Section):
    """What is shown of a run while it goes on."""

    enabled: bool = True
    """Show the run live and feed its loggers; `metrics.jsonl` is written in any case."""
    interval_s: PositiveFloat = 2.0
    """Seconds between two looks at live figures."""
    engine_metrics: bool = True
    """Have every engine measure itself: vLLM's own metrics."""
    pages_port: Port | None = None
    """Port of the run's pages on the driver's host, for loopback alone; where empty, a free one.
    The dashboard of a cluster shows them if its head was started with `--proxy-server-url`."""
    loggers: LoggersConfig = LoggersConfig()
