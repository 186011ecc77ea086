"""`attune metrics`: the list, its page, and what an installation writes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.dashboard.modules.metrics.grafana_dashboard_factory import (
    generate_default_grafana_dashboard,
)
from typer.testing import CliRunner

from cluster.cli import app
from cluster.dashboards.definition import DASHBOARDS
from cluster.dashboards.install import HEADER
from cluster.metrics.document import document
from cluster.metrics.table import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def install(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["metrics", "install", *map(str, words)])
    return done.exit_code, done.output


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


# ---- the list --------------------------------------------------------------------------------


def test_the_page_in_docs_is_the_one_the_table_makes():
    remedy = "run `python -m cluster.metrics.document > docs/metrics.md`"
    assert PAGE.read_text(encoding="utf-8") == document(), remedy


def test_the_page_says_of_each_figure_what_it_is_and_who_draws_it():
    lines = document().splitlines()
    assert sum(line.startswith("| `") for line in lines) == len(METRICS)
    assert (
        "| `engine/tokens` | `ray_attune_engine_tokens_total` | live | counter | tokens | `actor` "
        "| Response tokens sampled. | Flow: Sampling |"
    ) in lines
    assert any(
        "`ray_attune_staleness_replies` | step | histogram | replies |  |" in x for x in lines
    )
    rows = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert all(row.count("|") == 9 for row in rows)


@pytest.mark.parametrize("columns", ["120", "300"])
def test_the_list_names_every_figure_however_narrow_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = CliRunner().invoke(app, ["metrics", "list"]).output.splitlines()
    assert len(text) == len(METRICS) + 1
    for metric in METRICS:
        assert any(metric.key in line and metric.exported in line for line in text), metric.key


def test_the_list_as_json_has_labels_and_panels():
    rows = json.loads(CliRunner().invoke(app, ["metrics", "list", "--json"]).output)
    (row,) = [row for row in rows if row["key"] == "reward/{reward}/p10"]
    assert row["labels"] == ["run", "reward", "of"]
    assert row["panels"] == ["Learning: Spread of each reward"]
    assert len(rows) == len(METRICS)


# ---- what is written -------------------------------------------------------------------------


def test_an_installation_has_what_prometheus_and_grafana_read(tmp_path):
    code, said = install("--out", tmp_path)
    assert code == 0, said
    assert sorted(tree(tmp_path)) == [
        *(f"grafana/dashboards/{uid}.json" for uid in sorted(d.uid for d in DASHBOARDS)),
        "grafana/grafana.ini",
        "grafana/provisioning/alerting/attune.yaml",
        "grafana/provisioning/dashboards/attune.yaml",
        "grafana/provisioning/datasources/attune.yaml",
        "prometheus/attune-rules.yml",
        "prometheus/prometheus.yml",
    ]
    (source,) = read(tmp_path / "grafana/provisioning/datasources/attune.yaml")["datasources"]
    (provider,) = read(tmp_path / "grafana/provisioning/dashboards/attune.yaml")["providers"]
    (group,) = read(tmp_path / "grafana/provisioning/alerting/attune.yaml")["groups"]
    assert provider["options"]["path"] == str(tmp_path / "grafana/dashboards")
    assert {rule["data"][0]["datasourceUid"] for rule in group["rules"]} == {source["uid"]}
    assert f"export RAY_PROMETHEUS_NAME={source['name']}\n" in said
    scrape = read(tmp_path / "prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape == "10s"
    assert "$" not in (tmp_path / "grafana/provisioning/alerting/attune.yaml").read_text()


def test_it_may_run_any_number_of_times(tmp_path):
    install("--out", tmp_path)
    before = tree(tmp_path)
    code, said = install("--out", tmp_path)
    assert code == 0
    assert "10 files, 0 of them new or changed" in said
    assert tree(tmp_path) == before
    code, said = install("--out", tmp_path, "--head", "10.0.0.7:8265")
    assert "10 files, 1 of them new or changed" in said


def test_addresses_reach_the_files_and_the_environment_of_the_head(tmp_path):
    token = tmp_path / "token"
    token.write_text("secret-of-the-head")
    out = tmp_path / "out"
    code, said = install(
        "--out", out, "--head", "head.example:8265", "--grafana", "https://grafana.example:443/",
        "--prometheus", "http://prom.example:9090", "--token-file", token,
    )  # fmt: skip
    assert code == 0, said
    (scrape,) = read(out / "prometheus/prometheus.yml")["scrape_configs"]
    (discovery,) = scrape["http_sd_configs"]
    assert discovery["url"] == "http://head.example:8265/api/prometheus/sd"
    assert discovery["authorization"] == {"type": "Bearer", "credentials_file": str(token)}
    (source,) = read(out / "grafana/provisioning/datasources/attune.yaml")["datasources"]
    assert source["url"] == "http://prom.example:9090"
    assert "export RAY_GRAFANA_IFRAME_HOST=https://grafana.example:443\n" in said
    assert f"RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR={out}/grafana/dashboards" in said
    assert "secret-of-the-head" not in said + "".join(tree(out).values())
    assert "http_addr" not in (out / "grafana/grafana.ini").read_text()


def test_on_one_machine_grafana_listens_to_that_machine_alone(tmp_path):
    install("--out", tmp_path, "--grafana", "http://localhost:3001")
    lines = (tmp_path / "grafana/grafana.ini").read_text().splitlines()
    assert "http_addr = 127.0.0.1" in lines
    assert "http_port = 3001" in lines


def test_kubernetes_objects_are_right_and_small_enough_to_apply(tmp_path):
    code, said = install("--out", tmp_path, "--kubernetes", "--namespace", "observing")
    assert code == 0, said
    assert sorted(tree(tmp_path)) == ["grafana_dashboards.yaml", "prometheus_rule.yaml"]
    checked = CliRunner().invoke(app, ["k8s", "validate", str(tmp_path)])
    assert checked.exit_code == 0, checked.output
    maps = list(yaml.safe_load_all((tmp_path / "grafana_dashboards.yaml").read_text()))
    for made, dashboard in zip(maps, DASHBOARDS, strict=True):
        assert made["metadata"]["labels"] == {"grafana_dashboard": "1"}
        assert made["metadata"]["namespace"] == "observing"
        ((name, text),) = made["data"].items()
        assert name == f"{dashboard.uid}.json"
        assert json.loads(text)["uid"] == dashboard.uid
        assert len(json.dumps(made)) < 262_144, "kubectl apply keeps a copy in an annotation"
    rule = read(tmp_path / "prometheus_rule.yaml")
    assert rule["metadata"]["labels"] == {"release": "prometheus"}
    assert "export RAY_GRAFANA_HOST" in said
    assert "DASHBOARD_OUTPUT_DIR" not in said  # a folder of this machine


def test_rays_dashboard_is_patched_alone_or_beside_the_files(tmp_path):
    file = tmp_path / "default_grafana_dashboard.json"
    file.write_text(generate_default_grafana_dashboard()[0])
    code, said = install("--patch-ray-dashboard", file)
    assert (code, said) == (0, f"put the row Attune into {file}\n")
    code, said = install("--patch-ray-dashboard", file, "--out", tmp_path / "out")
    assert f"the row Attune is in {file}\n" in said
    assert code == 0
    assert (tmp_path / "out/prometheus/prometheus.yml").exists()


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--out: give the folder to write"),
        (["--out", "O", "--head", "head"], "--head http://head: is no address; give HOST:8265"),
        (["--out", "O", "--head", "h:port"], "--head http://h:port: is no address"),
        (
            ["--out", "O", "--grafana", "g:3000"],
            "--grafana g:3000: is no address; give http://HOST",
        ),
        (["--out", "O", "--prometheus", "ftp://p:1"], "--prometheus ftp://p:1: is no address"),
        (["--out", "O", "--token-file", "none"], "--token-file none: is no file"),
        (["--out", "O", "--kubernetes", "--namespace", "A b"], "--namespace A b: is no name"),
        (["--patch-ray-dashboard", "none.json"], "--patch-ray-dashboard none.json: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, output = install(*words)
    assert code == 2
    assert output.startswith("error: ")
    assert said in output
    assert output.count("\n") == 1
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prometheus/prometheus.yml", "global: {}\n"),
        ("grafana/dashboards/attune-flow.json", '{"uid": "other"}'),
        ("grafana/dashboards/attune-flow.json", "not JSON"),
    ],
)
def test_files_of_others_are_left_alone(tmp_path, name, text):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    code, said = install("--out", tmp_path)
    assert code == 2
    assert f"{tmp_path / name} was not made here; give another folder with --out" in said
    assert tree(tmp_path) == {name: text}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    code, said = install("--out", tmp_path / "file" / "below")
    assert code == 2
    assert re.search(r"--out .*cannot be written \(Not a directory\)", said)


def test_settings_say_who_made_them(tmp_path):
    install("--out", tmp_path)
    for name, text in tree(tmp_path).items():
        assert name.endswith(".json") or text.startswith(HEADER), name
