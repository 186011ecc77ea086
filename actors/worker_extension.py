"""What is added to vLLM's workers: our receivers of weights, and methods for `collective_rpc`.

A worker imports this module before it loads the model, because the engine names the class below as
its `worker_extension_cls`. What is called below at import is therefore early enough, and needs no
installed entry point: it also works where Ray ships the code as a working directory.
"""

from actors.gloo_transport import register
from actors.orphans import end_with_ancestors
from actors.rendezvous import bind_stores
from rl.fingerprints import Fingerprint

register()
bind_stores()
end_with_ancestors()


class WorkerExtension:
    """Methods added to vLLM's workers for `collective_rpc`."""

    def received_fingerprints(self) -> dict[str, Fingerprint]:
        """Of every tensor of the last update, as this worker received it."""
        return self.weight_transfer_engine.received  # pyright: ignore[reportAttributeAccessIssue]

    def give_up_update(self) -> None:
        """End an update whose sender is gone before a tensor came.

        vLLM does so by itself once receiving has failed, and else refuses to leave the group.
        """
        if self._weight_update_active:  # pyright: ignore[reportAttributeAccessIssue]
            self._weight_update_active = False
            self.weight_transfer_engine.reset_weight_update_target()  # pyright: ignore[reportAttributeAccessIssue]

    def alive(self) -> None:
        """Answer: the worker is not stuck."""
