"""The process group of the learner's ranks, as Ray Train sets it up."""

from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from actors.rendezvous import bind_stores


class _BoundStoreBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(bind_stores)
        super().on_start(worker_group, backend_config)


class BoundStoreConfig(TorchConfig):
    """A process group whose store listens on its own address alone."""

    @property
    def backend_cls(self) -> type[_BoundStoreBackend]:
        """What sets the group up."""
        return _BoundStoreBackend
