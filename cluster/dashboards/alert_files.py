"""The alerts as files: rules of Prometheus, rules of Grafana, a PrometheusRule for Kubernetes."""

from collections.abc import Mapping

from cluster.dashboards.alerts import ALERTS, Alert
from cluster.dashboards.grafana import TAG, Json

GROUP = TAG
EVERY = "30s"
"""How often rules are looked at."""


def prometheus_rules() -> Json:
    """A rule file of Prometheus."""
    return {
        "groups": [
            {"name": GROUP, "interval": EVERY, "rules": [_prometheus(alert) for alert in ALERTS]}
        ]
    }


def prometheus_rule(namespace: str, labels: Mapping[str, str]) -> Json:
    """The same as an object of the Prometheus operator, which finds it by its labels."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "attune-alerts", "namespace": namespace, "labels": dict(labels)},
        "spec": prometheus_rules(),
    }


def grafana_rules(datasource: str) -> Json:
    """Rules that Grafana provisions and evaluates itself, against the source of that uid."""
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": GROUP,
                "folder": "Attune",
                "interval": EVERY,
                "rules": [_grafana(alert, datasource) for alert in ALERTS],
            }
        ],
    }


def _annotations(alert: Alert) -> dict[str, str]:
    return {
        "summary": alert.summary,
        "description": alert.meaning,
        "remedy": alert.remedy,
    }


def _prometheus(alert: Alert) -> Json:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": _annotations(alert),
    }


def _grafana(alert: Alert, datasource: str) -> Json:
    """Query A as it is, and B which says whether it is above."""
    # Templates of Grafana name the value by its query; those of Prometheus have one only.
    annotations = {
        name: text.replace("{{ .Value", "{{ .Values.A.Value")
        for name, text in _annotations(alert).items()
    }
    return {
        "uid": alert.name.lower(),
        "title": alert.name,
        "condition": "B",
        "for": alert.lasting,
        "noDataState": "OK",  # a run that has no such figure, or no run
        "execErrState": "Error",
        "labels": {"severity": alert.severity},
        "annotations": annotations,
        "data": [
            {
                "refId": "A",
                "relativeTimeRange": {"from": 600, "to": 0},
                "datasourceUid": datasource,
                "model": {"refId": "A", "expr": alert.query, "instant": True, "range": False},
            },
            {
                "refId": "B",
                "datasourceUid": "__expr__",
                "model": {
                    "refId": "B",
                    "type": "threshold",
                    "expression": "A",
                    "conditions": [{"evaluator": {"type": "gt", "params": [alert.above]}}],
                },
            },
        ],
    }
