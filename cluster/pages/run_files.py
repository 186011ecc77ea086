"""config.yaml and other small files of a run, whatever became of them: nothing here raises."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.redaction import redact

_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where it was built with PyYAML."""
SECTIONS = (
    "model", "data", "feedback", "feedback.rewards", "algorithm", "algorithm.optimizer",
    "algorithm.kl", "cluster", "cluster.learner", "cluster.rollout",
)  # fmt: skip
"""Settings that hold others. Somebody may have edited the file since the run read it."""
COUNTS = ("algorithm.num_steps",)


@dataclass
class TextFile:
    """A small file that is read again only where it changed."""

    path: Path
    seen: tuple[int, int] | None = None
    text: str = ""
    problem: str = ""
    """Why it could not be read, as a sentence; empty where it could, or is missing."""

    def read(self) -> bool:
        """Whether the text, or why there is none, is another one; a missing file has none."""
        found, text, problem = None, "", ""
        try:
            stat = self.path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self.seen:
                return False
            text = self.path.read_text(encoding="utf-8", errors="replace")
            found = stat.st_mtime_ns, stat.st_size
        except FileNotFoundError:
            pass
        except OSError as error:
            problem = f"{self.path.name}: {error.strerror or error}; left out."
        is_new = (found, problem) != (self.seen, self.problem)
        self.seen, self.text, self.problem = found, text, problem
        return is_new


def config_of(run_dir: Path) -> dict[str, Any]:
    """config.yaml of a run, secrets taken out; empty where there is none that is whole."""
    file = TextFile(run_dir / "config.yaml")
    file.read()
    return parse_config(file.text)[0]


def parse_config(text: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in a text, secrets taken out, and notes on what was left out of them."""
    try:
        found = yaml.load(text, Loader=_SAFE_LOADER)
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2026-13-01 is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        return {}, [f"config.yaml: not YAML{where}; left out."]
    config = redact(found) if isinstance(found, dict) else {}
    return config, list(_without_misfits(config))


def _without_misfits(config: dict[str, Any]) -> Iterator[str]:
    """Takes out of a configuration, in place, what nobody could read; says what, by name."""
    for name in SECTIONS:
        yield from _without_misfit(config, name.split("."), dict, "settings")
    for name in COUNTS:
        yield from _without_misfit(config, name.split("."), int, "a whole number")
    rewards = (config.get("feedback") or {}).get("rewards") or {}
    for name in list(rewards):
        yield from _without_misfit(config, ["feedback", "rewards", name], dict, "settings")


def _without_misfit(config: Any, path: list[Any], kind: type, what: str) -> Iterator[str]:
    *above, last = path
    for part in above:
        config = config.get(part) or {}
    if config.get(last) is not None and not isinstance(config[last], kind):
        del config[last]
        yield f"config.yaml: {'.'.join(map(str, path))} should be {what}; left out."
