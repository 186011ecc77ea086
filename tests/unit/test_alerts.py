"""The alerts and the files they are written to; promtool reads the rules in tests/integration."""

import re
from pathlib import Path

import pytest

from cluster.dashboards.alert_files import grafana_rules, prometheus_rule, prometheus_rules
from cluster.dashboards.alerts import ALERTS, BY_NAME, fires, table
from cluster.k8s.validate import Source, check
from cluster.metrics.table import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "dashboards.md"
NAMES = {metric.exported for metric in METRICS}


def test_the_page_in_docs_has_the_table_that_the_alerts_make():
    remedy = "put the output of `python -m cluster.dashboards.alerts` into docs/dashboards.md"
    assert table() in PAGE.read_text(encoding="utf-8"), remedy


def test_each_alert_has_a_name_of_its_own_and_says_whose_value_and_what_to_do():
    assert len(BY_NAME) == len(ALERTS)
    for alert in ALERTS:
        by = "instance" if alert.name == "AttuneHostMemory" else "run"
        assert f"{{{{ .Labels.{by} }}}}" in alert.summary, alert.name
        assert "{{ .Value" in alert.summary, alert.name
        assert alert.meaning.endswith(".")
        assert alert.remedy.endswith(".")
        assert "$" not in alert.summary + alert.meaning + alert.remedy, "Grafana would expand it"


def test_queries_read_figures_of_the_table_alone():
    for alert in ALERTS:
        read = set(re.findall(r"\bray_attune_\w+", alert.query))
        assert read <= NAMES, alert.name
        assert bool(read) == bool(alert.keys), alert.name


def test_a_query_is_apart_from_what_is_too_much():
    alert = BY_NAME["AttuneEnginesMissing"]
    assert (
        alert.query
        == "max by (run) (ray_attune_fleet_wanted) - max by (run) (ray_attune_fleet_live)"
    )
    assert alert.expr == f"({alert.query}) > 0"
    assert fires(alert) == "above 0 for 5m"
    assert fires(BY_NAME["AttuneProbeGap"]) == "above 0.5"


@pytest.mark.parametrize("alert", ALERTS, ids=list(BY_NAME))
def test_prometheus_and_grafana_are_told_the_same(alert):
    (group,) = prometheus_rules()["groups"]
    rule = next(one for one in group["rules"] if one["alert"] == alert.name)
    assert rule["expr"] == alert.expr
    (group,) = grafana_rules("uid-of-it")["groups"]
    other = next(one for one in group["rules"] if one["title"] == alert.name)
    query, threshold = other["data"]
    assert query["datasourceUid"] == "uid-of-it"
    assert query["model"]["expr"] == alert.query
    assert threshold["refId"] == other["condition"]
    assert threshold["model"]["conditions"][0]["evaluator"] == {
        "type": "gt", "params": [alert.above],
    }  # fmt: skip
    assert (other["for"], other["labels"]) == (rule["for"], rule["labels"])
    assert other["annotations"]["remedy"] == rule["annotations"]["remedy"] == alert.remedy
    # Grafana has a value for each query; ours is A.
    assert ".Values.A.Value" in other["annotations"]["summary"]


def test_grafanas_ids_are_short_enough_and_differ():
    (group,) = grafana_rules("x")["groups"]
    uids = [rule["uid"] for rule in group["rules"]]
    assert len(set(uids)) == len(ALERTS)
    assert all(len(uid) <= 40 for uid in uids)


def test_the_object_for_kubernetes_is_one_and_its_mistakes_are_found():
    document = prometheus_rule("monitoring", {"release": "prometheus"})
    assert document["spec"] == prometheus_rules()
    assert check([Source(file="r.yaml", document=document)]) == []
    (group,) = document["spec"]["groups"]
    group["rules"][0]["form"] = group["rules"][0].pop("for")
    group["interval"] = "30 s"
    found = {
        m.finding.path: m.finding.message for m in check([Source(file="r", document=document)])
    }
    assert found["spec.groups[0].rules[0].form"] == "unknown field; did you mean for?"
    assert "30 s" in found["spec.groups[0].interval"]
