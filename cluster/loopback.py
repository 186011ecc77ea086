"""A Ray of our own that other machines cannot reach.

On Linux Ray takes the address of the machine's network card for its node and then listens on all
cards; `ray.init` turns a loopback address that it is given back into that one. It knows a mode
without clusters, in which it uses 127.0.0.1 and listens there alone; on macOS and Windows that is
the default, and its switch is read where Ray is imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loopback_only() -> Iterator[None]:
    """In the block, a Ray that is started listens on 127.0.0.1 alone.

    Raises AssertionError with a Ray that has no such switch any more. Goes when `ray.init` takes a
    loopback `_node_ip_address` as it is (`services.resolve_ip_for_localhost`).
    """
    from ray._private import ray_constants

    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool), "look for Ray's new switch"
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
