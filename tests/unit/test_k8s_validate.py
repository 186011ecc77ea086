"""Seeded mistakes: each is caught, by the path of the field and what is wrong with it."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.k8s.crds import crd_schemas
from cluster.k8s.manifests import render
from cluster.k8s.pod_rules import quantity
from cluster.k8s.text import dump
from cluster.k8s.validate import Source, check
from configs.load import load_config
from tests.unit.k8s_mistakes import GONE, HEAD, MISTAKES

ROOT = Path(__file__).parents[2]
OVERRIDES = [
    "cluster.kubernetes.image=registry.example/attune:0.1.0",
    "model.path=/shared/model",
    "data.train=/shared/prompts.jsonl",
    "feedback.rewards.rm.path=/shared/judge",
    "cluster.run_dir=/shared/runs/first",
    "cluster.rollout.min_engines=1",
    "cluster.rollout.max_engines=6",
    "cluster.kubernetes.claim_gib=10",
    "cluster.kubernetes.queue=team-a",
    "cluster.kubernetes.redis={address: 'redis:6379', secret: redis}",
    "cluster.kubernetes.reward_service={}",
    "cluster.reward_service.max_replicas=3",
]
DOCUMENTS = [
    item.document for item in render(load_config(ROOT / "configs" / "gpu_8x.yaml", OVERRIDES))
]


def seeded(kind: str, changes: dict[str, Any]) -> list[dict]:
    """The manifests with some fields of the first document of a kind replaced or taken away."""
    documents = copy.deepcopy(DOCUMENTS)
    target = next(document for document in documents if document["kind"] == kind)
    for path, value in changes.items():
        place(target, path, value)
    return documents


def place(node: Any, path: str, value: Any) -> None:
    parts = re.findall(r"[^.\[\]]+", path)
    *way, last = [int(part) if part.isdigit() else part for part in parts]
    for key in way:
        node = node[key] if isinstance(key, int) else node.setdefault(key, {})
    if value is GONE:
        del node[last]
    elif isinstance(last, int) and last == len(node):
        node.append(value)
    else:
        node[last] = value


def found(documents: list[dict]) -> list[tuple[str, str]]:
    mistakes = check([Source(file="m.yaml", document=document) for document in documents])
    return [(mistake.finding.path, mistake.finding.message) for mistake in mistakes]


def test_without_a_mistake_there_is_no_finding():
    assert found(DOCUMENTS) == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_seeded_mistake_is_caught_and_named(name):
    kind, changes, path, said = MISTAKES[name]
    mistakes = found(seeded(kind, changes))
    assert [message for at, message in mistakes if at == path and said in message], mistakes


@pytest.mark.skipif("ATTUNE_CRDS" not in os.environ, reason="ATTUNE_CRDS names no CRDs")
def test_crds_find_what_our_schema_leaves_open():
    schemas = crd_schemas(Path(os.environ["ATTUNE_CRDS"]))
    documents = seeded("RayJob", {f"{HEAD}.template.spec.affinity": {"nodeAfinity": {}}})
    assert found(documents) == []
    mistakes = check([Source(file="m.yaml", document=document) for document in documents], schemas)
    (mistake,) = mistakes
    assert mistake.finding.path == f"{HEAD}.template.spec.affinity.nodeAfinity"
    assert "did you mean nodeAffinity?" in mistake.finding.message


CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: example.org
  names: {kind: Widget}
  versions:
  - name: v1
    served: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          apiVersion: {type: string}
          kind: {type: string}
          metadata: {type: object}
          spec:
            type: object
            required: [size, colour]
            properties:
              size: {type: integer, default: 1}
              colour: {type: string, nullable: true}
              port: {x-kubernetes-int-or-string: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {}}
"""


@pytest.mark.parametrize(
    ("spec", "finding"),
    [
        ("{colour: red, port: 80, free: {any: 1}}", None),
        ("{colour: null, port: http}", None),
        ("{size: 1}", ("spec", "colour is missing")),
        ("{colour: red, prot: 80}", ("spec.prot", "unknown field; did you mean port?")),
        ("{colour: red, port: [80]}", ("spec.port", "is [80], not an integer or string")),
    ],
)
def test_a_crd_is_read_as_the_api_server_means_it(tmp_path, spec, finding):
    file = tmp_path / "crd.yaml"
    file.write_text(CRD)
    text = f"apiVersion: example.org/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {spec}\n"
    source = Source(file="w.yaml", document=yaml.safe_load(text))
    mistakes = check([source], crd_schemas(file))
    assert [(m.finding.path, m.finding.message) for m in mistakes] == ([finding] if finding else [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: [", "m.yaml:1:"),
        ("a: 1\na: 2\n", "m.yaml:2: a is given twice"),
        ("", "holds no manifest"),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: t}\nstringData: {auth_token: abc}\n",
            "Secret t: stringData.auth_token: has a value",
        ),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n", "is not a kind"),
    ],
)
def test_validate_says_in_one_line_what_is_wrong_and_exits_with_2(tmp_path, text, said):
    file = tmp_path / "m.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["k8s", "validate", str(file)])
    assert result.exit_code == 2
    assert said in result.output


def test_validate_names_file_object_and_field(tmp_path):
    job = next(d for d in seeded("RayJob", {"spec.backofLimit": 1}) if d["kind"] == "RayJob")
    file = tmp_path / "job.yaml"
    file.write_text(dump(job))
    result = CliRunner().invoke(app, ["k8s", "validate", str(file)])
    assert result.exit_code == 2
    line = f"{file}: RayJob first: spec.backofLimit: unknown field; did you mean backoffLimit?\n"
    assert line in result.output


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2Gi", 2**31), ("1.5k", 1500), ("1e3", 1000), (4, 4)]
)
def test_quantities_are_numbers(text, number):
    assert quantity(text) == number
