"""Mistakes in manifests: kind of the document, changes by path, path of the finding, its words."""

from typing import Any

CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
LEARNER, ROLLOUT = f"{CLUSTER}.workerGroupSpecs[0]", f"{CLUSTER}.workerGroupSpecs[1]"
GONE = object()
"""In place of a value: the field is taken away."""

ENV = "template.spec.containers[0].env"
MISTAKES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # Fields: typos, types, choices.
    "typo in a group": (
        "RayJob",
        {f"{ROLLOUT}.minReplica": 1},
        f"{ROLLOUT}.minReplica",
        "minReplicas?",
    ),
    "typo in a job": (
        "RayJob",
        {"spec.backofLimit": 1},
        "spec.backofLimit",
        "did you mean backoffLimit?",
    ),
    "typo in a pod": (
        "RayJob",
        {f"{LEARNER}.template.spec.toleration": []},
        f"{LEARNER}.template.spec.toleration",
        "did you mean tolerations?",
    ),
    "typo of a choice": (
        "RayJob",
        {f"{CLUSTER}.autoscalerOptions.upscalingMode": "Agressive"},
        f"{CLUSTER}.autoscalerOptions.upscalingMode",
        "did you mean Aggressive?",
    ),
    "typo of a kind": ("RayJob", {"kind": "RayJbo"}, "kind", "did you mean ray.io/v1 RayJob?"),
    "old version": ("RayJob", {"apiVersion": "ray.io/v1alpha"}, "kind", "ray.io/v1 RayJob?"),
    "number for text": (
        "RayJob",
        {f"{HEAD}.rayStartParams.num-cpus": 0},
        f"{HEAD}.rayStartParams.num-cpus",
        'write "0" in quotes',
    ),
    "text for a number": (
        "RayJob",
        {f"{ROLLOUT}.maxReplicas": "6"},
        f"{ROLLOUT}.maxReplicas",
        "not an integer",
    ),
    "missing field": (
        "RayJob",
        {f"{ROLLOUT}.groupName": GONE},
        ROLLOUT,
        "groupName is missing",
    ),
    "quantity": (
        "RayJob",
        {f"{LEARNER}.template.spec.containers[0].resources.limits.memory": "16GB"},
        f"{LEARNER}.template.spec.containers[0].resources.limits.memory",
        "is '16GB'",
    ),
    "label": (
        "RayJob",
        {f"{ROLLOUT}.labels.pool": "a b"},
        f"{ROLLOUT}.labels.pool",
        "is 'a b'",
    ),
    "claim without size": (
        "PersistentVolumeClaim",
        {"spec.resources.requests": {}},
        "spec.resources.requests",
        "storage is missing",
    ),
    "typo in a policy": (
        "NetworkPolicy",
        {"spec.ingres": []},
        "spec.ingres",
        "did you mean ingress?",
    ),
    "typo in a monitor": (
        "PodMonitor",
        {"spec.podMetricsEndpoint": []},
        "spec.podMetricsEndpoint",
        "did you mean podMetricsEndpoints?",
    ),
    # The autoscaler.
    "restart policy of the head": (
        "RayJob",
        {f"{HEAD}.template.spec.restartPolicy": "Always"},
        f"{HEAD}.template.spec.restartPolicy",
        "is Always; autoscaler v2",
    ),
    "restart policy of workers": (
        "RayJob",
        {f"{ROLLOUT}.template.spec.restartPolicy": "OnFailure"},
        f"{ROLLOUT}.template.spec.restartPolicy",
        "is OnFailure",
    ),
    "autoscaler version": (
        "RayJob",
        {f"{CLUSTER}.autoscalerOptions.version": "v1", f"{ROLLOUT}.priority": GONE},
        f"{CLUSTER}.autoscalerOptions.version",
        "is v1; v2 is needed",
    ),
    "autoscaler options alone": (
        "RayJob",
        {f"{CLUSTER}.enableInTreeAutoscaling": False},
        f"{CLUSTER}.autoscalerOptions",
        "no effect without enableInTreeAutoscaling",
    ),
    "bounds without autoscaler": (
        "RayJob",
        {f"{CLUSTER}.enableInTreeAutoscaling": False},
        f"{ROLLOUT}.maxReplicas",
        "enableInTreeAutoscaling is not true",
    ),
    "autoscaler by variable": (
        "RayJob",
        {f"{HEAD}.{ENV}[2]": {"name": "RAY_enable_autoscaler_v2", "value": "1"}},
        f"{HEAD}.{ENV}",
        "set by KubeRay",
    ),
    "priority without v2": (
        "RayJob",
        {f"{CLUSTER}.autoscalerOptions.version": "v1"},
        f"{ROLLOUT}.priority",
        "autoscaler v2 alone",
    ),
    "least above most": (
        "RayJob",
        {f"{ROLLOUT}.minReplicas": 7},
        f"{ROLLOUT}.minReplicas",
        "above maxReplicas 6",
    ),
    "start outside bounds": (
        "RayJob",
        {f"{ROLLOUT}.replicas": 8},
        f"{ROLLOUT}.replicas",
        "is 8, outside",
    ),
    "same name twice": (
        "RayJob",
        {f"{ROLLOUT}.groupName": "learner"},
        f"{ROLLOUT}.groupName",
        "another group",
    ),
    # Head, labels, tokens, versions.
    "head with work": (
        "RayJob",
        {f"{HEAD}.rayStartParams.num-cpus": GONE},
        f"{HEAD}.rayStartParams.num-cpus",
        "actors run on the head",
    ),
    "labels twice": (
        "RayJob",
        {f"{ROLLOUT}.rayStartParams.labels": "role=rollout"},
        f"{ROLLOUT}.rayStartParams.labels",
        "`labels` (which is there as well)",
    ),
    "resources twice": (
        "RayJob",
        {f"{ROLLOUT}.resources": {"CPU": "4"}, f"{ROLLOUT}.rayStartParams.num-cpus": "4"},
        f"{ROLLOUT}.resources",
        "keep one",
    ),
    "no tokens": (
        "RayJob",
        {f"{CLUSTER}.authOptions": GONE},
        f"{CLUSTER}.authOptions.mode",
        "anyone",
    ),
    "no token secret": (
        "RayJob",
        {f"{CLUSTER}.authOptions.secretName": GONE},
        f"{CLUSTER}.authOptions.secretName",
        "name the Secret",
    ),
    "Kubernetes tokens in a job": (
        "RayJob",
        {f"{CLUSTER}.authOptions.enableK8sTokenAuth": True},
        f"{CLUSTER}.authOptions.enableK8sTokenAuth",
        "not allowed in a RayJob",
    ),
    "no Ray version": (
        "RayJob",
        {f"{CLUSTER}.rayVersion": GONE},
        f"{CLUSTER}.rayVersion",
        "2.56 or later",
    ),
    "old Ray version": (
        "RayService",
        {"spec.rayClusterConfig.rayVersion": "2.51.0"},
        "spec.rayClusterConfig.rayVersion",
        "is 2.51.0; tokens need 2.52",
    ),
    "long name": (
        "RayJob",
        {"metadata.name": "a" * 48},
        "metadata.name",
        "has 48 letters",
    ),
    # Jobs.
    "ttl without shutdown": (
        "RayJob",
        {"spec.shutdownAfterJobFinishes": False},
        "spec.ttlSecondsAfterFinished",
        "needs shutdownAfterJobFinishes",
    ),
    "queue without shutdown": (
        "RayJob",
        {"spec.shutdownAfterJobFinishes": False},
        "spec.shutdownAfterJobFinishes",
        "Kueue",
    ),
    "suspended without shutdown": (
        "RayJob",
        {"spec.shutdownAfterJobFinishes": False, "spec.suspend": True},
        "spec.suspend",
        "needs shutdownAfterJobFinishes",
    ),
    "rules beside shutdown": (
        "RayJob",
        {
            "spec.deletionStrategy.deletionRules": [
                {"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}
            ]
        },
        "spec.deletionStrategy.deletionRules",
        "excludes shutdownAfterJobFinishes",
    ),
    "workers deleted under an autoscaler": (
        "RayJob",
        {
            "spec.shutdownAfterJobFinishes": GONE,
            "spec.ttlSecondsAfterFinished": GONE,
            "spec.deletionStrategy.deletionRules": [
                {"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}
            ],
        },
        "spec.deletionStrategy.deletionRules[0].policy",
        "the autoscaler would undo",
    ),
    "deletion out of order": (
        "RayJob",
        {
            "spec.shutdownAfterJobFinishes": GONE,
            "spec.ttlSecondsAfterFinished": GONE,
            "spec.deletionStrategy.deletionRules": [
                {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 10}},
                {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 60}},
            ],
        },
        "spec.deletionStrategy.deletionRules",
        "DeleteSelf comes before DeleteCluster",
    ),
    "retries on another's cluster": (
        "RayJob",
        {CLUSTER: GONE, "spec.clusterSelector": {"ray.io/cluster": "other"}},
        "spec.clusterSelector",
        "drop spec.backoffLimit",
    ),
    "retries of an interactive job": (
        "RayJob",
        {"spec.submissionMode": "InteractiveMode"},
        "spec.backoffLimit",
        "not allowed in InteractiveMode",
    ),
    "submitter of a sidecar": (
        "RayJob",
        {"spec.submissionMode": "SidecarMode"},
        "spec.submitterPodTemplate",
        "not allowed in SidecarMode",
    ),
    "submitter that restarts": (
        "RayJob",
        {"spec.submitterPodTemplate.spec.restartPolicy": GONE},
        "spec.submitterPodTemplate.spec.restartPolicy",
        "Never or OnFailure",
    ),
    "two commands": (
        "RayJob",
        {"spec.entrypoint": "cd /shared && attune run x.yaml"},
        "spec.entrypoint",
        "has a bare &&",
    ),
    "runtime environment": (
        "RayJob",
        {"spec.runtimeEnvYAML": "enviroment_vars: {A: '1'}"},
        "spec.runtimeEnvYAML",
        "enviroment_vars is not part",
    ),
    "no cluster": ("RayJob", {CLUSTER: GONE}, "spec", "rayClusterSpec and clusterSelector"),
    "queue and autoscaler": (
        "RayJob",
        {"metadata.annotations": GONE},
        "metadata.annotations",
        "elastic-job",
    ),
    # A head that is replaced.
    "old annotation": (
        "RayJob",
        {"metadata.annotations": {"ray.io/ft-enabled": "true"}},
        "metadata.annotations",
        "ray.io/ft-enabled is given beside",
    ),
    "Redis by variable": (
        "RayJob",
        {f"{HEAD}.{ENV}[2]": {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}},
        f"{HEAD}.{ENV}",
        "use that alone",
    ),
    "Redis without address": (
        "RayJob",
        {f"{CLUSTER}.gcsFaultToleranceOptions.redisAddress": GONE},
        f"{CLUSTER}.gcsFaultToleranceOptions.redisAddress",
        "is missing",
    ),
    "password in plain sight": (
        "RayJob",
        {f"{CLUSTER}.gcsFaultToleranceOptions.redisPassword": {"value": "hunter2"}},
        f"{CLUSTER}.gcsFaultToleranceOptions.redisPassword.value",
        "use valueFrom",
    ),
    # Pods.
    "too short a farewell": (
        "RayJob",
        {f"{ROLLOUT}.template.spec.terminationGracePeriodSeconds": 60},
        f"{ROLLOUT}.template.spec.terminationGracePeriodSeconds",
        "the preStop hook alone takes 60",
    ),
    "no farewell": (
        "RayJob",
        {f"{ROLLOUT}.template.spec.containers[0].lifecycle": GONE},
        f"{ROLLOUT}.template.spec.containers[0].lifecycle.preStop",
        "is missing",
    ),
    "token in plain sight": (
        "RayJob",
        {f"{HEAD}.{ENV}[2]": {"name": "HF_TOKEN", "value": "hf_abc"}},
        f"{HEAD}.{ENV}[2].value",
        "use valueFrom.secretKeyRef",
    ),
    "variable twice": (
        "RayJob",
        {f"{HEAD}.{ENV}[2]": {"name": "ATTUNE_REWARD_TOKEN"}},
        f"{HEAD}.{ENV}[2]",
        "is given twice",
    ),
    "mount without volume": (
        "RayJob",
        {f"{LEARNER}.template.spec.volumes[0].name": "share"},
        f"{LEARNER}.template.spec.containers[0].volumeMounts",
        "shared is not among the volumes",
    ),
    "moving image": (
        "RayJob",
        {f"{LEARNER}.template.spec.containers[0].image": "attune:latest"},
        f"{LEARNER}.template.spec.containers[0].image",
        "name a version",
    ),
    "GPU asked for but not limited": (
        "RayJob",
        {f"{LEARNER}.template.spec.containers[0].resources.limits": {"cpu": "4", "memory": "16Gi"}},
        f"{LEARNER}.template.spec.containers[0].resources.limits",
        "the same in limits and requests",
    ),
    "more asked for than allowed": (
        "RayJob",
        {f"{LEARNER}.template.spec.containers[0].resources.requests.memory": "17Gi"},
        f"{LEARNER}.template.spec.containers[0].resources.requests",
        "above its limit",
    ),
    "no CPUs": (
        "RayJob",
        {f"{LEARNER}.template.spec.containers[0].resources": {"limits": {"memory": "1Gi"}}},
        f"{LEARNER}.template.spec.containers[0].resources.limits",
        "cpu is missing",
    ),
    # Other kinds, and between them.
    "nothing served": (
        "RayService",
        {"spec.serveConfigV2": "applications: []"},
        "spec.serveConfigV2",
        "no appl",
    ),
    "import path": (
        "RayService",
        {"spec.serveConfigV2": "applications: [{import_path: cluster.serve.app}]"},
        "spec.serveConfigV2",
        "MODULE:NAME",
    ),
    "name of a service's head": (
        "RayService",
        {"spec.rayClusterConfig.headGroupSpec.headService": {"metadata": {"name": "head"}}},
        "spec.rayClusterConfig.headGroupSpec.headService.metadata.name",
        "not allowed in a RayService",
    ),
    "policy that shuts the cluster out": (
        "NetworkPolicy",
        {"spec.ingress[0].ports": [{"port": 6379, "protocol": "TCP"}]},
        "spec.ingress",
        "own pods out",
    ),
    "claim for one node": (
        "PersistentVolumeClaim",
        {"spec.accessModes": ["ReadWriteOnce"]},
        "spec.accessModes",
        "ReadWriteMany",
    ),
    "port that no pod has": (
        "PodMonitor",
        {"spec.podMetricsEndpoints[1].port": "auto-metrics"},
        "spec.podMetricsEndpoints[1].port",
        "is no port of its pods",
    ),
    "monitor of nothing": (
        "PodMonitor",
        {"spec.selector.matchLabels": {"app.kubernetes.io/instance": "frist"}},
        "spec.selector",
        "matches no pod",
    ),
}
