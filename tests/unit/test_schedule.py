from typing import get_args

import pytest

from configs.schema import OptimizerConfig
from rl.schedule import Schedule, learning_rate_factor


def factors(schedule, steps, warmup=0, num_steps=10, min_ratio=0.0):
    return [
        learning_rate_factor(
            step,
            schedule=schedule,
            warmup_steps=warmup,
            num_steps=num_steps,
            min_ratio=min_ratio,
        )
        for step in steps
    ]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_moves_at_once_and_ends_at_the_full_rate(schedule):
    assert factors(schedule, range(5), warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant_stays():
    assert factors("constant", [0, 5, 99]) == [1, 1, 1]


def test_linear_falls_to_zero_one_past_the_last_step():
    assert factors("linear", [0, 5, 9, 10, 20]) == pytest.approx([1, 0.5, 0.1, 0, 0])


def test_cosine_is_half_way_down_in_the_middle_and_slow_at_both_ends():
    values = factors("cosine", [0, 2, 5, 8, 10])
    assert values == pytest.approx([1, (1 + 0.809017) / 2, 0.5, (1 - 0.809017) / 2, 0], abs=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_fall_starts_after_warm_up_and_ends_at_min_ratio(schedule):
    values = factors(schedule, [4, 7, 10, 50], warmup=4, min_ratio=0.2)
    assert values == pytest.approx([1, 0.6, 0.2, 0.2])


def test_a_run_shorter_than_its_warm_up_never_reaches_the_full_rate():
    assert factors("linear", [0, 1], warmup=10, num_steps=2) == [0.1, 0.2]


def test_the_schedules_are_those_of_the_configuration():
    field = OptimizerConfig.model_fields["schedule"]
    assert get_args(Schedule) == get_args(field.annotation)
