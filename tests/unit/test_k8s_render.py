"""A run's YAML becomes manifests that say each number once, and are right."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.k8s.cli import start_command
from cluster.k8s.crds import crd_schemas
from cluster.k8s.groups import gpus_for, run_groups
from cluster.k8s.manifests import render
from cluster.k8s.text import dump, dump_all
from cluster.k8s.validate import Source, check
from configs.errors import ConfigError
from configs.load import load_config, to_yaml

ROOT = Path(__file__).parents[2]
RLOO, GPU, SFT = (ROOT / "configs" / name for name in ("rloo.yaml", "gpu_8x.yaml", "sft.yaml"))

BASE = [
    "cluster.kubernetes.image=registry.example/attune:0.1.0",
    "model.path=/shared/model",
    "data.train=/shared/prompts.jsonl",
    "cluster.run_dir=/shared/runs/first",
]
ONLINE = [*BASE, "feedback.rewards.rm.path=/shared/judge"]
ELASTIC = [*ONLINE, "cluster.rollout.min_engines=1", "cluster.rollout.max_engines=6"]
K8S = "cluster.kubernetes"
SPOT = [
    f'{K8S}.rollout.tolerations={{cloud.google.com/gke-spot: "true", nvidia.com/gpu: ""}}',
    f"{K8S}.rollout.node_selector={{cloud.google.com/gke-spot: 'true'}}",
]

SETTINGS = {
    "plain": (RLOO, ONLINE),
    "gpus": (GPU, ONLINE),
    "elastic engines": (RLOO, ELASTIC),
    "elastic learner": (
        GPU,
        [*ONLINE, "cluster.learner.min_workers=2", f"{K8S}.learner.per_pod=2"],
    ),
    "spot with fallback": (GPU, [*ELASTIC, *SPOT, f"{K8S}.rollout.fallback={{}}"]),
    "cluster that stays": (RLOO, [*ELASTIC, f"{K8S}.workload=cluster"]),
    "queue": (RLOO, [*ONLINE, f"{K8S}.queue=team-a", f"{K8S}.queue_priority=high"]),
    "queue, elastic": (RLOO, [*ELASTIC, f"{K8S}.queue=team-a"]),
    "redis": (GPU, [*ONLINE, f"{K8S}.redis={{address: 'redis:6379', secret: redis}}"]),
    "reward service": (
        RLOO,
        [
            *ONLINE,
            "cluster.reward_service.max_replicas=4",
            f"{K8S}.reward_service={{per_pod: 2, clients: [evaluation]}}",
        ],
    ),
    "claim and accounts": (
        RLOO,
        [
            *ONLINE,
            f"{K8S}.claim_gib=500",
            f"{K8S}.storage_class=nfs",
            f"{K8S}.service_account=trainer",
            f"{K8S}.pull_secret=registry",
            f"{K8S}.deadline_s=86400",
            f"{K8S}.head.priority_class=high",
        ],
    ),
    "offline": (SFT, BASE),
}


def manifests(name: str, *more: str) -> dict[str, list[dict]]:
    """Documents of a setting by kind."""
    file, overrides = SETTINGS[name]
    made: dict[str, list[dict]] = {}
    for item in render(load_config(file, [*overrides, *more])):
        made.setdefault(item.document["kind"], []).append(item.document)
    return made


def groups(name: str, *more: str) -> dict[str, dict]:
    (job,) = manifests(name, *more)["RayJob"]
    specs = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return {group["groupName"]: group for group in specs}


def pods(group: dict) -> tuple[int, int, int]:
    return group["minReplicas"], group["replicas"], group["maxReplicas"]


def limits(group: dict) -> dict[str, str]:
    return group["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_rendering_is_right(name, tmp_path):
    file, overrides = SETTINGS[name]
    made = render(load_config(file, overrides))
    # From text, as kubectl will read it.
    documents = list(yaml.safe_load_all(dump_all(item.document for item in made)))
    assert documents == [item.document for item in made]
    assert [
        mistake.line() for mistake in check([Source(file="x", document=d) for d in documents])
    ] == []


@pytest.mark.skipif("ATTUNE_CRDS" not in os.environ, reason="ATTUNE_CRDS names no CRDs")
def test_every_rendering_passes_the_custom_resource_definitions():
    schemas = crd_schemas(Path(os.environ["ATTUNE_CRDS"]))
    assert {"ray.io/v1 RayJob", "ray.io/v1 RayCluster", "ray.io/v1 RayService"} <= schemas.keys()
    count = 0
    for name, (file, overrides) in SETTINGS.items():
        made = render(load_config(file, overrides))
        sources = [Source(file=name, document=item.document) for item in made]
        assert [mistake.line() for mistake in check(sources, schemas)] == []
        count += len(made)
    print(f"\n{count} manifests of {len(SETTINGS)} kinds of settings, {len(schemas)} kinds of CRDs")


def test_pods_follow_the_numbers_of_the_run():
    by_name = groups("gpus")
    assert list(by_name) == ["learner", "rollout", "scoring"]
    # 4 ranks of 4 CPUs and a GPU; 4 engines of 4 CPUs and 0.8 GPU; a reward and a reference of
    # half a CPU and 0.2 GPU each, which share one.
    assert [pods(group) for group in by_name.values()] == [(4, 4, 4), (4, 4, 4), (1, 1, 1)]
    assert limits(by_name["learner"]) == {"cpu": "4", "memory": "16384Mi", "nvidia.com/gpu": "1"}
    assert limits(by_name["rollout"])["nvidia.com/gpu"] == "1"
    assert limits(by_name["scoring"]) == {"cpu": "1", "memory": "16384Mi", "nvidia.com/gpu": "1"}

    more = groups("gpus", "cluster.learner.num_workers=5", f"{K8S}.learner.per_pod=2")
    assert pods(more["learner"]) == (3, 3, 3)
    assert limits(more["learner"])["cpu"] == "8"
    assert limits(more["learner"])["nvidia.com/gpu"] == "2"


def test_elastic_groups_get_the_bounds_of_the_run_and_an_autoscaler():
    assert pods(groups("elastic engines")["rollout"]) == (1, 1, 6)
    assert pods(groups("elastic engines", f"{K8S}.rollout.per_pod=4")["rollout"]) == (1, 1, 2)
    assert pods(groups("elastic learner")["learner"]) == (1, 2, 2)
    for name, is_elastic in (("plain", False), ("elastic engines", True)):
        spec = manifests(name)["RayJob"][0]["spec"]["rayClusterSpec"]
        assert spec["enableInTreeAutoscaling"] is is_elastic
        assert ("autoscalerOptions" in spec) is is_elastic


def test_spot_pods_come_first_and_drain_and_others_stand_in():
    by_name = groups("spot with fallback")
    spot, other = by_name["rollout-spot"], by_name["rollout-fallback"]
    assert spot["priority"] > other["priority"]
    assert spot["labels"] == {"role": "rollout", "ray.io/market-type": "spot"}
    assert other["labels"] == {"role": "rollout", "ray.io/market-type": "on-demand"}
    assert pods(spot), pods(other) == ((0, 4, 6), (0, 0, 6))
    spec = spot["template"]["spec"]
    assert spec["tolerations"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"},
        {"key": "nvidia.com/gpu", "operator": "Exists"},
    ]
    command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["attune", "k8s", "drain", "--deadline-s", "60"]
    assert spec["terminationGracePeriodSeconds"] > 60
    assert "lifecycle" not in by_name["learner"]["template"]["spec"]["containers"][0]


def test_the_head_has_no_work_and_the_job_goes_on_in_a_new_cluster():
    (job,) = manifests("plain")["RayJob"]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert job["spec"]["backoffLimit"] == 3
    assert job["spec"]["entrypoint"] == "attune k8s start /etc/attune/run.yaml"


def test_the_dashboard_of_the_head_is_told_where_the_pages_of_its_run_are():
    made = manifests("plain")
    head = made["RayJob"][0]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["proxy-server-url"] == "http://127.0.0.1:8299"
    run = yaml.safe_load(made["ConfigMap"][0]["data"]["run.yaml"])
    assert run["cluster"]["metrics"]["pages_port"] == 8299
    unseen = load_config(RLOO, [*ONLINE, "cluster.metrics.enabled=false"])
    documents = {one.document["kind"]: one.document for one in render(unseen)}
    head = documents["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert "proxy-server-url" not in head["rayStartParams"]


def test_the_pods_read_the_run_with_its_roles_on_their_own_nodes(tmp_path):
    made = manifests("gpus")
    file = tmp_path / "run.yaml"
    file.write_text(made["ConfigMap"][0]["data"]["run.yaml"])
    config = load_config(file)
    assert config.cluster.address == "auto"
    by_name = groups("gpus")
    for role, group in (("learner", "learner"), ("rollout", "rollout"), ("reward", "scoring")):
        labels = getattr(config.cluster, role).labels
        assert labels
        assert labels.items() <= by_name[group]["labels"].items()


def test_labels_of_the_run_become_those_of_the_nodes():
    group = groups("plain", "cluster.rollout.labels={accelerator: l4}")["rollout"]
    assert group["labels"] == {"accelerator": "l4", "ray.io/market-type": "spot"}


def test_offline_runs_need_learners_alone():
    assert list(groups("offline")) == ["learner"]


def test_tokens_are_referred_to_and_never_written():
    for name in SETTINGS:
        file, overrides = SETTINGS[name]
        made = render(load_config(file, overrides))
        assert "Secret" not in [item.document["kind"] for item in made]
    (service,) = manifests("reward service")["RayService"]
    assert service["spec"]["rayClusterConfig"]["authOptions"]["secretName"] == "attune-tokens"
    env = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"][
        "containers"
    ][0]["env"]
    (token,) = [entry for entry in env if entry["name"] == "ATTUNE_REWARD_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["key"] == "reward_token"


def test_the_reward_service_serves_the_application_with_the_runs_config():
    (service,) = manifests("reward service")["RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "cluster.serve.app:build"
    assert application["args"] == {
        "config": "/etc/attune/run.yaml",
        "overrides": ["feedback.service=null"],
    }
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    # 1 to 4 replicas of half a CPU, 2 to a pod.
    assert pods(group) == (1, 1, 2)
    assert limits(group)["cpu"] == "1"


def test_a_run_whose_rewards_are_asked_elsewhere_has_pods_for_references_alone():
    by_name = groups(
        "plain",
        f"{K8S}.scoring.per_pod=1",
        "feedback.service=http://first-rewards-serve-svc:8000",
    )
    assert pods(by_name["scoring"]) == (1, 1, 1)
    assert pods(groups("plain", f"{K8S}.scoring.per_pod=1")["scoring"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.train=prompts.jsonl"], "data.train=prompts.jsonl is not in the pods"),
        (["cluster.run_dir=/shared/../runs"], "cluster.run_dir=/shared/../runs is not in the pods"),
        (["feedback.rewards.rm.path=/home/me/rm"], "feedback.rewards.rm.path=/home/me/rm"),
        (["cluster.run_dir=/shared/runs/1st"], "give cluster.kubernetes.name=NAME"),
        ([f"{K8S}.image=attune"], "cluster.kubernetes.image"),
        ([f"{K8S}=null"], "give at least cluster.kubernetes.image=REGISTRY/NAME:TAG"),
        (
            ["cluster.reward_service.token_file=/etc/token"],
            "cluster.reward_service.token_file=/etc/token is not in the pods",
        ),
        ([f"{K8S}.rollout.per_pods=2"], "did you mean cluster.kubernetes.rollout.per_pod?"),
    ],
)
def test_settings_that_pods_cannot_have_are_refused_by_name(overrides, said):
    with pytest.raises(ConfigError) as error:
        render(load_config(RLOO, [*ONLINE, *overrides]))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("shares", "gpus"),
    [
        ([], 0),
        ([0, 0], 0),
        ([1, 1], 2),
        ([2], 2),
        ([0.8, 0.8], 2),
        ([0.2, 0.2], 1),
        ([0.8, 0.2, 0.5], 2),  # 0.8 + 0.2 fill one, 0.5 has another
        ([0.6, 0.6, 0.6], 3),
    ],
)
def test_no_actor_is_split_over_two_gpus(shares, gpus):
    assert gpus_for(shares) == gpus


def test_a_second_policy_that_samples_has_a_pod_of_its_own():
    config = load_config(RLOO, [*ONLINE, "algorithm.name=xpo", "algorithm.kl.coef=0"])
    by_name = {group.name: group for group in run_groups(config)}
    assert by_name["rollout"].most == config.cluster.rollout.num_engines + 1


@pytest.mark.parametrize("text", ["yes", "on", "1e3", "0o17", "010", "1:30", "null", "~", "a: b"])
def test_texts_stay_texts_for_kubectl(text):
    # kubectl reads YAML 1.1 with some of 1.2: a bare `yes` or 1e3 would change its type.
    written = dump({"value": text})
    assert written in (f"value: '{text}'\n", f'value: "{text}"\n')


def test_render_writes_files_that_validate_accepts(tmp_path):
    run = CliRunner()
    out = tmp_path / "k8s"
    arguments = ["k8s", "render", str(GPU), *SETTINGS["spot with fallback"][1]]
    first = run.invoke(app, [*arguments, "--out", str(out)])
    assert first.exit_code == 0, first.output
    assert (out / "ray_job.yaml").exists()
    second = run.invoke(app, [*arguments, f"{K8S}.workload=cluster", "--out", str(out)])
    assert second.exit_code == 0
    # What is no longer part of the run must not be applied with the rest of the folder.
    assert not (out / "ray_job.yaml").exists()
    checked = run.invoke(app, ["k8s", "validate", str(out)])
    assert checked.exit_code == 0, checked.output
    assert checked.output == "5 manifests in 4 files are right\n"


def test_render_leaves_other_files_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: true\n")
    arguments = ["k8s", "render", str(RLOO), *ONLINE, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "was not made here" in result.output
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"


def test_the_secret_has_new_tokens_each_time():
    arguments = ["k8s", "secret", str(RLOO), *ONLINE]
    made = [yaml.safe_load(CliRunner().invoke(app, arguments).output) for _ in range(2)]
    assert made[0]["metadata"] == {"name": "attune-tokens", "namespace": "attune"}
    values = {value for document in made for value in document["stringData"].values()}
    assert len(values) == 4
    assert min(map(len, values)) == 64


def test_a_job_that_is_started_again_goes_on(tmp_path):
    folder = tmp_path / "run"
    for recipe, command in ((RLOO, "run"), (SFT, "sft")):
        config = load_config(recipe, [*BASE, f"cluster.run_dir={folder}"])
        assert start_command(Path("run.yaml"), config) == [command, "run.yaml"]
    folder.mkdir()
    (folder / "config.yaml").touch()
    assert start_command(Path("run.yaml"), config) == ["sft", "run.yaml", "--resume"]


def test_start_becomes_the_command(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        to_yaml(load_config(SFT, ["model.path=/none", f"cluster.run_dir={tmp_path}/r"]))
    )
    attune = Path(sys.executable).with_name("attune")
    result = subprocess.run(
        [sys.executable, str(attune), "k8s", "start", str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    # The words and the exit code are those of `attune sft`.
    assert result.returncode == 2
    assert "error: model.path: /none" in result.stderr


def test_the_example_in_the_docs_renders(tmp_path):
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    block = textwrap.dedent(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    file = tmp_path / "first.yaml"
    file.write_text(block.replace("extends: ", f"extends: {ROOT}/configs/"))
    made = render(load_config(file))
    assert [item.file for item in made if item.document["kind"] == "RayJob"] == ["ray_job.yaml"]
    files = set(re.findall(r"^\| `(\w+\.yaml)`", text, re.MULTILINE))
    assert {item.file for item in made} <= files


def test_the_image_holds_what_a_run_reads():
    text = (ROOT / "cluster" / "k8s" / "Dockerfile").read_text()
    copied = [
        word for line in text.splitlines() if line.startswith("COPY") for word in line.split()[1:-1]
    ]
    ignore = (ROOT / "cluster" / "k8s" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {"runtime_env.yaml", "configs", "rl", "actors", "cluster", "locks"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignore
    for extra in ("cpu", "gpu"):
        assert (ROOT / "locks" / f"{extra}.txt").exists()
