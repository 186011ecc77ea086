"""Numbers of learner attempts: who was replaced while it was out of reach is refused.

A learner that Ray took for dead may live on behind a cut link. Each attempt takes the next number
when it starts; collector, engines and checkpoints go with the highest they know of.
"""

from pathlib import Path

from cluster.errors import Fenced

FOLDER = "attempts"


def next_attempt(run_dir: str | Path) -> int:
    """Take a number that nobody has taken: the first is 1."""
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        number = latest_attempt(run_dir) + 1
        try:
            (folder / f"{number:06d}").open("x").close()
        except FileExistsError:
            continue
        return number


def latest_attempt(run_dir: str | Path) -> int:
    """The highest number taken; 0 where there is none."""
    folder = Path(run_dir) / FOLDER
    return max((int(file.name) for file in folder.glob("[0-9]*")), default=0)


def refuse_older(attempt: int, latest: int) -> None:
    """Raise Fenced where a later attempt has begun."""
    if attempt < latest:
        raise Fenced(f"learner attempt {attempt} was replaced by attempt {latest}")
