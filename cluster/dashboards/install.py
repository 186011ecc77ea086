"""What `attune metrics install` writes: files for Prometheus and Grafana, or for Kubernetes.

    OUT/prometheus/              prometheus.yml, attune-rules.yml
    OUT/grafana/                 grafana.ini, dashboards/*.json
    OUT/grafana/provisioning/    datasources/, dashboards/, alerting/

With `--kubernetes` instead: OUT/grafana_dashboards.yaml, OUT/prometheus_rule.yaml.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.dashboards.alert_files import grafana_rules, prometheus_rule, prometheus_rules
from cluster.dashboards.grafana import Json
from cluster.dashboards.provisioning import (
    ALERTS_FILE,
    DASHBOARDS_FILE,
    DATASOURCE_FILE,
    DATASOURCE_UID,
    dashboard_provider,
    datasource,
    grafana_ini,
    head_environment,
    prometheus_config,
)
from cluster.dashboards.write import dashboard_files
from cluster.files import replace_text
from cluster.k8s.text import dump, dump_all
from configs.errors import ConfigError
from configs.kubernetes import NAME_PATTERN, KubernetesConfig

HEADER = "# Made by `attune metrics install`; give it other options and run it again.\n"
RULES = "attune-rules.yml"
SIDECAR = {"grafana_dashboard": "1"}
"""Label by which the sidecar of Grafana's Helm chart finds dashboards."""
RAY_DASHBOARD = "default_grafana_dashboard.json"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where everything is, as URLs without a slash at their end."""

    head: str
    """Of Ray's dashboard, as Prometheus reaches it."""
    grafana: str
    """As both the head and the browser reach it."""
    prometheus: str
    """As both Grafana and the head reach it."""
    token_file: Path | None = None
    """Holds the token of a head that asks for one."""


def places(head: str, grafana: str, prometheus: str, token_file: Path | None = None) -> Places:
    """From what was given on the command line; raises `ConfigError` for what is no address."""
    if token_file is not None and not token_file.is_file():
        raise ConfigError(
            f"--token-file {token_file}: is no file; write the head's token into one that only "
            "Prometheus can read"
        )
    return Places(
        head=_url("--head", head if "://" in head else f"http://{head}"),
        grafana=_url("--grafana", grafana),
        prometheus=_url("--prometheus", prometheus),
        token_file=token_file.absolute() if token_file else None,
    )


def files_for_programs(out: Path, at: Places) -> dict[str, str]:
    """Path below `out` -> text, for a Prometheus and a Grafana that read files."""
    grafana = out.absolute() / "grafana"
    settings = {
        f"prometheus/{RULES}": prometheus_rules(),
        "prometheus/prometheus.yml": prometheus_config(at.head, RULES, at.token_file),
        f"grafana/provisioning/{DATASOURCE_FILE}": datasource(at.prometheus),
        f"grafana/provisioning/{DASHBOARDS_FILE}": dashboard_provider(grafana / "dashboards"),
        f"grafana/provisioning/{ALERTS_FILE}": grafana_rules(DATASOURCE_UID),
    }
    return {
        **{name: HEADER + dump(document) for name, document in settings.items()},
        "grafana/grafana.ini": HEADER + grafana_ini(grafana / "provisioning", at.grafana),
        **{f"grafana/dashboards/{name}": text for name, text in dashboard_files().items()},
    }


def files_for_kubernetes(namespace: str) -> dict[str, str]:
    """Path -> text, for a cluster with Grafana's sidecar and the Prometheus operator."""
    if not re.fullmatch(NAME_PATTERN, namespace):
        raise ConfigError(
            f"--namespace {namespace}: is no name of Kubernetes; give small letters, digits and -"
        )
    maps = [_config_map(name, text, namespace) for name, text in dashboard_files().items()]
    labels = KubernetesConfig.model_fields["monitor_labels"].get_default(call_default_factory=True)
    return {
        "grafana_dashboards.yaml": HEADER + dump_all(maps),
        "prometheus_rule.yaml": HEADER + dump(prometheus_rule(namespace, labels)),
    }


def _config_map(name: str, text: str, namespace: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name.removesuffix(".json"),
            "namespace": namespace,
            "labels": dict(SIDECAR),
        },
        "data": {name: text},
    }


def write(out: Path, files: dict[str, str]) -> int:
    """Write what differs; how many files that were. Refuses to replace what was not made here."""
    try:
        changed = {out / name: text for name, text in files.items() if _present(out / name) != text}
        for path in changed:
            if not _is_ours(path):
                raise ConfigError(f"{path} was not made here; give another folder with --out")
        for path, text in changed.items():
            replace_text(path, text)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: cannot be written ({error.strerror}); give another folder"
        ) from error
    return len(changed)


def _present(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None


def _is_ours(path: Path) -> bool:
    """Whether a file may be replaced: it is not there, or an earlier installation wrote it."""
    text = _present(path)
    if text is None or path.suffix != ".json":
        return text is None or text.startswith(HEADER)
    try:
        return json.loads(text)["uid"] == path.stem
    except (ValueError, KeyError, TypeError):
        return False


def next_steps(out: Path, at: Places) -> str:
    """What is left to do once the files are there."""
    base = out.absolute()
    dashboards = base / "grafana" / "dashboards"
    listen = urlsplit(at.prometheus).netloc
    return f"""\
1. Start both, if they do not run yet:
   prometheus --config.file={base}/prometheus/prometheus.yml \\
       --storage.tsdb.path={base}/prometheus/data --web.listen-address={listen}
   grafana server --homepath /usr/share/grafana --config {base}/grafana/grafana.ini
2. Ray's head reads these when it starts. Set them before `ray start --head`, or before
   `attune run`, where that starts a Ray of its own:
{_exports(head_environment(at.grafana, at.prometheus, dashboards))}
3. Open {at.grafana}, folder Attune.
4. To have the most important panels on Ray's own Metrics page, after each start of the head:
   attune metrics install --patch-ray-dashboard {dashboards / RAY_DASHBOARD}"""


def next_steps_kubernetes(out: Path, at: Places) -> str:
    """The same for Kubernetes."""
    return f"""\
1. kubectl apply -f {out}
2. A run's pods are scraped by the PodMonitors that `attune k8s render` writes.
3. To have Grafana on Ray's own Metrics page, give the head's container these variables:
{_exports(head_environment(at.grafana, at.prometheus, None))}"""


def _exports(names: dict[str, str]) -> str:
    return "\n".join(f"   export {name}={value}" for name, value in names.items())


def _url(option: str, given: str) -> str:
    try:
        parts = urlsplit(given)
        is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port is not None
    except ValueError:
        is_right = False
    if not is_right:
        form = "HOST:8265" if option == "--head" else "http://HOST:PORT"
        raise ConfigError(f"{option} {given}: is no address; give {form}")
    return given.rstrip("/")
