"""The report of a run: one self-contained HTML page that opens with what was learned.

`write_report` draws whatever a run directory holds, also that of a run that died; the page needs
no network, no script and no server.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.dashboards.definition import DASHBOARDS, LEARNED
from cluster.dashboards.drawing import Figure, figure, figure_of_key, keys_without_panel
from cluster.dashboards.gantt import Gantt, whole_gantt
from cluster.failure import bundles
from cluster.faults import Event, Failure, events_of, read_failure
from cluster.headline import display_name, headline, sentence
from cluster.metrics.history import RunHistory
from cluster.run_facts import settings, tiles
from cluster.run_record import Reply, RunRecord, read_run, sampled_replies
from cluster.templates import render_page

__all__ = ["headline", "write_demo_report", "write_report"]

NUM_SAMPLES = 6
MOST_FAILURES = 3
REST = "Everything else that was measured"
DEMO_STAGES = (
    ("run", "The online run"),
    ("reward_model", "Before it: the reward model"),
    ("sft", "Before it: supervised fine-tuning"),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of the page; a demo has three."""

    title: str
    headline: str
    notes: tuple[str, ...]
    tiles: tuple[tuple[str, str, str], ...]
    """(name, value, detail)."""
    sections: tuple[tuple[str, tuple[Figure, ...]], ...]
    samples: tuple[tuple[Reply, Reply], ...]
    sample_source: str
    gantt: Gantt | None
    """Who did what when; None where no process told it."""
    failures: tuple[Failure, ...]
    events: tuple[Event, ...]
    settings: tuple[tuple[str, str], ...]
    config_yaml: str


def write_report(run_dir: Path) -> Path:
    """Draw `run_dir`/report.html and return its path; raises ValueError without a run there."""
    record = read_run(run_dir)
    return _write(run_dir, [_stage(record, display_name(record))])


def write_demo_report(demo_dir: Path) -> Path:
    """One page for the stages of a demo: `run/` in full, then `reward_model/` and `sft/`.

    Raises ValueError where `demo_dir` holds none of them.
    """
    stages = [
        _stage(read_run(demo_dir / folder), title)
        for folder, title in DEMO_STAGES
        if (demo_dir / folder).is_dir()
    ]
    if not stages:
        names = ", ".join(f"{folder}/" for folder, _ in DEMO_STAGES)
        raise ValueError(f"{demo_dir}: holds none of {names}; give the folder of a demo")
    return _write(demo_dir, stages)


def _write(folder: Path, stages: list[Stage]) -> Path:
    page = render_page("report.html.jinja", name=folder.name, stages=stages, rest=REST)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _stage(record: RunRecord, title: str) -> Stage:
    samples, source, torn = _samples(record)
    history = RunHistory(record.path, record.config)
    history.refresh()
    return Stage(
        title=title,
        headline=sentence(record),
        notes=(*_unfinished(record), *record.notes, *torn),
        tiles=tuple(tiles(record)),
        sections=tuple(_sections(record, history)),
        samples=tuple(samples),
        sample_source=source,
        gantt=whole_gantt(history),
        failures=tuple(read_failure(bundle) for bundle in bundles(record.path)[:MOST_FAILURES]),
        events=tuple(events_of(history.events)),
        settings=tuple(settings(record)),
        config_yaml=yaml.safe_dump(record.config, sort_keys=False) if record.config else "",
    )


def _unfinished(record: RunRecord) -> list[str]:
    if record.summary:
        return []
    planned = f" of {record.num_steps}" if record.num_steps else ""
    return [f"The run has not finished: {len(record.rows)}{planned} steps are on record."]


def _sections(record: RunRecord, history: RunHistory) -> list[tuple[str, tuple[Figure, ...]]]:
    """The charts under their headings; every metric appears somewhere."""
    sections = [section for dashboard in DASHBOARDS for section in dashboard.sections]
    if record.method in ("sft", "reward_model"):
        sections.insert(0, sections.pop(sections.index(LEARNED)))
    drawn = [(one.title, [figure(history, panel) for panel in one.panels]) for one in sections]
    drawn.append((REST, [figure_of_key(history, key) for key in keys_without_panel(history)]))
    found = [(heading, tuple(one for one in figures if one)) for heading, figures in drawn]
    return [(heading, figures) for heading, figures in found if figures]


def _samples(record: RunRecord) -> tuple[list[tuple[Reply, Reply]], str, list[str]]:
    """Pairs of replies, where they come from, and notes on files that could not be read."""
    stored = record.summary.get("samples")
    if isinstance(stored, list) and stored:
        pairs = [
            (
                Reply(prompt=s["prompt"], text=s["before"], rewards=s.get("rewards_before") or {}),
                Reply(prompt=s["prompt"], text=s["after"], rewards=s.get("rewards_after") or {}),
            )
            for s in stored[:NUM_SAMPLES]
        ]
        return pairs, "Replies to the same prompts before and after the run.", []
    pairs, torn = sampled_replies(record.path, NUM_SAMPLES)
    return pairs, "The first sample of groups of the earliest and of the latest step.", torn
