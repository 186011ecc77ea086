"""What most likely ended a run, and what to do about it, told from its error and its logs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A failure that is known: how it shows, why it happens, what helps."""

    name: str
    pattern: str
    """Regular expression, looked for in the error chain first and in the logs after it."""
    cause: str
    remedy: str


UNKNOWN = Cause(
    name="unknown",
    pattern="",
    cause="no known pattern",
    remedy="read error.txt, and the log of the role that it names",
)

CAUSES: tuple[Cause, ...] = (
    # The most telling first: what follows from another failure stands further down.
    Cause(
        name="disk-full",
        pattern=r"StorageFull|No space left on device|\[Errno 28\]|OutOfDiskError|disk is full",
        cause="a disk has no room left",
        remedy="free room where cluster.run_dir and Ray's temporary folder are, or lower "
        "cluster.checkpoint.keep; then resume",
    ),
    Cause(
        name="gpu-memory",
        pattern=r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        cause="a GPU ran out of memory",
        remedy="lower algorithm.tokens_per_micro_batch or cluster.rollout.kv_cache_gib, set "
        "cluster.learner.offload_optimizer, or give the learner more ranks",
    ),
    Cause(
        name="host-memory",
        pattern=r"running low on memory|ray\.exceptions\.OutOfMemoryError|Cannot allocate memory"
        r"|\bMemoryError\b|oom-kill|\bOOM\b",
        cause="a machine ran out of memory, and the process that used most of it was killed",
        remedy="see `attune plan`; lower batch, cache or replica sizes, or add memory; other "
        "programs on the machine count as well",
    ),
    Cause(
        name="shared-memory",
        pattern=r"Bus error|SIGBUS|ObjectStoreFullError|/dev/shm.*(full|space)",
        cause="shared memory, where Ray keeps objects, is too small",
        remedy="in a container give --shm-size=4g or more (`attune doctor` measures it)",
    ),
    Cause(
        name="probe-gap",
        pattern=r"differs from the learner by \S+ nats",
        cause="after a sync an engine did not compute what the learner computes",
        remedy="the error names the tensors: where all arrived intact, the engine loads the model "
        "in another way (dtype, tied weights, a class it does not know); do not raise "
        "cluster.sync.probe_tolerance to get past it",
    ),
    Cause(
        name="judge",
        pattern=r"reward \S+ (failed \d+ times|did not load)|failed \d+ times \(phase: score\)",
        cause="a judge gave no score for a batch, however often it was asked",
        remedy="its last error stands in the message and the batch in batch.json: call your "
        "reward with it; for a slow judge raise feedback.deadline_s",
    ),
    Cause(
        name="nan",
        pattern=r"(?i:\b(loss|gradient|norm|logits?|weights?)\b[^\n]{0,60}\b(nan|inf|not finite)\b"
        r"|\b(nan|non-finite|not finite)\b[^\n]{0,60}\b(loss|gradient|norm|logits?|weights?)\b)"
        r"|\bdiverged\b",
        cause="training diverged: a loss or gradient is not a number",
        remedy="lower algorithm.optimizer.learning_rate, see batch.json for outliers, and resume "
        "from an earlier checkpoint",
    ),
    Cause(
        name="token",
        pattern=r"InvalidAuthToken|AuthenticationError|Unauthorized: Missing|Forbidden: Invalid",
        cause="the Ray cluster was started with another token, or with none",
        remedy="set RAY_AUTH_MODE, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, to the cluster's own",
    ),
    Cause(
        name="engine-core",
        pattern=r"EngineDeadError|EngineCore[^\n]*(died|failed|encountered)|engine core",
        cause="the process behind an engine died",
        remedy="its last lines are in the engine's log; most often it ran out of memory "
        "(cluster.rollout.kv_cache_gib, max_num_seqs)",
    ),
    Cause(
        name="stuck-collective",
        pattern=r"exit.?code:?\s*75|exit status 75|did not end within \d+ s"
        r"|Timed out waiting \d+ms for (send|recv)|Watchdog caught collective|DistStoreError"
        r"|connectFullMesh",
        cause="a rank waited for another one that was gone, stuck or out of reach",
        remedy="see which role's log stops first; between machines check the network and that "
        "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the right interface",
    ),
    Cause(
        name="preempted",
        pattern=r"preempted|was drained|received SIGTERM",
        cause="a machine was taken away",
        remedy="resume; cluster.learner.min_workers and max_failures let a run go on by itself",
    ),
    Cause(
        name="head-lost",
        pattern=r"Failed to connect to (the )?(GCS|Ray cluster)|GCS[^\n]*unavailable"
        r"|lost connection to the (head|GCS)|RaySystemError: System error: .*(GCS|raylet)"
        r"|raylet[^\n]*(died|dead|exited)",
        cause="the connection to Ray's head, or the node's own Ray process, was lost",
        remedy="look at the head node (`ray status`); when the cluster is back, resume",
    ),
    Cause(
        name="node-lost",
        pattern=r"node has died|NodeDiedError|missing too many heartbeats",
        cause="a machine of the cluster died or cannot be reached",
        remedy="resume when it, or another one, is there",
    ),
    Cause(
        name="port-taken",
        pattern=r"[Aa]ddress already in use|EADDRINUSE",
        cause="a port that a process wanted was taken by another one",
        remedy="resume: ports are chosen anew; for a fixed one end the program that holds it",
    ),
    Cause(
        name="open-files",
        pattern=r"Too many open files|\[Errno 24\]",
        cause="a process may not open as many files as it needs",
        remedy="raise the limit: ulimit -n 65536",
    ),
    Cause(
        name="no-room-to-place",
        pattern=r"placement group[^\n]*(infeasible|timeout|pending)|Insufficient cluster resources"
        r"|cannot be scheduled|InsufficientResources",
        cause="the cluster has no room for a process that the run wants",
        remedy="`attune run FILE --dry-run` says what is wanted, `ray status` what is there",
    ),
    Cause(
        name="deadline",
        pattern=r"did not answer within|gave no reply|did not start within|was silent for"
        r"|did not \w[\w ]* within \d+ s|GetTimeoutError",
        cause="a process did not answer in time",
        remedy="its log's last lines say what it did; raise the setting that the error names, if "
        "it only needed longer",
    ),
    Cause(
        name="process-died",
        pattern=r"ActorDiedError|ActorUnavailableError|worker process has died|its process died"
        r"|WorkerCrashedError",
        cause="a process died",
        remedy="its log's last lines may say why; where they do not, look for a kill by the system "
        "(memory) in the machine's own log",
    ),
)


def suggest(evidence: Iterable[str]) -> Cause:
    """The first cause whose pattern is in the first text that holds any; else `UNKNOWN`.

    `evidence`: the strongest first, such as the innermost error, the whole chain, then logs, where
    harmless lines may look alike.
    """
    for text in evidence:
        for cause in CAUSES:
            if re.search(cause.pattern, text):
                return cause
    return UNKNOWN
