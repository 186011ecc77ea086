"""Settings that Prometheus and Grafana read at their start."""

from pathlib import Path
from urllib.parse import urlsplit

from cluster.dashboards.grafana import Json

DATASOURCE_NAME = "Prometheus"
"""As Ray names its source; its frames choose by it."""
DATASOURCE_UID = "attune-prometheus"
SCRAPE_S = 10
"""As often as Ray's processes export; more often costs each node a share of a core."""
DATASOURCE_FILE = "datasources/attune.yaml"
DASHBOARDS_FILE = "dashboards/attune.yaml"
ALERTS_FILE = "alerting/attune.yaml"


def prometheus_config(head: str, rules: str, token_file: Path | None = None) -> Json:
    """A whole prometheus.yml that reads all nodes of the cluster whose dashboard is at `head`.

    `head`: a URL. `rules`: file of alerts, beside it. `token_file`: holds the token of a head that
    asks for one; the nodes' own ports ask for none.
    """
    discovery: Json = {"url": f"{head}/api/prometheus/sd", "refresh_interval": "5s"}
    if token_file is not None:
        discovery["authorization"] = {"type": "Bearer", "credentials_file": str(token_file)}
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [rules],
        "scrape_configs": [
            {
                "job_name": "ray",
                "http_sd_configs": [discovery],
                "metric_relabel_configs": _fewer_labels(),
            }
        ],
    }


def _fewer_labels() -> list[Json]:
    """Labels that say nothing of a run's figures go; Ray's own panels need `Component` of Ray's."""
    own = {"source_labels": ["__name__"], "regex": "ray_attune_.*", "replacement": ""}
    return [
        {"action": "labeldrop", "regex": "otel_scope_.*"},
        *({**own, "target_label": label} for label in ("Component", "Version")),
    ]


def datasource(prometheus: str) -> Json:
    """Where Grafana finds Prometheus."""
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": DATASOURCE_NAME,
                "uid": DATASOURCE_UID,
                "type": "prometheus",
                "access": "proxy",
                "url": prometheus,
                "isDefault": True,
                # Rates are taken over four scrapes at least.
                "jsonData": {"timeInterval": f"{SCRAPE_S}s", "httpMethod": "POST"},
            }
        ],
    }


def dashboard_provider(folder: Path) -> Json:
    """Where Grafana finds dashboards; it reads changed files again."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "Attune",
                "folder": "Attune",
                "type": "file",
                "updateIntervalSeconds": 10,
                "options": {"path": str(folder)},
            }
        ],
    }


def grafana_ini(provisioning: Path, grafana: str) -> str:
    """Settings by which Ray's dashboard can show Grafana in a frame: whoever reaches it may look.

    `grafana`: its URL; where that is of this machine alone, Grafana listens nowhere else.
    """
    at = urlsplit(grafana)
    is_local = at.hostname in ("localhost", "127.0.0.1")
    listen = [f"http_port = {at.port}"] + ["http_addr = 127.0.0.1"] * is_local
    lines = [
        "[server]", *listen, "",
        "[security]", "allow_embedding = true", "",
        "[auth.anonymous]", "enabled = true", "org_role = Viewer", "",
        "[paths]", f"provisioning = {provisioning}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def head_environment(grafana: str, prometheus: str, dashboards: Path | None) -> dict[str, str]:
    """What Ray's head must find in its environment when it starts; it reads them then alone."""
    names = {
        "RAY_GRAFANA_HOST": grafana,
        "RAY_GRAFANA_IFRAME_HOST": grafana,
        "RAY_PROMETHEUS_HOST": prometheus,
        "RAY_PROMETHEUS_NAME": DATASOURCE_NAME,
    }
    if dashboards is not None:
        names["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"] = str(dashboards)
    return names
