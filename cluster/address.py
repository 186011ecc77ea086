"""`cluster.address`, looked at before Ray is: whether a cluster is there and lets us in.

`ray.init` tries for 20 s and more, and then says no more than that it failed.
"""

import json
import os
import platform
import socket

from configs.errors import ConfigError

CONNECT_S = 5.0


def check_address(address: str) -> None:
    """Refuse an address where no cluster of our version and token answers; one line.

    Costs some hundredths of a second where all is well, beside importing Ray.
    """
    if "://" in address:
        protocol = address.partition("://")[0]
        raise ConfigError(
            f"cluster.address: {protocol}:// is not where a driver joins; give HOST:PORT of the "
            "head (by default port 6379), or `auto` on a node, or submit the run with "
            "`ray job submit`"
        )
    bootstrap = _bootstrap(address)
    host, _, port = bootstrap.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cluster.address: nothing answers at {bootstrap} ({error}); start the head with `ray "
            "start --head`, or give its HOST:PORT"
        ) from error
    metadata = _metadata(bootstrap)
    if os.environ.get("RAY_AUTH_MODE") == "token" and not _asks_for_token(bootstrap):
        raise ConfigError(
            f"cluster.address: {bootstrap} runs without tokens, so whoever reaches it can run "
            "code there; start it with RAY_AUTH_MODE=token and a token, or set "
            "RAY_AUTH_MODE=disabled here to join it all the same"
        )
    _check_version(bootstrap, metadata)


def _bootstrap(address: str) -> str:
    """HOST:PORT of what `auto` or an address stands for."""
    from ray._private import services

    address = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    try:
        return services.canonicalize_bootstrap_address_or_die(address)
    except ValueError as error:
        raise ConfigError(
            f"cluster.address: {address} is no address; give HOST:PORT of the head (by default "
            "port 6379), or `auto` on a node"
        ) from error
    except ConnectionError as error:
        raise ConfigError(
            "cluster.address: no Ray cluster runs on this machine; start one with `ray start "
            "--head`, give HOST:PORT, or leave cluster.address out"
        ) from error


def _metadata(bootstrap: str) -> dict[str, str]:
    """What the head says of itself; asking takes the token."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - compiled
    from ray.exceptions import AuthenticationError

    try:
        client = GcsClient(address=bootstrap)
        answer = client.internal_kv_get(
            b"CLUSTER_METADATA", namespace=b"cluster", timeout=CONNECT_S
        )
    except AuthenticationError as error:
        mode = os.environ.get("RAY_AUTH_MODE", "token")
        own = "ours is off (RAY_AUTH_MODE)" if mode == "disabled" else "our token is another one"
        raise ConfigError(
            f"cluster.address: {bootstrap} asks for a token and {own}; set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to what the cluster was started with"
        ) from error
    return json.loads(answer) if answer else {}


def _asks_for_token(bootstrap: str) -> bool:
    """Whether the head refuses a caller without token; Ray's own clients cannot ask without one."""
    import grpc

    with grpc.insecure_channel(bootstrap) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", timeout=CONNECT_S)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED  # pyright: ignore[reportAttributeAccessIssue] - of Call, which every such error is
    return False


def _check_version(bootstrap: str, metadata: dict[str, str]) -> None:
    import ray

    # Patches of one Python get along; of Ray, no two releases do.
    theirs = metadata.get("ray_version", ray.__version__), metadata.get("python_version", "")
    python = ".".join(theirs[1].split(".")[:2])
    own_python = ".".join(platform.python_version_tuple()[:2])
    for what, there, here in (
        ("Ray", theirs[0], ray.__version__),
        ("Python", python or own_python, own_python),
    ):
        if there != here:
            raise ConfigError(
                f"cluster.address: {bootstrap} runs {what} {there} and this is {here}; use the "
                "same on both sides"
            )
