"""Which network interface gloo uses on each host of a cluster.

Left to itself gloo binds the address of the host's name, which is a loopback address on many hosts:
peers on others are refused there. Every Ray worker therefore runs `use_node_interface` before
anything else, and points gloo at the interface that carries its Ray node's address.
"""

import os
import socket
import sys

import psutil

HOOK = "cluster.network.use_node_interface"
"""For `worker_process_setup_hook` of a job's runtime environment."""
VARIABLE = "GLOO_SOCKET_IFNAME"
OPTION = "--node-ip-address="


def use_node_interface() -> None:
    """Set GLOO_SOCKET_IFNAME of this worker, unless somebody has chosen one."""
    # A hook runs before the worker can be asked for its address, but Ray starts it with one.
    address = next((a.removeprefix(OPTION) for a in sys.argv if a.startswith(OPTION)), "")
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


def interface_of(address: str) -> str | None:
    """The interface of this host that has an IPv4 address; None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        for found in addresses:
            if found.family == socket.AF_INET and found.address == address:
                return name
    return None
