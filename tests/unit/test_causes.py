"""Known failures are told from their errors; each remedy names settings that there are."""

import re

import pytest

from cluster.causes import CAUSES, UNKNOWN, suggest
from cluster.run_folder import MAY_CHANGE
from configs.keys import resolve


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("OSError: [Errno 28] No space left on device: '/runs/x'", "disk-full"),
        ("StorageFull: /runs has no room left", "disk-full"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "gpu-memory"),
        ("Task was killed due to the node running low on memory.", "host-memory"),
        ("engine-1 differs from the learner by 0.31 nats at token 4 of probe 0 after", "probe-gap"),
        ("worker 1 died: exit code 75", "stuck-collective"),
        ("update of step 4 did not end within 60 s", "stuck-collective"),
        ("Timed out waiting 8000ms for send operation to complete", "stuck-collective"),
        ("RayTaskError(EngineDeadError): EngineCore encountered an issue", "engine-core"),
        ("the loss of step 12 is nan", "nan"),
        ("non-finite gradient norm at step 3", "nan"),
        ("reward judge failed 2 times (phase: score); last: its process died", "judge"),
        ("RPC error: InvalidAuthToken: Authentication token is missing", "token"),
        ("Failed to connect to Ray cluster at address 10.0.0.1:6379", "head-lost"),
        ("The actor died because its node has died. missing too many heartbeats", "node-lost"),
        ("engine-0 gave no reply to 4 prompts within 600 s (phase: sample)", "deadline"),
        ("engine-0 did not receive weights within 120 s (phase: sync)", "deadline"),
        ("ActorDiedError: The actor died unexpectedly: worker process has died", "process-died"),
        ("OSError: [Errno 98] Address already in use", "port-taken"),
        ("OSError: [Errno 24] Too many open files", "open-files"),
    ],
)  # fmt: skip
def test_a_known_failure_is_told_from_its_error(text, name):
    assert suggest([text]).name == name


@pytest.mark.parametrize(
    "text",
    ["KeyError: 'price'", "num_tokens 32, finite", "ZeroDivisionError: division by zero",
     "saved checkpoint of step 75", "value of the banana was informed"],
)  # fmt: skip
def test_an_unknown_failure_is_not_given_a_cause(text):
    assert suggest([text]) is UNKNOWN


def test_the_error_counts_before_the_logs():
    error, log = "the loss is nan", "OSError: [Errno 28] No space left on device"
    assert suggest([error, log]).name == "nan"
    assert suggest(["KeyError: 'x'", log]).name == "disk-full"


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_settings_that_a_remedy_names_exist_and_a_resumed_run_may_change_them(cause):
    named = re.findall(r"\b(?:algorithm|cluster|data|feedback|model)(?:\.[a-z_]+)+", cause.remedy)
    for name in named:
        assert resolve(name.split(".")) is not None, name
        assert name.startswith(MAY_CHANGE), name


def test_names_are_unique():
    assert len({cause.name for cause in CAUSES}) == len(CAUSES)
