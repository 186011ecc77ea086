"""The four dashboards as Grafana's JSON, of the classic layout that Grafana 12 and 13 read.

    Dashboard ─▶ rows and panels on a grid of 24 columns ─▶ queries (cluster.dashboards.promql)

Which fields are used, and what they may hold, is in `grafana.schema.yaml`.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.dashboards.panel import Dashboard, Panel, Section
from cluster.dashboards.promql import GRAFANA, Query, Scope, grown, queries

Json = dict[str, Any]

SCHEMA_VERSION = 42
"""Of the JSON, as in Grafana 12.1 and later."""
TAG = "attune"
"""By which the dashboards link to each other."""
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {
    "seconds": "s",
    "MiB": "mbytes",  # Grafana's name for 2^20 bytes
    "share": "percentunit",
}
"""Units of the table that Grafana has an id for; others stand beside the axis alone."""
ROUTINE = ("checkpoint_saved", "engine_placed")
"""Events of every run that are not marked in charts."""


def dashboard_json(dashboard: Dashboard) -> Json:
    """One dashboard as Grafana reads it; the same for the same definition."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [link()],
        "templating": {"list": _variables()},
        "annotations": {"list": [_events()]},
        "panels": _layout(dashboard.sections),
    }


def to_text(document: Json) -> str:
    """JSON as it is written to a file."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def link() -> Json:
    """To all dashboards of the tag, with what is chosen on this one."""
    return {
        "title": "Attune",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }


def row(title: str, id_: int, y: int) -> Json:
    """A heading over the panels that follow it."""
    return {
        "id": id_,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
        "panels": [],
    }


def panels_json(
    panels: Sequence[Panel], scope: Scope, ids: Sequence[int], y: int, width: int = PANEL_WIDTH
) -> list[Json]:
    """Panels side by side from row `y` of the grid on, `width` columns each."""
    per_row = COLUMNS // width
    return [
        panel_json(panel, scope, id_)
        | {
            "gridPos": {
                "h": PANEL_HEIGHT,
                "w": width,
                "x": width * (index % per_row),
                "y": y + PANEL_HEIGHT * (index // per_row),
            }
        }
        for index, (panel, id_) in enumerate(zip(panels, ids, strict=True))
    ]


def height(count: int, width: int = PANEL_WIDTH) -> int:
    """Rows of the grid that so many panels take."""
    return PANEL_HEIGHT * -(-count * width // COLUMNS)


def panel_json(panel: Panel, scope: Scope, id_: int) -> Json:
    """One panel without its place."""
    is_heatmap = any(curve.metric.kind == "histogram" for curve in panel.curves)
    asked = queries(panel, scope)
    return {
        "id": id_,
        "type": "heatmap" if is_heatmap else "timeseries",
        "title": panel.title,
        "description": panel.explanation,
        "datasource": DATASOURCE,
        "targets": [
            _target(query, chr(ord("A") + index), is_heatmap) for index, query in enumerate(asked)
        ],
        "fieldConfig": _heatmap_fields() if is_heatmap else _fields(panel, asked),
        "options": _heatmap_options() if is_heatmap else _options(),
    }


def _layout(sections: Sequence[Section]) -> list[Json]:
    made: list[Json] = []
    y = 0
    for section in sections:
        made.append(row(section.title, stable_id(section.title), y))
        ids = [stable_id(f"{section.title}/{panel.title}") for panel in section.panels]
        made += panels_json(section.panels, GRAFANA, ids, y + 1)
        y += 1 + height(len(section.panels))
    return made


def stable_id(name: str) -> int:
    """An id that stays as it is where panels come, go or change places: links may name it."""
    return 1 + zlib.crc32(name.encode()) % 1_000_000


def _target(query: Query, ref: str, is_heatmap: bool) -> Json:
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": "heatmap" if is_heatmap else "time_series",
        "editorMode": "code",
        "range": True,
        "instant": False,
    }


def _fields(panel: Panel, asked: Sequence[Query]) -> Json:
    return {
        "defaults": {
            "unit": unit(panel),
            "color": {"mode": "palette-classic"},
            "custom": {
                "drawStyle": "line",
                "lineInterpolation": "linear",
                "lineWidth": 1,
                "fillOpacity": 40 if panel.is_stacked else 0,
                "showPoints": "auto",
                "pointSize": 4,
                "spanNulls": False,
                "axisLabel": panel.unit,
                "stacking": {"group": "A", "mode": "normal" if panel.is_stacked else "none"},
            },
        },
        "overrides": _ranges(asked),
    }


def unit(panel: Panel) -> str:
    """Grafana's id of the unit that all curves of a panel have; `short` where there is none."""
    units = {"" if curve.is_rate else curve.metric.unit for curve in panel.curves}
    return UNITS.get(units.pop(), "short") if len(units) == 1 else "short"


def _ranges(asked: Sequence[Query]) -> list[Json]:
    """Edges of a shaded range: no lines, no legend, and the upper one filled down to the lower."""
    overrides = []
    low = ""
    for index, query in enumerate(asked):
        if not query.edge:
            continue
        properties: list[Json] = [
            {"id": "custom.lineWidth", "value": 0},
            {"id": "custom.showPoints", "value": "never"},
            {"id": "custom.hideFrom", "value": {"legend": True, "tooltip": False, "viz": False}},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "#8e8e8e"}},
        ]
        if query.edge == "low":
            low = query.legend
        else:
            properties += [
                {"id": "custom.fillBelowTo", "value": low},
                {"id": "custom.fillOpacity", "value": 12},
            ]
        ref = chr(ord("A") + index)
        overrides.append(
            {"matcher": {"id": "byFrameRefID", "options": ref}, "properties": properties}
        )
    return overrides


def _options() -> Json:
    return {
        "legend": {
            "displayMode": "list",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _heatmap_fields() -> Json:
    return {"defaults": {"custom": {"scaleDistribution": {"type": "linear"}}}, "overrides": []}


def _heatmap_options() -> Json:
    return {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "short"},
        "color": {
            "mode": "scheme",
            "scheme": "Blues",
            "fill": "blue",
            "scale": "linear",
            "exponent": 0.5,
            "steps": 32,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "short"},
    }


def _variables() -> list[Json]:
    anything = '{__name__=~"ray_attune_.+"}'
    of_session = '{__name__=~"ray_attune_.+", SessionName=~"$SessionName"}'
    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "refresh": 1,
            "regex": "",
            "skipUrlSync": False,
        },
        _labels("SessionName", "Ray session", anything),
        _labels("run", "Run", of_session),
    ]


def _labels(name: str, label: str, series: str) -> Json:
    """A variable that can be any of a label's values, or several; all at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({series}, {name})", "refId": name},
        "current": {"text": ["All"], "value": ["$__all"]},
        "allValue": ".+",
        "includeAll": True,
        "multi": True,
        "hide": 0,
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 2,
    }


def _events() -> Json:
    """Marks where something failed, joined, left or was replaced."""
    scope = replace(GRAFANA, matchers=(*GRAFANA.matchers, f'kind!~"{"|".join(ROUTINE)}"'))
    return {
        "name": "Events",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "orange",
        "target": {
            "refId": "Events",
            "expr": f"{grown('events/{kind}', '$__interval', scope)} > 0",
        },
        "titleFormat": "{{kind}}",
        "textFormat": "{{run}}",
    }
