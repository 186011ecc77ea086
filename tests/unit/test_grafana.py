"""The dashboards as Grafana's JSON, and the row on Ray's own dashboard."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.dashboard.modules.metrics.grafana_dashboard_factory import (
    generate_default_grafana_dashboard,
)

import cluster.dashboards
from cluster.dashboards.definition import DASHBOARDS, FLOW, LEARNING, OVERVIEW, REWARD
from cluster.dashboards.grafana import dashboard_json, panel_json, unit
from cluster.dashboards.panel import panel
from cluster.dashboards.promql import GRAFANA
from cluster.dashboards.ray_dashboard import FIRST_ID, patch, patch_file
from cluster.dashboards.write import dashboard_files
from configs.errors import ConfigError

SCHEMA = Path(cluster.dashboards.__file__).parent / "grafana.schema.yaml"
VALIDATOR = Draft202012Validator(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
MADE = [dashboard_json(dashboard) for dashboard in DASHBOARDS]


def ray_dashboard() -> dict[str, Any]:
    """As Ray writes it when a head starts."""
    return json.loads(generate_default_grafana_dashboard()[0])


def panels(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in document["panels"] if entry["type"] != "row"]


@pytest.mark.parametrize("document", MADE, ids=[made["uid"] for made in MADE])
def test_a_dashboard_has_the_form_that_grafana_reads(document):
    errors = [f"{list(e.absolute_path)}: {e.message}" for e in VALIDATOR.iter_errors(document)]
    assert errors == []


MISTAKES = {
    "typo of a field": (["panels", 1, "titel"], "x"),
    "unit that grafana does not have": (["panels", 1, "fieldConfig", "defaults", "unit"], "secs"),
    "panel of the old kind": (["panels", 1, "type"], "graph"),
    "panel without a place": (["panels", 1, "gridPos"], None),
    "panel beside the grid": (["panels", 1, "gridPos", "x"], 24),
    "query without text": (["panels", 1, "targets", 0, "expr"], ""),
    "query of one moment": (["panels", 1, "targets", 0, "instant"], True),
    "source by name": (["panels", 1, "datasource"], "Prometheus"),
    "unknown way to stack": (
        ["panels", 1, "fieldConfig", "defaults", "custom", "stacking", "mode"], "sum",
    ),
    "range filled to a number": (["panels", 2, "fieldConfig", "overrides", 1, "properties", 4], {
        "id": "custom.fillBelowTo", "value": 3,
    }),
    "override of nothing": (["panels", 2, "fieldConfig", "overrides", 0, "matcher"], {"id": "x"}),
    "uid that is too long": (["uid"], "attune-" + 40 * "x"),
    "old schema": (["schemaVersion"], 27),
    "variable without a query": (["templating", "list", 1, "query"], None),
    "typo in a variable": (["templating", "list", 2, "mutli"], True),
    "event without a query": (["annotations", "list", 0, "target"], {"refId": "A"}),
    "refresh in words": (["refresh"], "often"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_seeded_mistake_is_no_dashboard(name):
    (*way, last), value = MISTAKES[name]
    document = copy.deepcopy(MADE[0])
    node: Any = document
    for part in way:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    assert not VALIDATOR.is_valid(document)


def test_a_heatmap_that_counts_for_itself_is_no_dashboard():
    document = copy.deepcopy(next(made for made in MADE if made["uid"] == FLOW.uid))
    heatmap = next(entry for entry in document["panels"] if entry["type"] == "heatmap")
    heatmap["options"]["calculate"] = True
    assert not VALIDATOR.is_valid(document)


def test_every_panel_has_an_id_of_its_own_that_does_not_depend_on_its_place():
    for document in MADE:
        ids = [entry["id"] for entry in document["panels"]]
        assert len(ids) == len(set(ids))
    sections = tuple(replace(s, panels=s.panels[::-1]) for s in FLOW.sections[::-1])
    turned = dashboard_json(replace(FLOW, sections=sections))
    first, last = (
        {entry["title"]: entry["id"] for entry in document["panels"]}
        for document in (dashboard_json(FLOW), turned)
    )
    assert first == last  # links of people name them


def test_panels_lie_side_by_side_below_their_heading_and_none_on_another():
    for document in MADE:
        taken: set[tuple[int, int]] = set()
        for entry in document["panels"]:
            at = entry["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, entry["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_headings_and_panels_are_those_of_the_definition_in_order():
    titles = [entry["title"] for entry in MADE[0]["panels"]]
    expected: list[str] = []
    for section in LEARNING.sections:
        expected += [section.title, *(shown.title for shown in section.panels)]
    assert titles == expected
    described = {entry["title"]: entry["description"] for entry in panels(MADE[0])}
    assert described[REWARD.title] == REWARD.explanation


def test_a_range_is_filled_from_its_upper_edge_to_the_name_of_its_lower():
    made = panel_json(REWARD, GRAFANA, 1)
    low, high = made["fieldConfig"]["overrides"]
    names = {target["refId"]: target["legendFormat"] for target in made["targets"]}
    assert (low["matcher"]["options"], high["matcher"]["options"]) == ("B", "C")
    filled = {entry["id"]: entry["value"] for entry in high["properties"]}
    assert filled["custom.fillBelowTo"] == names["B"] == "combined, low"
    assert "custom.fillBelowTo" not in {entry["id"] for entry in low["properties"]}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("time/train", "time/sync"), "s"),
        (("memory/host_mib",), "mbytes"),
        (("eos_rate",), "percentunit"),
        (("entropy",), "short"),  # nats: none of Grafana's
        (("phase_seconds/{phase}",), "short"),  # a rate is seconds a second
        (("time/train", "eos_rate"), "short"),
    ],
)
def test_units_are_grafanas_where_it_has_them_and_all_curves_share_one(keys, expected):
    assert unit(panel("t", "", *((key, "x") for key in keys))) == expected


def test_dashboards_link_to_each_other_with_what_is_chosen():
    for document in MADE:
        (link,) = document["links"]
        assert set(link["tags"]) <= set(document["tags"])
        assert link["includeVars"]
        assert link["keepTime"]
        names = [variable["name"] for variable in document["templating"]["list"]]
        assert names == ["datasource", "SessionName", "run"]


def test_queries_name_no_variable_that_the_dashboard_lacks():
    known = {"datasource", "SessionName", "run", "__all", "__rate_interval", "__interval"}
    for document in MADE:
        assert set(re.findall(r"\$\{?(\w+)", json.dumps(document))) <= known


def test_the_files_are_the_same_each_time(tmp_path):
    command = [sys.executable, "-m", "cluster.dashboards.write", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dashboard_files()
    assert sorted(dashboard_files()) == [
        "attune-fleet.json", "attune-flow.json", "attune-learning.json", "attune-memory.json",
    ]  # fmt: skip


# ---- Ray's own dashboard ---------------------------------------------------------------------


def test_our_row_comes_first_and_rays_panels_keep_their_ids_below_it():
    before, after = ray_dashboard(), patch(ray_dashboard())
    own = [entry for entry in after["panels"] if entry["id"] >= FIRST_ID]
    assert after["panels"][: len(own)] == own
    assert [entry["title"] for entry in own] == ["Attune", *(shown.title for shown in OVERVIEW)]
    theirs = after["panels"][len(own) :]
    assert [entry["id"] for entry in theirs] == [entry["id"] for entry in before["panels"]]
    assert {24, 41} <= {entry["id"] for entry in theirs}
    end = max(entry["gridPos"]["y"] + entry["gridPos"]["h"] for entry in own)
    assert min(entry["gridPos"]["y"] for entry in theirs) == end
    down = {
        new["gridPos"]["y"] - old["gridPos"]["y"]
        for new, old in zip(theirs, before["panels"], strict=True)
    }
    assert down == {end}
    assert after["version"] == before["version"] + 1
    assert after["uid"] == before["uid"]


def test_our_row_names_only_what_rays_dashboard_chooses():
    own = [entry for entry in patch(ray_dashboard())["panels"] if entry["id"] >= FIRST_ID]
    names = {v["name"] for v in ray_dashboard()["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(own))) <= names | {"__rate_interval"}


def test_panels_of_a_folded_row_move_along():
    document = ray_dashboard()
    document["panels"].append(
        {
            "id": 999, "type": "row", "collapsed": True,
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": 500},
            "panels": [{"id": 998, "gridPos": {"h": 8, "w": 12, "x": 0, "y": 501}}],
        }
    )  # fmt: skip
    row = patch(document)["panels"][-1]
    assert row["panels"][0]["gridPos"]["y"] == row["gridPos"]["y"] + 1 > 501


def test_a_file_is_patched_once_and_again_after_ray_wrote_it_anew(tmp_path):
    file = tmp_path / "default_grafana_dashboard.json"
    text = generate_default_grafana_dashboard()[0]
    file.write_text(text)
    assert patch_file(file)
    once = file.read_text()
    assert not patch_file(file)
    assert file.read_text() == once
    file.write_text(text)
    assert patch_file(file)
    assert file.read_text() == once


def test_another_set_of_panels_replaces_ours(monkeypatch):
    import cluster.dashboards.ray_dashboard as module

    before = patch(ray_dashboard())
    monkeypatch.setattr(module, "OVERVIEW", OVERVIEW[:2])
    after = patch(before)
    assert after["version"] == before["version"] + 1
    monkeypatch.undo()
    assert patch(after)["panels"] == before["panels"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is no JSON"),
        ("[]", "has no panel 24"),
        ('{"panels": [{"id": 24}]}', "has no panel 41"),
        (json.dumps(MADE[0]), "not Ray's default dashboard"),
    ],
)
def test_what_is_not_rays_dashboard_is_refused_in_one_line(tmp_path, text, said):
    file = tmp_path / "d.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        patch_file(file)
    assert "\n" not in str(refused.value)
