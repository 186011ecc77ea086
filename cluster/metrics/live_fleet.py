"""What the driver tells of a run in telemetry, beside its memory."""

import time

from cluster.seats import Seat
from cluster.supervisor import Supervisor


def of_supervisor(supervisor: Supervisor) -> dict[str, float]:
    """Who is there of the fleet; from any thread."""
    seats = [seat for seat in list(supervisor.seats.values()) if seat.is_synced]
    live = [seat for seat in seats if seat.is_live]
    interval_s = supervisor.placement.check_interval_s
    return {
        "fleet/wanted": float(len(seats) + supervisor.num_resting),
        "fleet/live": float(len(live)),
        "fleet/healthy": float(sum(is_healthy(seat, interval_s) for seat in live)),
        "fleet/restarts": float(supervisor.restarts),
    }


def is_healthy(seat: Seat, interval_s: float) -> bool:
    """Whether its last health check was answered, or is not overdue."""
    return seat.check is None or time.monotonic() - seat.checked_at < interval_s
