"""`python -m cluster.pages`: the process that shows a run while it goes on.

It is nobody's concern: it gives way to everybody (nice), ends with the process that started it, and
where it cannot log it goes on.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path

from actors.orphans import end_with_ancestors
from cluster.pages.process import LOOPBACK
from cluster.pages.server import leave, serve
from configs.redaction import RedactingFormatter

NICE = 19
"""Below Ray's workers, which are at 15. Once it serves: where others take all cores, starting would
take long."""


def main() -> int:
    """Serve until stopped."""
    given = _arguments()
    _log()
    if given.parent is not None:
        if os.getppid() != given.parent:
            return 0  # it died meanwhile
        end_with_ancestors()
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            given.root,
            socket.socket(fileno=given.fd),
            # Without a token, whatever the environment holds: behind it lies the whole dashboard,
            # which has a token of its own.
            host=LOOPBACK,
            token=None,
            run_dir=given.run_dir,
            with_slots=not given.without_slots,
            ready=lambda: os.nice(NICE),
        )
    leave(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cluster.pages", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="a run, or a folder of runs")
    parser.add_argument("--run-dir", type=Path, help="the run that goes on, shown first")
    parser.add_argument(
        "--fd", type=int, required=True, help="a socket that listens on a loopback address"
    )
    parser.add_argument("--parent", type=int, help="end when this process does")
    parser.add_argument(
        "--without-slots", action="store_true", help="leave the Metrics page to a real Grafana"
    )
    return parser.parse_args()


def _log() -> None:
    logging.raiseExceptions = False  # a full disk is no reason to say more
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


if __name__ == "__main__":
    sys.exit(main())
