"""A row of a run's panels on top of Ray's default dashboard, which its Metrics page shows.

Ray writes that file anew whenever a head starts; it is patched after each start, any number of
times.
"""

import json
from pathlib import Path
from typing import Any

from cluster.dashboards.definition import OVERVIEW
from cluster.dashboards.grafana import TAG, Json, height, link, panels_json, row
from cluster.dashboards.promql import RAY
from cluster.files import replace_text
from configs.errors import ConfigError

FIRST_ID, LAST_ID = 9000, 9099
"""Of our panels; Ray's go up to about 1000."""
EMBEDDED = (24, 41)
"""Panels of Ray's that its Overview shows by their id."""
WIDTH = 12
"""Of a panel: Ray's are as wide."""


def patch_file(path: Path) -> bool:
    """Put the row into a file of Ray's; whether that changed anything."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--patch-ray-dashboard {path}: cannot be read ({error.strerror}); give the "
            "default_grafana_dashboard.json that Ray wrote when its head started"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"--patch-ray-dashboard {path}: is no JSON ({error}); restart the head, which writes it"
        ) from error
    if missing := [id_ for id_ in EMBEDDED if id_ not in _ids(document)]:
        raise ConfigError(
            f"--patch-ray-dashboard {path}: has no panel {missing[0]}, so it is not Ray's default "
            "dashboard; give default_grafana_dashboard.json"
        )
    patched = patch(document)
    if patched == document:
        return False
    try:
        replace_text(path, json.dumps(patched, indent=4))
    except OSError as error:
        raise ConfigError(
            f"--patch-ray-dashboard {path}: cannot be written ({error.strerror}); give a file of "
            "your own, or run this as the user who started Ray"
        ) from error
    return True


def patch(document: Json) -> Json:
    """The dashboard with our row first; the same document where it is there already."""
    own = _own_panels()
    theirs = [panel for panel in document["panels"] if not _is_own(panel)]
    down = 1 + height(len(OVERVIEW), WIDTH)
    down -= min((panel["gridPos"]["y"] for panel in theirs), default=0)
    links = [entry for entry in document.get("links") or [] if entry.get("tags") != [TAG]]
    made = document | {
        "panels": [*own, *(_moved(panel, down) for panel in theirs)],
        "links": [*links, link()],
    }
    if made == document:
        return document
    return made | {"version": int(document.get("version") or 0) + 1}


def _own_panels() -> list[Json]:
    ids = range(FIRST_ID + 1, FIRST_ID + 1 + len(OVERVIEW))
    panels = panels_json(OVERVIEW, RAY, ids, 1, WIDTH)
    for panel in panels:  # as Ray's schema of the JSON, which is older, names a source
        panel["datasource"] = "${datasource}"
        for target in panel["targets"]:
            del target["datasource"]
    return [row("Attune", FIRST_ID, 0), *panels]


def _is_own(panel: Json) -> bool:
    return FIRST_ID <= panel.get("id", 0) <= LAST_ID


def _moved(panel: Json, down: int) -> Json:
    """A panel, and those of a row that is folded, further down the grid."""
    moved = panel | {"gridPos": panel["gridPos"] | {"y": panel["gridPos"]["y"] + down}}
    if panel.get("panels"):
        moved["panels"] = [_moved(inner, down) for inner in panel["panels"]]
    return moved


def _ids(document: Any) -> set[int]:
    """Of all panels; empty where it is no dashboard."""
    panels = document.get("panels") if isinstance(document, dict) else None
    if not isinstance(panels, list):
        return set()
    flat = [inner for panel in panels for inner in (panel, *(panel.get("panels") or []))]
    return {panel.get("id") for panel in flat}
