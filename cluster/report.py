"""The report of a run: one self-contained HTML page that opens with what was learned.

`write_report` draws whatever a run directory holds, also that of a run that died; the page needs
no network, no script and no server.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from cluster.charts import number
from cluster.dashboards.definition import DASHBOARDS, LEARNED
from cluster.dashboards.drawing import Figure, figure, figure_of_key
from cluster.headline import (
    Change,
    curve_change,
    display_name,
    headline,
    reward_change,
    sentence,
    short,
)
from cluster.metrics.history import RunHistory
from cluster.metrics.table import find
from cluster.run_record import Reply, RunRecord, finite, read_run, sampled_replies

__all__ = ["headline", "write_demo_report", "write_report"]

NUM_SAMPLES = 6
REST = "Everything else that was measured"
NO_FIGURES = {"step", "policy_version", "time_s", "unix_time"}
"""Of a row of metrics.jsonl: what the others are drawn over."""
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


def render_page(template: str, **values: Any) -> str:
    """A page of this folder's templates; everything in it is escaped unless it is Markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    return environment.get_template(template).render(values)


def _write(folder: Path, stages: list[Stage]) -> Path:
    page = render_page("report.html.jinja", name=folder.name, stages=stages, rest=REST)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _stage(record: RunRecord, title: str) -> Stage:
    samples, source, torn = _samples(record)
    return Stage(
        title=title,
        headline=sentence(record),
        notes=(*_unfinished(record), *record.notes, *torn),
        tiles=tuple(_tiles(record)),
        sections=tuple(_sections(record)),
        samples=tuple(samples),
        sample_source=source,
        settings=tuple(_settings(record)),
        config_yaml=yaml.safe_dump(record.config, sort_keys=False) if record.config else "",
    )


def _unfinished(record: RunRecord) -> list[str]:
    if record.summary:
        return []
    planned = f" of {record.num_steps}" if record.num_steps else ""
    return [f"The run has not finished: {len(record.rows)}{planned} steps are on record."]


def _sections(record: RunRecord) -> list[tuple[str, tuple[Figure, ...]]]:
    """The charts under their headings; every metric appears somewhere."""
    history = RunHistory(record.path, record.config)
    history.refresh()
    sections = [section for dashboard in DASHBOARDS for section in dashboard.sections]
    if record.method in ("sft", "reward_model"):
        sections.insert(0, sections.pop(sections.index(LEARNED)))
    drawn = [(one.title, [figure(history, panel) for panel in one.panels]) for one in sections]
    drawn.append((REST, [figure_of_key(history, key) for key in _rest(history)]))
    found = [(heading, tuple(one for one in figures if one)) for heading, figures in drawn]
    return [(heading, figures) for heading, figures in found if figures]


def _rest(history: RunHistory) -> list[str]:
    """What was measured and has no panel, but for the spread of each part of a reward."""
    panels = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
    curves = [curve for panel in panels for curve in panel.curves]
    shown = {key for curve in curves for key in history.keys_of(curve)}
    return sorted(
        key
        for key in history.step_keys - shown - NO_FIGURES
        if (found := find(key)) is None or not found[0].key.startswith("reward/{reward}/p")
    )


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The few numbers worth seeing first."""
    tiles = []
    gold = [name for name in record.gold_names if "/" not in name]
    rewards = [(name, "True reward") for name in gold] + [("total", "Reward it learns from")]
    wanted = [(title, reward_change(record, name)) for name, title in rewards]
    wanted += [
        ("KL to the reference", curve_change(record, "kl/ref_k1")),
        ("Reply length", curve_change(record, "length/mean")),
        ("Validation loss", curve_change(record, "validation/loss")),
        ("Validation accuracy", curve_change(record, "validation/accuracy")),
    ]
    units = {"KL to the reference": "nats per reply", "Reply length": "tokens"}
    for title, change in wanted:
        if change is not None:
            tiles.append((title, _arrow(change), units.get(title, "")))
    planned = f" of {record.num_steps}" if record.num_steps else ""
    tiles.append(("Learner steps", f"{len(record.rows)}{planned}", ""))
    elapsed = finite(record.series("time_s")[1])
    if elapsed:
        tiles.append(("Time", _duration(elapsed[-1]), "on the clock"))
    return tiles


def _arrow(change: Change) -> str:
    return f"{short(change.before)} → {short(change.after)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


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


def _settings(record: RunRecord) -> list[tuple[str, str]]:
    """The settings a reader asks for first, then the package versions."""
    data, cluster = record.section("data"), record.section("cluster")
    algorithm = record.section("algorithm")
    optimizer: dict[str, Any] = algorithm.get("optimizer") or {}
    kl: dict[str, Any] = algorithm.get("kl") or {}
    rewards = record.section("feedback").get("rewards") or {}
    online = record.method not in ("sft", "reward_model")
    wanted = {
        "Method": display_name(record),
        "Model": record.section("model").get("path"),
        "Data": data.get("train"),
        "Steps": record.num_steps,
        "Batch": data.get("prompts_per_step"),
        "Replies per prompt": data.get("samples_per_prompt") if online else None,
        "Rewards": ", ".join(f"{k} × {v.get('weight', 1.0):g}" for k, v in rewards.items()),
        "Learning rate": optimizer.get("learning_rate"),
        "KL coefficient": kl.get("coef") if online else None,
        "Staleness bound": algorithm.get("max_staleness") if online else None,
        "Seed": data.get("seed"),
        "Device": cluster.get("device"),
        "Learner ranks": (cluster.get("learner") or {}).get("num_workers"),
        "Engines": (cluster.get("rollout") or {}).get("num_engines") if online else None,
        "Restarts": record.summary.get("restarts"),
    }
    versions = record.summary.get("versions")
    wanted |= versions if isinstance(versions, dict) else {}
    return [(name, str(value)) for name, value in wanted.items() if value not in (None, "")]
