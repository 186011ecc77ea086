"""What the Ray dashboard asks of whoever sits in its proxy slot, or stands in for Grafana.

    Metrics page    iframe /d/attune/?theme=...                     all panels, in tabs
    Overview page   iframes /d-solo/attune/...?panelId=41 and 24    reward, engines
    Job, Serve      iframes /d-solo/attune?panelId=...              a panel that says something

Which panel ids Ray's pages ask for is fixed in their build (Ray 2.60).
"""

from cluster.dashboards.definition import (
    DASHBOARDS,
    ENGINES,
    HOST_MEMORY,
    MOVED,
    OVERVIEW,
    REWARD,
    SPEED,
    STEP_TIME,
    TRUE_REWARD,
)
from cluster.dashboards.drawing import Figure
from cluster.dashboards.panel import Panel
from cluster.pages.view import RunView

UID = "attune"
PANELS: dict[str, tuple[Panel, ...]] = {
    "41": (TRUE_REWARD, REWARD),
    "24": (ENGINES,),
    "7": (TRUE_REWARD, REWARD),
    "8": (MOVED.panels[0],),
    "15": (MOVED.panels[1],),
    "20": (STEP_TIME,),
    "21": (SPEED.panels[0],),
    "22": (SPEED.panels[1],),
    "23": (HOST_MEMORY,),
}
"""Panel id -> the first of these that the run has figures for is drawn."""
HEALTH = {
    "/api/health": {"database": "ok"},
    "/api/v1/query": {"status": "success", "data": {"resultType": "vector", "result": []}},
    "/api/prometheus_health": {"result": True, "msg": "", "data": {}},
    "/api/grafana_health": {
        "result": True,
        "msg": "",
        "data": {
            # The frames' addresses begin with this: the dashboard's own origin.
            "grafanaHost": ".",
            "grafanaOrgId": "1",
            "sessionName": "attune",
            # Without a uid for `data` the tab "Ray Data" is not shown.
            "dashboardUids": {"default": UID},
            "dashboardDatasource": UID,
        },
    },
}
"""Answers that say that there is something to show."""


def panels_of(panel_id: str) -> tuple[Panel, ...]:
    """What to try for a panel id, the best first."""
    return (*PANELS.get(panel_id, ()), TRUE_REWARD, REWARD, *OVERVIEW)


def solo_figure(view: RunView, panel_id: str) -> Figure | None:
    """The panel of a slot; inside `view.opened()`. None where the run has no figures at all."""
    return next((one for panel in panels_of(panel_id) if (one := view.figure(panel))), None)


def board_uid(uid: str) -> str:
    """The dashboard that a uid names; empty for all others, which show the first one."""
    return uid if uid in {board.uid for board in DASHBOARDS} else ""
