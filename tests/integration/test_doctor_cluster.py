"""`attune doctor` on a running cluster: a second driver that asks every node and leaves."""

import json

import pytest
import ray
from typer.testing import CliRunner

from cluster.cli import app
from cluster.diagnosis.nodes import examine_nodes
from configs.load import to_yaml
from tests.integration.loop import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture
def address(ray_cluster: None) -> str:
    return ray.get_runtime_context().gcs_address


def test_the_nodes_of_a_healthy_cluster_have_nothing_wrong(address: str) -> None:
    findings = examine_nodes(address)
    lines = [finding.line() for finding in findings]
    assert lines[0] == f"ok     joined cluster {address}: 1 nodes"
    assert any("clock" in line for line in lines)
    assert not [line for line in lines if line.startswith("wrong")]


def test_the_command_looks_at_the_cluster_that_the_run_names(
    address: str, world_model, world_prompts, tmp_path
) -> None:
    config = tiny_run(world_model, world_prompts, tmp_path / "run", f"cluster.address={address}")
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "run.yaml"), "--json"])
    assert result.exit_code in (0, 1), result.output
    told = [finding["what"] for finding in json.loads(result.stdout)]
    assert f"cluster.address {address} answers" in told
    assert f"joined cluster {address}: 1 nodes" in told
