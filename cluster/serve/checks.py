"""What a reward service needs before anything is started; each mistake is refused in one line."""

import ipaddress
import socket

from cluster.inputs import check_reward
from cluster.serve.token import REMEDY, read_token
from configs.errors import ConfigError
from configs.schema import RunConfig


def check_rewards(config: RunConfig) -> None:
    """Refuse rewards that a replica cannot hold; `ValueError` with one line."""
    if not config.feedback.rewards:
        raise ConfigError("feedback.rewards is empty: name at least one reward to serve")
    if config.cluster.reward.num_workers > 1:
        raise ConfigError(
            f"cluster.reward.num_workers={config.cluster.reward.num_workers} would split a reward "
            "over processes, and a replica of a service is one: set it to 1, and raise "
            "cluster.reward_service.max_replicas"
        )
    for name, reward in config.feedback.rewards.items():
        check_reward(f"feedback.rewards.{name}", reward)


def check_service_inputs(config: RunConfig) -> str | None:
    """Refuse what cannot be served; returns the token, where there is one."""
    check_rewards(config)
    token, host = read_token(config), config.cluster.reward_service.host
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"cluster.reward_service.host={host} is open to other machines and needs a token: "
            f"{REMEDY}"
        )
    if config.cluster.address is None:
        _check_port(config)
    return token


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(config: RunConfig) -> None:
    service = config.cluster.reward_service
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            service.host, service.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cluster.reward_service: cannot listen on {service.host}:{service.port} "
            f"({error.strerror}): choose another port or host"
        ) from error
