"""The `cluster.reward_service` section: rewards over HTTP, for runs and other programs."""

from typing import Annotated

from pydantic import Field

from configs.base import NonNegativeFloat, Positive, PositiveFloat, Section


class RewardServiceConfig(Section):
    """What `attune serve rewards` starts; each replica takes the resources of `cluster.reward`."""

    host: str = "127.0.0.1"
    """Address to listen on, of the cluster's head. Beyond loopback a token is required."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8100
    token_file: str | None = None
    """File that holds the token, for the service and for runs that ask it; where empty, the
    environment variable ATTUNE_REWARD_TOKEN."""
    min_replicas: Positive = 1
    max_replicas: Positive = 1
    target_requests: PositiveFloat = 2.0
    """Requests in progress or waiting, per replica, that replicas are added or removed for."""
    upscale_delay_s: NonNegativeFloat = 5.0
    """Seconds for which there must be too few replicas before some are added."""
    downscale_delay_s: NonNegativeFloat = 60.0
    """Seconds for which there must be too many before some are removed."""
    look_back_s: PositiveFloat = 10.0
    """Requests are counted as their mean over so many seconds."""
    batch_requests: Positive = 4
    """Requests that a replica judges in one pass at most."""
    batch_wait_s: NonNegativeFloat = 0.01
    """How long a request waits for others to be judged with."""
    max_replies: Positive = 64
    """Replies that a run puts in one request; the replies to one prompt always travel together."""
    max_queued: Positive = 64
    """Requests that may wait for a replica. More are refused (HTTP 503); runs then ask again."""
    max_request_mib: Positive = 64
    """Longer requests are refused (HTTP 413)."""
    health_period_s: PositiveFloat = 5.0
    """Seconds between two looks at a replica. One that has been at a batch for longer than
    `feedback.deadline_s` is replaced."""
    health_timeout_s: PositiveFloat = 15.0
