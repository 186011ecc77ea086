"""A collector that was started anew and knows of no run yet says so, whatever it is asked."""

import asyncio
from typing import Any

import pytest

from cluster.collector import Collector
from cluster.errors import NotBegun

ASKED: dict[str, tuple[Any, ...]] = {
    "members": (), "synced": (["engine-0"],), "begin": (3,), "poll": (4,), "take": (4, 0, 1),
    "commit": (3, []), "advance": (3, []), "move_reference": ("folder",), "ask": ("held out", []),
    "answers": ("held out",),
}  # fmt: skip
"""The calls of learners (`CollectorClient.call`), each with its attempt's number."""


@pytest.mark.parametrize("method", ASKED)
def test_a_learner_is_told_to_begin_again(method):
    named = {"joining": False} if method == "members" else {}
    with pytest.raises(NotBegun):
        asyncio.run(getattr(Collector(), method)(*ASKED[method], attempt=1, **named))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("suspect", ("engine-0", "it hangs")), ("lost", ("engine-0", "it died")), ("ready", ()),
     ("release", ("engine-0",)), ("admit", (None,)), ("stats", ())],
)  # fmt: skip
def test_so_is_everybody_else(method, arguments):
    with pytest.raises(NotBegun):
        asyncio.run(getattr(Collector(), method)(*arguments))


def test_the_supervisor_sees_that_it_has_to_be_set_up():
    assert not asyncio.run(Collector().status()).is_set_up
