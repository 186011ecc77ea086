"""Taking an address to listen on; apart from the server, as a driver needs no more than this."""

import errno
import socket

from configs.errors import ConfigError


def listen(host: str, port: int, field: str = "--port") -> socket.socket:
    """A socket that takes connections; raises ConfigError where it cannot have the address.

    `port` 0 takes a free one; `field` is what it is called where it was given.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host: {host} is no address of this machine ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        field = "--host" if error.errno == errno.EADDRNOTAVAIL else field
        why = error.strerror or error
        raise ConfigError(
            f"{field}: {host}:{port} cannot be had ({why}); give another one"
        ) from error
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    """The address of a server, for people on this machine where it listens on all addresses."""
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"
