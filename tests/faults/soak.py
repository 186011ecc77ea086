"""Kill something at random, again and again, and check the books of the run at the end.

    python -m tests.faults.soak [--minutes 30] [--kills 40] [--seed 0]

Victims and phases are drawn from those of the kill matrix, but for the node. Goes on until both
numbers are reached; prints one JSON line per kill and one for the whole.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults import injection
from tests.faults.matrix import VICTIMS, Run, end_and_count, run_config
from tests.integration.processes import read_steps
from tests.integration.test_run import start

DRAWN = [victim for victim in VICTIMS if victim != "node"]


def main() -> int:
    """Kill, count, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn, killed = random.Random(options.seed), Counter[str]()
    started = time.monotonic()
    with TemporaryDirectory(prefix="soak-") as folder:
        config = run_config(Path(folder), "ranks")
        run = Run(config=config, process=start(config))
        try:
            injection.wait_for_steps(run.folder, 3, run.process)
            slowest = 0.0
            while (
                time.monotonic() - started < 60 * options.minutes or killed.total() < options.kills
            ):
                victim, phase = drawn.choice(DRAWN), drawn.choice(list(injection.PHASES))
                run.wait_until_whole()
                injection.wait_for_phase(run.folder, phase, run.process)
                detected, recovered = VICTIMS[victim][1](run)
                killed[victim] += 1
                run.struck += 1
                slowest = max(slowest, recovered)
                line = {
                    "minute": round((time.monotonic() - started) / 60, 1), "victim": victim,
                    "phase": phase, "detected_s": round(detected, 1),
                    "recovered_s": round(recovered, 1),
                    "step": max(read_steps(run.folder), default=0),
                }  # fmt: skip
                print(json.dumps(line), flush=True)
            minutes = (time.monotonic() - started) / 60
            found = end_and_count(run)
        finally:
            if run.process.poll() is None:
                run.process.kill()
    result = {
        "minutes": round(minutes, 1), "kills": killed.total(), "by_victim": dict(killed),
        "slowest_recovery_s": round(slowest, 1), "are_right": found.are_right, **asdict(found),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return 0 if found.are_right else 1


if __name__ == "__main__":
    sys.exit(main())
