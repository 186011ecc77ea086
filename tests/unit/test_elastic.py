"""Whether a learner is started again: by what failed, how often, and what was saved meanwhile."""

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster.elastic import Preempted, RestartPolicy, final_cause, matches
from cluster.errors import StorageFull, Unrecoverable
from cluster.events import read_events, record

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


def failed(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", dict(enumerate(errors)))


def remote(error: Exception) -> RayTaskError:
    """As a call to another actor raises it."""
    return RayTaskError("advance", f"{type(error).__name__}: {error}", error)


@pytest.fixture
def policy(tmp_path: Path) -> RestartPolicy:
    return RestartPolicy(FailureConfig(max_failures=2), str(tmp_path))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (failed(RuntimeError("connection closed")), None),
        (failed(RuntimeError("connection closed"), StorageFull("disk")), StorageFull),
        (failed(remote(StorageFull("disk"))), StorageFull),
        (failed(FloatingPointError("NaN")), FloatingPointError),
        (failed(ValueError("wrong row")), ValueError),
        (failed(remote(ValueError("wrong row"))), ValueError),
        (failed(ActorDiedError(), ValueError("half a message")), None),
        (failed(ActorDiedError(), Unrecoverable("probe")), Unrecoverable),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), None),
    ],
)
def test_what_no_other_attempt_would_get_past_is_found(error, expected):
    cause = final_cause(error)
    assert cause is None if expected is None else isinstance(cause, expected)


def test_what_is_final_ends_the_run_at_once(policy, tmp_path):
    assert policy.make_decision(failed(RuntimeError("x"), StorageFull("/disk is full"))) == RAISE
    (event,) = read_events(tmp_path)
    assert event["kind"] == "learner_failure"
    assert event["error"] == "StorageFull: /disk is full"
    assert (event["ranks"], event["restarted"]) == ([0, 1], False)


def test_deaths_in_a_row_are_counted_and_a_checkpoint_ends_the_row(policy, tmp_path):
    died = failed(ActorDiedError())
    assert [policy.make_decision(died) for _ in range(2)] == [RETRY, RETRY]
    record(tmp_path, "checkpoint_saved", step=2)
    assert [policy.make_decision(died) for _ in range(3)] == [RETRY, RETRY, RAISE]


def test_the_same_error_again_and_again_ends_the_run_before_all_attempts_are_used(tmp_path):
    policy = RestartPolicy(FailureConfig(max_failures=8), str(tmp_path))
    same = failed(RuntimeError("the judge failed"))
    assert [policy.make_decision(same) for _ in range(3)] == [RETRY, RETRY, RAISE]


def test_other_errors_in_between_are_no_row(tmp_path):
    policy = RestartPolicy(FailureConfig(max_failures=8), str(tmp_path))
    texts = ("a", "b", "a", "b", "a", "a")
    assert {policy.make_decision(failed(RuntimeError(text))) for text in texts} == {RETRY}


def test_a_node_that_leaves_is_no_failure(policy):
    left = failed(Preempted("saved"), RuntimeError("connection closed"))
    assert {policy.make_decision(left) for _ in range(9)} == {RETRY}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        ({"role": "learner"}, True),
        ({"role": "rollout"}, False),
        ({"role": "!rollout", "zone": "a"}, True),
        ({"role": "in(learner, any)"}, True),
        ({"role": "!in(learner,any)"}, False),
        ({"gpu": "a"}, False),
    ],
)
def test_labels_are_read_as_ray_reads_them(selector, expected):
    assert matches(selector, {"role": "learner", "zone": "a"}) is expected
