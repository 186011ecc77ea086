"""When an elastic fleet grows and shrinks, by a clock that the test turns."""

from cluster.scaling import Sizing
from configs.cluster import RolloutPlacement


def sizing(**settings: float) -> Sizing:
    given = {"min_engines": 1, "max_engines": 3, "groups_per_engine": 8, "idle_s": 10.0} | settings
    return Sizing(placement=RolloutPlacement(**given))


def test_it_grows_by_one_while_groups_wait_and_the_learner_does():
    fleet = sizing()
    assert fleet.wanted(0.0, 1, 9, True) == 2
    assert fleet.wanted(0.0, 1, 8, True) == 1, "no more than each engine should have"
    assert fleet.wanted(0.0, 1, 9, False) == 1, "the learner has enough to do"
    assert fleet.wanted(0.0, 3, 900, True) == 3, "the limit"


def test_it_shrinks_by_one_after_it_was_idle_for_long_enough():
    fleet = sizing()
    assert fleet.wanted(0.0, 3, 16, False) == 3
    assert fleet.wanted(9.0, 3, 16, False) == 3
    assert fleet.wanted(10.0, 3, 16, False) == 2
    assert fleet.wanted(11.0, 2, 0, False) == 2, "the next one waits as long again"
    assert fleet.wanted(21.0, 2, 0, False) == 1
    assert fleet.wanted(99.0, 1, 0, False) == 1, "the limit"


def test_work_in_between_begins_the_wait_anew():
    fleet = sizing()
    assert fleet.wanted(0.0, 2, 0, True) == 2
    assert fleet.wanted(9.0, 2, 9, True) == 2, "one engine could not do it"
    assert fleet.wanted(12.0, 2, 0, True) == 2
    assert fleet.wanted(22.0, 2, 0, True) == 1


def test_a_fleet_without_bounds_is_not_elastic():
    assert not Sizing(placement=RolloutPlacement(num_engines=4)).is_elastic
    assert sizing().is_elastic
