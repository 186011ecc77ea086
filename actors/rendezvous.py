"""Where torch listens for the members of a process group: on the group's own address alone.

A `TCPStore` listens on every network card of its machine, whatever address its clients are told,
and serves whoever asks. Ray Train, vLLM and DeepSpeed all create theirs inside torch's rendezvous
of `env://` and `tcp://`, so that is where it is changed.
"""

import importlib
import logging
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

logger = logging.getLogger(__name__)

BACKLOG = 2048
# torch.distributed has a function of this name, which hides the module from other imports.
rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
_unbound = rendezvous._create_c10d_store


def bind_stores() -> None:
    """From now on the stores of this process listen on the address that their clients are given."""
    rendezvous._create_c10d_store = _bound


def _bound(
    hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> Any:  # a torch.distributed.Store
    listener = None
    if rank == 0 and not rendezvous._torchelastic_use_agent_store():
        listener = _listener(hostname, port)
    if listener is None:
        return _unbound(hostname, port, rank, world_size, timeout, use_libuv)
    return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host_name=hostname,
        port=port,
        world_size=world_size,
        is_master=True,
        timeout=timeout,
        multi_tenant=True,
        master_listen_fd=listener.detach(),  # the store closes it
        use_libuv=use_libuv,
    )


def _listener(hostname: str, port: int) -> socket.socket | None:
    """None where the address is not this machine's, behind NAT, or another store listens there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        logger.info("the store of %s:%d is left to torch: %s", hostname, port, error)
        return None
