"""Ports that Ray takes, and the addresses that gloo gives to other hosts."""

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, field
from typing import Any

import psutil

from cluster.diagnosis.findings import Finding
from configs.schema import RunConfig

PORTS = {
    6379: "Ray's head (`ray start --head`)",
    8265: "Ray's dashboard",
    10001: "Ray's client server",
}
"""What Ray listens on where it is told nothing else."""
LOOPBACK = "127."
RESOLVE_S, CONNECT_S = 5.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Interfaces:
    """This machine's network, as far as gloo looks at it."""

    addresses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """IPv4 addresses of every interface that is up."""
    host_name: str = ""
    host_address: str | None = None
    """What the host name stands for; None where nothing answers."""


def judge_port(port: int, holder: str | None, *, own_cluster: bool) -> Finding:
    """A port of Ray's; `holder` listens there, None where nobody does.

    A run that starts Ray for itself takes other ports where these are taken; `ray start` does not.
    """
    name = PORTS[port]
    if holder is None:
        return Finding(level="ok", what=f"port {port} is free for {name}")
    what = f"port {port}, {name}, is taken by {holder}"
    if not own_cluster:
        return Finding(level="ok", what=what)
    remedy = "a run takes another one; `ray start --head` needs it, or another by --port"
    if port == 8265:
        remedy = "the dashboard takes the next free port; see what the run says"
    return Finding(level="note", what=what, remedy=remedy)


def judge_address(address: str, reached: str) -> Finding:
    """Whether a cluster answers; `reached` is the reason why not, empty where it does."""
    if not reached:
        return Finding(level="ok", what=f"cluster.address {address} answers")
    remedy = "start it with `ray start --head`, or mend cluster.address"
    what = f"cluster.address {address} does not answer ({reached})"
    return Finding(level="wrong", what=what, remedy=remedy)


def judge_interface(found: Interfaces, wanted: str | None, *, several_hosts: bool) -> Finding:
    """The address that gloo offers to its peers: of GLOO_SOCKET_IFNAME, else of the host name."""
    names = ", ".join(found.addresses)
    if wanted:
        addresses = found.addresses.get(wanted)
        if not addresses:
            remedy = f"it has no address or is not up; take one of {names}"
            return Finding(level="wrong", what=f"GLOO_SOCKET_IFNAME={wanted}", remedy=remedy)
        return Finding(level="ok", what=f"gloo offers {addresses[0]} of {wanted}")
    own = [address for addresses in found.addresses.values() for address in addresses]
    name, address = found.host_name, found.host_address
    remedy = f"set GLOO_SOCKET_IFNAME to one of {names}, or mend /etc/hosts"
    if address is None:
        what = f"the host name {name} stands for no address"
        return Finding(level="wrong", what=what, remedy=remedy)
    if address not in own and not address.startswith(LOOPBACK):
        what = f"the host name {name} stands for {address}, which is not this machine's"
        return Finding(level="wrong", what=what, remedy=remedy)
    if address.startswith(LOOPBACK) and several_hosts:
        what = f"the host name {name} stands for {address}, where other hosts find nobody"
        remedy = f"set GLOO_SOCKET_IFNAME on every host, here to one of {names}"
        return Finding(level="wrong", what=what, remedy=remedy)
    return Finding(level="ok", what=f"gloo offers {address} of host name {name}")


# Readings


def holder_of(port: int) -> str | None:
    """Who listens on a TCP port of this machine: program and pid; None where nobody does."""
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not what merely lingers
        try:
            probe.bind(("", port))
            return None
        except OSError:
            pass
    try:
        for connection in psutil.net_connections("tcp"):
            local: Any = connection.laddr  # empty where a socket is bound to nothing
            if connection.status == psutil.CONN_LISTEN and local and local.port == port:
                if connection.pid is None:
                    break
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:  # others' sockets are not shown to everybody
        pass
    return "another program"


def connect_refusal(address: str) -> str:
    """Why no connection to `host:port` can be made; empty where one can."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return "it is not host:port"
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            return ""
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__


def read_interfaces() -> Interfaces:
    """The network of this machine; a name server that is silent counts as no address."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    addresses = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
        if name in up
    }
    name = socket.gethostname()
    pool = ThreadPoolExecutor(1)
    try:
        address = pool.submit(socket.gethostbyname, name).result(RESOLVE_S)
    except (OSError, NoAnswer):
        address = None
    pool.shutdown(wait=False)
    kept = {name: found for name, found in addresses.items() if found}
    return Interfaces(addresses=kept, host_name=name, host_address=address)


def examine_network(
    config: RunConfig | None, environment: Mapping[str, str], interfaces: Interfaces
) -> list[Finding]:
    """Every verdict about ports and interfaces."""
    address = config.cluster.address if config else None
    own_cluster = address is None
    findings = [judge_port(port, holder_of(port), own_cluster=own_cluster) for port in PORTS]
    if address and address not in ("auto", "local"):
        findings.append(judge_address(address, connect_refusal(address)))
    wanted = environment.get("GLOO_SOCKET_IFNAME")
    return [*findings, judge_interface(interfaces, wanted, several_hosts=not own_cluster)]
