"""What this machine has, and what of it would stop or slow a run: the answer of `attune doctor`.

Each family of checks has a file in `cluster/diagnosis`: functions that take readings, and `judge_*`
functions that turn readings into findings and touch nothing, so that every verdict can be tested on
any machine. Nothing heavy is imported here.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from cluster.diagnosis.accelerators import examine_accelerators
from cluster.diagnosis.access import judge_auth, judge_token
from cluster.diagnosis.findings import Finding
from cluster.diagnosis.host import examine_host
from cluster.diagnosis.network import examine_network, read_interfaces
from cluster.diagnosis.nodes import examine_nodes
from cluster.diagnosis.packages import examine_packages, read_installed
from cluster.diagnosis.storage import examine_storage
from configs.load import load_config
from configs.plan import Plan, derive
from configs.schema import RunConfig
from configs.sizes import count_parameters
from rl.folders import check_model_folder

DEMO = Path(__file__).parent.parent / "configs" / "demo" / "run.yaml"


def examine(
    config: RunConfig | None = None, environment: Mapping[str, str] | None = None
) -> list[Finding]:
    """Look at this machine and this environment, for a run of `config` or for the demo.

    Takes a few seconds, a minute where `cluster.address` names a cluster; changes nothing.
    `environment`: the variables to judge, those of this process where left out.
    """
    environment = dict(os.environ) if environment is None else environment
    installed, interfaces = read_installed(), read_interfaces()
    plan, parameters, unread = _plan(config)
    address = config.cluster.address if config else None
    names = list(interfaces.addresses)
    findings = [
        *examine_packages(installed),
        *examine_accelerators(config, installed, environment, names),
        *examine_host(config, installed, plan.host_gib),
        *examine_storage(config, parameters),
        *unread,
        judge_auth(environment.get("RAY_AUTH_MODE")),
        *judge_token(environment, Path.home(), joins=address is not None),
        *examine_network(config, environment, interfaces),
    ]
    if address and not any("does not answer" in finding.what for finding in findings):
        findings += examine_nodes(address)
    return findings


def _plan(config: RunConfig | None) -> tuple[Plan, int | None, list[Finding]]:
    """The plan of the run, its model's parameters, and what is wrong with the model's folder."""
    if config is None:
        return derive(load_config(DEMO), None, None), None, []
    try:
        model = check_model_folder(config.model.path, field="model.path")
        return derive(config, model, None), count_parameters(model), []
    except ValueError as error:
        found = Finding(level="wrong", what=str(error))
        return derive(config, None, None), None, [found]
