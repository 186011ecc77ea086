"""`attune inspect RUN`: where a run stands, and what its failure bundle says."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.checkpoints.manifest import counting
from cluster.checkpoints.store import PLACE, Store
from cluster.events import read_events
from cluster.failure import bundles, last_lines
from cluster.ledger import USED, read_ledger
from cluster.phases import FOLDER as PHASES
from cluster.phases import phases
from cluster.run_folder import check_is_run
from cluster.run_record import read_run
from cluster.run_state import state_of

NUM_EVENTS = 10
LAST_LINES = 12
"""Of each log, on the terminal."""


def inspect_run(run_dir: Path) -> dict[str, Any]:
    """The state of a run as plain values; raises ValueError where there is no run."""
    check_is_run(run_dir)
    run = read_run(run_dir)
    step = run.rows[-1]["step"] if run.rows else 0
    found = bundles(run_dir)
    return {
        "run": str(run_dir),
        "method": run.method,
        "model": run.section("model").get("path"),
        "state": state_of(run_dir, found),
        "step": step,
        "num_steps": run.num_steps,
        "phases": _phases(run_dir),
        "events": read_events(run_dir),
        "ledger": _ledger(run_dir),
        "checkpoints": _checkpoints(run_dir),
        "notes": list(run.notes),
        "failures": [{"folder": f.name, **failure_facts(f)} for f in found],
    }


def _phases(run_dir: Path) -> dict[str, dict[str, Any]]:
    now = time.time()
    return {
        role: {"phase": phase, "for_s": round(now - (run_dir / PHASES / role).stat().st_mtime, 1)}
        for role, phase in phases(run_dir).items()
    }


def _checkpoints(run_dir: Path) -> list[str]:
    """Whole ones that the run could go on from, oldest first; a store elsewhere by its name."""
    note = run_dir / PLACE
    if note.exists():
        return [f"in {json.loads(note.read_text())['folder']}"]
    store = Store(run_dir / "checkpoints")
    return [one.name for one in reversed(counting(store)) if store.has(one.manifest)]


def _ledger(run_dir: Path) -> dict[str, Any]:
    table = read_ledger(run_dir)
    used = [row for row in table.to_pylist() if row["status"] == USED]
    times = Counter(row["group_id"] for row in used)
    return {
        "groups": dict(Counter(table["status"].to_pylist())),
        "used_twice": sorted(group for group, count in times.items() if count > 1),
        "steps": len({row["step"] for row in used}),
        "samples": sum(row["num_samples"] for row in used),
        "discarded_steps": len(list((run_dir / "discarded" / "ledger").glob("*.parquet"))),
    }


def failure_facts(bundle: Path) -> dict[str, Any]:
    """failure.json of a bundle; empty where it is torn."""
    try:
        return dict(json.loads((bundle / "failure.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def inspect_to_text(run_dir: Path, *, failure: bool, as_json: bool) -> str:
    """What the command prints; raises ValueError where there is no run, or no failure to show."""
    if failure and not as_json:
        return render_failure(run_dir)
    found = inspect_run(run_dir)
    if failure:
        found = {"run": found["run"], "failures": found["failures"]}
    return json.dumps(found, ensure_ascii=False) if as_json else render(found)


def render(found: dict[str, Any]) -> str:
    """What `attune inspect RUN` prints."""
    ledger = found["ledger"]
    counts = ", ".join(f"{count} {status}" for status, count in ledger["groups"].items()) or "none"
    twice = ledger["used_twice"]
    lines = [
        f"run          {found['run']}",
        f"method       {found['method']}   model: {found['model']}",
        f"state        {found['state']} after step {found['step']} of {found['num_steps']}",
        f"groups       {counts}; in {ledger['steps']} steps, {ledger['samples']} samples",
        f"used twice   {', '.join(map(str, twice)) if twice else 'none'}",
        f"checkpoints  {', '.join(found['checkpoints']) or 'none'}",
    ]
    lines += [
        f"phase        {role}: {one['phase']} for {one['for_s']:.0f} s"
        for role, one in found["phases"].items()
    ]
    lines += [f"event        {_event(event)}" for event in found["events"][-NUM_EVENTS:]]
    lines += [f"note         {note}" for note in found["notes"]]
    for failure in found["failures"][:1]:
        cause = failure.get("cause", {})
        lines += [
            f"failed       {failure.get('time', '')}  {failure.get('error', '')}",
            f"cause        {cause.get('cause', '')}",
            f"remedy       {cause.get('remedy', '')}",
            f"details      attune inspect {found['run']} --failure",
        ]
    return "\n".join(lines)


def _event(event: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event.get("time", 0)))
    facts = {name: value for name, value in event.items() if name not in ("time", "kind")}
    return " ".join([at, str(event.get("kind")), *(f"{k}={v}" for k, v in facts.items())])


def render_failure(run_dir: Path) -> str:
    """The newest bundle for the terminal; raises ValueError where there is none."""
    found = bundles(run_dir)
    if not found:
        check_is_run(run_dir)
        raise ValueError(f"{run_dir} holds no failure bundle: the run did not fail")
    bundle, facts = found[0], failure_facts(found[0])
    cause = facts.get("cause", {})
    lines = [
        f"{bundle}",
        f"when     {facts.get('time', '')}, after step {facts.get('step', '?')}",
        f"error    {facts.get('error', '')}",
        f"cause    {cause.get('cause', '')} ({cause.get('name', '')})",
        f"remedy   {cause.get('remedy', '')}",
    ]
    lines += [f"phase    {role}: {phase}" for role, phase in facts.get("phases", {}).items()]
    lines += _batch(bundle)
    lines += [
        "",
        "---- error.txt",
        _error(bundle),
    ]
    for log in sorted(path for path in (bundle / "logs").rglob("*") if path.is_file()):
        if tail := last_lines(log, LAST_LINES):
            lines += ["", f"---- {log.relative_to(bundle)}", *(line.rstrip() for line in tail)]
    lines += [f"older    {other}" for other in found[1:]]
    return "\n".join(lines)


def _error(bundle: Path) -> str:
    """The messages of the error; a run that was killed while it wrote has none."""
    path = bundle / "error.txt"
    if not path.exists():
        return "(missing: the bundle is not whole)"
    return path.read_text(encoding="utf-8", errors="replace").partition("\n---- tracebacks")[0]


def _batch(bundle: Path) -> list[str]:
    path = bundle / "batch.json"
    if not path.exists():
        return []
    try:
        rows = [dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):
        return [f"batch    {path} is torn"]
    lines = [f"batch    {len(rows)} samples in {path}"]
    for row in rows[:3]:
        parts = [f"{name}={value!r}" for name, value in row.items() if name != "tokens"]
        lines.append(("         " + " ".join(parts))[:200])
    return lines
